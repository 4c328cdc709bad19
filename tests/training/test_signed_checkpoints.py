"""Checkpoints whose manifest is damaged, or was written anew for changed files: one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr_kernels.errors import UsageError
from dsr_kernels.training.run.checkpoint import Checkpoints, load, recipe_copy

NO_FILE = {"bytes": 1, "sha256": "0"}
MANIFESTS: dict[str, Callable[[str], str]] = {
    "nested": lambda text: "[" * 100_000,
    "a list of files": lambda text: with_files(text, ["state.pt"]),
    "names of files": lambda text: with_files(text, ["weights.safetensors", "state.pt"]),
    "infinity": lambda text: text.replace('"bytes": ', '"bytes": 1e999, "x": ', 1),
    "no number": lambda text: text.replace('"bytes": ', '"bytes": NaN, "x": ', 1),
    "a long name": lambda text: with_file(text, "a" * 5000),
    "a file elsewhere": lambda text: with_file(text, "../other"),
    "a name of no text": lambda text: with_file(text, "\ud800"),
}


def with_files(text: str, files: Any) -> str:
    return json.dumps({**json.loads(text), "files": files})


def with_file(text: str, name: str) -> str:
    return with_files(text, {**json.loads(text)["files"], name: NO_FILE})


def torch_file(content: object) -> bytes:
    raw = io.BytesIO()
    torch.save(content, raw)
    return raw.getvalue()


FILES = {
    "weights of no format": ("weights.safetensors", b"garbage"),
    "no weights": ("weights.safetensors", b""),
    "a state of no format": ("state.pt", b"garbage"),
    "no state": ("state.pt", b""),
    "a pickle": ("state.pt", pickle.dumps(Path("x"), protocol=2)),
    "a list": ("state.pt", torch_file([1, 2])),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Checkpoints(tmp_path).save(1, {"a": torch.ones(3)}, {"recipe": ""}, b"recipe")


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_one_sentence(checkpoint: Path, kind: str) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(MANIFESTS[kind](path.read_text()))
    with pytest.raises(UsageError, match="not a checkpoint of dsr_kernels"):
        load(checkpoint)
    recipe_copy(checkpoint.parent)  # raises nothing


@pytest.mark.parametrize("kind", FILES)
def test_a_changed_file_that_was_signed_again_is_one_sentence(checkpoint: Path, kind: str) -> None:
    name, raw = FILES[kind]
    (checkpoint / name).write_bytes(raw)
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"damaged checkpoint: it cannot be loaded") as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
