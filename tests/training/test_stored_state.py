"""state.pt whose manifest is right and whose content is not: refused in one sentence, or harmless.

Each key in turn is taken away, or holds something else.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_runs import QUIET, artefacts, interrupt_at, train
from torch import Tensor

from dsr_kernels.cli import main
from dsr_kernels.training.run.checkpoint import MANIFEST, STATE, Checkpoints

# By what they have of their own: the settings, and the keys that are looked at.
RUNS = {
    "dsr": (("rewiring.record_exploration=true",), ()),
    "deepr": (("method=deepr",), ("rewirer",)),
    "snfs": (("method=snfs", "optimizer.name=adam"), ("rewirer", "optimizer")),
    "gmp": (("method=gmp", "rewiring.stop_epoch=2"), ("rewirer",)),
}
GONE = object()
Path_ = tuple[Any, ...]  # the keys that lead to a value
# Any text or number of the right kind is another state, which nothing tells.
OTHERS: tuple[Any, ...] = (GONE, None, [], {}, 7, "text", torch.zeros(3, dtype=torch.int16))


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A run stopped behind iteration 20 of 24, and what it leaves when it goes on."""
    settings, keys = RUNS[request.param]
    base, changes = tmp_path_factory.mktemp("runs"), ("training.epochs=2", *settings)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        assert train(base / "half", *changes) == 130
    shutil.copytree(base / "half", base / "whole", symlinks=True)
    assert main(["train", "--resume", str(base / "whole"), *QUIET]) == 0
    return base / "half", artefacts(base / "whole"), keys


def values_in(found: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value of a state, but of many alike, such as layers, only the last."""
    if path:
        yield path, found
    items = list(found.items()) if isinstance(found, dict) else []
    items += list(enumerate(found)) if isinstance(found, list) else []
    if path[-1:] in (("state",), ("exploration",), ("layers",), ("params",), ("sums",)):
        items = items[-1:]
    for key, value in items:
        yield from values_in(value, (*path, key))


def others(path: Path_, value: Any) -> Iterator[Any]:
    for other in OTHERS if len(path) < 3 else (GONE, None, OTHERS[-1]):
        if path[:-1] == ("optimizer", "state") and other is GONE:
            continue  # as of a parameter that has never had a gradient
        if path == ("rewirer", "sum") and other is None:
            continue  # as between two reports of DeepR
        numbers = (int, float)
        if type(other) is type(value) or (type(other) in numbers and type(value) in numbers):
            continue
        yield other
    if isinstance(value, Tensor):
        yield value.to(torch.float64 if value.dtype != torch.float64 else torch.float32)
        yield torch.stack([value, value])


def changed(state: dict, path: Path_, other: Any) -> dict:
    state = copy.deepcopy(state)
    holder: Any = state
    for key in path[:-1]:
        holder = holder[key]
    if other is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return state


def sign(checkpoint: Path, state: Any) -> None:
    """Writes state.pt, and the manifest for it."""
    torch.save(state, checkpoint / STATE)
    raw = (checkpoint / STATE).read_bytes()
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][STATE] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def test_a_changed_state_is_refused_in_one_sentence_or_harmless(
    run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    half, expected, keys = run
    state = torch.load(Checkpoints(half / "checkpoints").steps()[-1] / STATE)
    tried, wrong = 0, []
    for path, value in values_in({key: state[key] for key in keys or state}):
        for other in others(path, value):
            folder = shutil.copytree(half, tmp_path / "run", symlinks=True)
            sign(Checkpoints(folder / "checkpoints").steps()[-1], changed(state, path, other))
            capsys.readouterr()
            code = main(["train", "--resume", str(folder), *QUIET])
            said, case = capsys.readouterr().err, (path, "gone" if other is GONE else other)
            if code:
                names_it = f"{STATE}: " in said and str(path[0]) in said
                names_it |= path[0] in ("recipe", "data") and "checkpoint" in said
                if code != 2 or said.count("\n") != 1 or not names_it:
                    wrong.append((case, said))
            elif artefacts(folder) != expected:
                wrong.append((case, "it ends with other bytes"))
            shutil.rmtree(folder)
            tried += 1
    assert tried > 30 and not wrong, wrong
