"""Processes that load a user's data, which may be downloaded first."""

from __future__ import annotations

import time
from pathlib import Path

from helpers import crew, own_parts
from helpers.small_runs import QUIET

RECIPE = """
[model]
name = "lenet300"
sparsity = 0.7
[data]
name = "{module}:{function}"
arguments = {{ folder = "{folder}" }}
workers = 0
validation = 0
[optimizer]
lr = 0.05
[training]
epochs = 1
batch_size = 12
[rewiring]
every = 3
"""


def downloaded(folder: str) -> tuple[own_parts.Points, own_parts.Points]:
    """As `download = true`: slow, and written only where it is not there."""
    path = Path(folder) / "file"
    if not path.exists():
        with open(Path(folder) / "downloads", "a") as log:
            log.write("once\n")
        time.sleep(0.5)
        path.write_text("data")
    assert path.read_text() == "data"
    return own_parts.points()


def lost(folder: str) -> None:
    with open(Path(folder) / "downloads", "a") as log:
        log.write("once\n")
    raise ConnectionError("no route to host")


def crew_of(tmp_path: Path, function: str, size: int) -> list[crew.Ended]:
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(module=__name__, function=function, folder=tmp_path))
    return crew.run(
        tmp_path, ["train", *QUIET, "--recipe", str(path), "--out", str(tmp_path / "run")], size
    )


def test_one_process_downloads_and_the_others_find_it(tmp_path):
    ended = crew_of(tmp_path, "downloaded", 2)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert (tmp_path / "downloads").read_text() == "once\n"


def test_a_first_process_that_cannot_load_ends_all(tmp_path):
    first, *others = crew_of(tmp_path, "lost", 3)
    assert [rank.code for rank in (first, *others)] == [2, 2, 2]
    (sentence,) = first.sentences
    assert "data.name failed: ConnectionError: no route to host" in sentence
    assert [rank.text for rank in others] == ["", ""]
    assert (tmp_path / "downloads").read_text() == "once\n" and not (tmp_path / "run").exists()
