"""Stand-ins for what `dsr train` imports and a bare GPU machine may lack."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch


def use_where_missing(patch: pytest.MonkeyPatch) -> None:
    """Puts a stand-in in the place of each package that cannot be imported."""
    for name, attributes in (
        ("sklearn.datasets", {"load_digits": load_digits}),
        ("safetensors.torch", {"save_file": save_file, "load_file": load_file}),
    ):
        try:
            importlib.import_module(name)
        except ImportError:
            _install(patch, name, attributes)


def _install(patch: pytest.MonkeyPatch, name: str, attributes: dict[str, Callable]) -> None:
    for key in (name.split(".")[0], name):
        module = module_from_spec(ModuleSpec(key, None))  # with a spec: others look for one
        vars(module).update(attributes)
        patch.setitem(sys.modules, key, module)


def load_digits() -> SimpleNamespace:
    """1,797 images of 8x8 in 0..16: ten random pictures, each under its own noise."""
    random = np.random.default_rng(0)
    target = np.arange(1797) % 10
    pictures = random.uniform(0, 16, (10, 8, 8))
    images = (pictures[target] + random.normal(0, 4, (1797, 8, 8))).clip(0, 16).round()
    return SimpleNamespace(images=images, target=target)


def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    arrays = {name: t.numpy() for name, t in sorted(tensors.items())}
    Path(path).write_bytes(pickle.dumps((metadata, arrays)))


def load_file(path: Path) -> dict[str, torch.Tensor]:
    _, arrays = pickle.loads(Path(path).read_bytes())
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
