"""Times the variants of a model in turn, and makes the records.

Dense and ours alternate within each round: dense, ours, dense, ours, and so on; thin dense ones
between them, where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, TypeVar

import torch

from dsr_kernels.bench.problem import LAST
from dsr_kernels.bench.rivals import PRECISIONS, fastest, verdict
from dsr_kernels.bench.timing import Alternation
from whole_models.training import Training, share_outside
from whole_models.variants import Case, Variant, dense, ours

Run = Callable[[], object]
Repeat = Callable[[Run, int], None]
T = TypeVar("T")

# Before the name of a dense run whose model is narrow: no rival by dsr_kernels.bench.rivals.
THIN = "thin "


def plain_loop(run: Run, rounds: int) -> None:
    for _ in range(rounds):
        run()


def training_records(
    case: Case, rounds: int, repeat: Repeat = plain_loop, compiled: bool = True
) -> list[dict[str, Any]]:
    """A record of the case's training step for each of its sparsities."""
    torch.manual_seed(0)
    torch.compiler.reset()
    images, labels = case.images(), case.labels()

    def training(variant: Variant, sparsity: float = 0.0) -> Training:
        batch = images.to(**variant.format)
        return Training(variant.model(case, sparsity), batch, labels, variant.autocast)

    rivals = {variant.name: training(variant) for variant in dense(compiled)}
    own = {(v.name, s): training(v, s) for s in case.sparsities for v in ours()}
    steps, left_out = warmed_up({name: each.step for name, each in (rivals | own).items()})
    alternation = Alternation(in_turn(steps))
    repeat(alternation.round, rounds)
    taken = alternation.milliseconds()
    records = []
    for sparsity in case.sparsities:
        at = {name: each for (name, s), each in own.items() if s == sparsity}
        ms = {name: taken[name] for name in rivals if name in taken}
        ms |= {name: taken[name, sparsity] for name in at}
        facts = _where_it_goes(rivals | at, ms)
        held = {side: facts.pop(f"held {side}") for side in ("ours", "dense")}
        assert held["ours"] < held["dense"]
        assert all(torch.isfinite(p).all() for each in at.values() for p in each.model.parameters())
        records.append(_record(case, sparsity, ms, left_out, rounds) | facts | {"held bytes": held})
    return records


def _where_it_goes(trainings: Mapping[str, Training], ms: Mapping) -> dict[str, Any]:
    """Milliseconds by kind of the fastest eager run of each side and precision."""
    eager = {name: times for name, times in ms.items() if ", compiled" not in name}
    kinds, outside, held = {}, {}, {}
    for precision in PRECISIONS:
        for side in ("ours", "dense"):
            name = fastest(eager, side, precision)
            if name is None:
                continue
            key = side if precision == "fp32" else f"{side} {precision}"
            kinds[key] = trainings[name].milliseconds_by_kind(eager[name]["min"])
            outside[key] = share_outside(kinds[key])
            held.setdefault(f"held {side}", trainings[name].held_bytes())
    return {"ms by kind": kinds, "share outside convolutions": outside, **held}


def inference_record(
    case: Case, rounds: int, repeat: Repeat = plain_loop, compiled: bool = True
) -> dict[str, Any]:
    """A record of a batch in eval mode and without gradients.

    Dense runs folded, too. torch.compile is around either side, for Python is most of a small
    batch.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    images, sparsity = case.images(), case.sparsities[0]
    variants = [*dense(compiled=False), *dense(compiled, folded=True), *ours(compiled)]
    runs = {v.name: inference(v, case, sparsity, images) for v in variants}
    runs, left_out = warmed_up(runs)
    alternation = Alternation(in_turn(runs))
    repeat(alternation.round, rounds)
    assert all(torch.isfinite(run()).all() for run in runs.values())
    return _record(case, sparsity, alternation.milliseconds(), left_out, rounds)


def inference(
    variant: Variant, case: Case, sparsity: float, images: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Dense in bfloat16 has its weights in bfloat16, so that no call casts them; ours autocasts."""
    model = variant.model(case, sparsity, training=False)
    images = images.to(**(LAST if variant.last else {}))
    if variant.bf16 and variant.side == "dense":
        model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)

    def run() -> torch.Tensor:
        with torch.no_grad(), variant.autocast():
            return model(images)

    return run


def _record(
    case: Case, sparsity: float, ms: Mapping, left_out: Mapping[str, str], rounds: int
) -> dict[str, Any]:
    return {
        "model": case.name,
        "batch": case.batch,
        "sparsity": sparsity,
        "ms": dict(ms),
        **verdict(ms),
        "left out": dict(left_out),
        "rounds": rounds,
    }


def warmed_up(runs: Mapping[T, Callable[[], Any]]) -> tuple[dict[T, Callable], dict[T, str]]:
    """(the runs that can be timed, name -> why a compiled one cannot).

    torch.compile needs a C++ compiler that works, and compiles at the first calls.
    """
    able, left_out = {}, {}
    for name, run in runs.items():
        if ", compiled" not in str(name):
            able[name] = run
            continue
        try:
            plain_loop(run, 2)
            able[name] = run
        except Exception as error:  # whatever dynamo, inductor and the compiler raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            left_out[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
            print(f"{name} is left out: {left_out[name]}")
    return able, left_out


def in_turn(runs: Mapping[T, Run]) -> dict[T, Run]:
    """The runs in an order in which dense, thin and ours take turns, while there are of each."""
    sides: dict[str, list[T]] = {"dense": [], THIN: [], "": []}
    for name in runs:
        side = next(s for s in sides if (isinstance(name, str) and name.startswith(s)) or not s)
        sides[side].append(name)
    return {name: runs[name] for name in _flat(zip_longest(*sides.values()))}


def _flat(pairs: Iterator[tuple]) -> Iterator:
    return (name for pair in pairs for name in pair if name is not None)
