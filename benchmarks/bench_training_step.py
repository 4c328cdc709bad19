"""Times whole training steps and inference, sparse and dense in turn. Run with `make bench`.

Also recorded: the bytes of weights, gradients and optimizer state, and where the time of a step
goes. `make bench-models` measures the same models alone.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from whole_models.comparison import inference_record, training_records
from whole_models.variants import RESNET, WRN, Case

STEPS = [(WRN._replace(sparsities=(0.8, 0.9, 0.95)), 9), (RESNET, 5)]
BATCHES = [(WRN, 1), (WRN, 64), (RESNET, 1)]


def case_id(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value)


@pytest.mark.parametrize("case, count", STEPS, ids=case_id)
def test_training_step(benchmark, case: Case, count: int, rounds) -> None:
    benchmark.extra_info["records"] = training_records(case, rounds(count), once(benchmark))


@pytest.mark.parametrize("case, batch", BATCHES, ids=case_id)
def test_inference(benchmark, case: Case, batch: int, rounds) -> None:
    case = case._replace(batch=batch)
    benchmark.extra_info["records"] = [inference_record(case, rounds(30), once(benchmark))]


def once(benchmark) -> Callable[[Callable[[], object], int], None]:
    """The benchmark's own loop: its time is that of a whole round."""

    def repeat(run: Callable[[], object], count: int) -> None:
        benchmark.pedantic(run, rounds=count)

    return repeat
