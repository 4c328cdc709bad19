"""What `import dsr_kernels` makes reachable, and that it changes nothing outside the package."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dsr_kernels


def run(program: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_importing_the_package_imports_nothing_else():
    shown = run("import dsr_kernels", "-X", "importtime").stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.splitlines()}
    assert "dsr_kernels" in imported
    assert not any(name.startswith(("dsr_kernels.", "torch", "numpy")) for name in imported)


def test_a_name_is_imported_when_it_is_asked_for():
    program = """
import sys, dsr_kernels
assert dsr_kernels.__version__ and "torch" not in sys.modules
print(dsr_kernels.nn.SparseConv1d.__name__, dsr_kernels.SparseConv1d.__name__)
print(dsr_kernels.rewiring.DSR.__name__, "dsr_kernels.models" in sys.modules)
print(dsr_kernels.models.wrn_28.__name__)
from dsr_kernels import *
print(rewiring is dsr_kernels.rewiring, "nn" in dir())
"""
    expected = ["SparseConv1d SparseConv1d", "DSR False", "wrn_28", "True False"]
    assert run(program).stdout.splitlines() == expected


@pytest.mark.parametrize("name", ["convert", "ops", "topology"])
def test_modules_without_a_public_name_are_found_too(name):
    program = f"""
import sys, dsr_kernels
print("dsr_kernels.{name}" in sys.modules, dsr_kernels.{name} is sys.modules["dsr_kernels.{name}"])
print(hasattr(dsr_kernels, "__main__"), hasattr(dsr_kernels, "{name}s_"))
"""
    assert run(program).stdout.splitlines() == ["False True", "False False"]


FUNCTIONS = [name for name in dsr_kernels.HOMES if name.islower()]
USED = f"""
for name in {FUNCTIONS}:
    assert isinstance(getattr(dsr_kernels, name), types.FunctionType), name
"""
IMPORTED = """
for name in names:
    module = importlib.import_module(name)
    exec(f"import {name} as found")
    assert found is module is sys.modules[name], name
"""
# `__main__` runs the command, and the compiled modules may be of another build.
EVERY_MODULE = """
import importlib, pkgutil, sys, types
import dsr_kernels
every = pkgutil.walk_packages(dsr_kernels.__path__, "dsr_kernels.")
names = [m.name for m in every if m.name.split(".")[1] not in ("__main__", "_C", "_cuda")]
assert len(names) > 200
"""


@pytest.mark.parametrize("parts", [USED + IMPORTED, IMPORTED + USED], ids=["used", "imported"])
def test_no_module_is_hidden_by_a_function_of_its_name_whichever_comes_first(parts):
    run(EVERY_MODULE + parts)


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse(Path(dsr_kernels.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and node.lineno < 20)
    told = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            told |= {alias.name: node.module.rpartition("dsr_kernels")[2] for alias in node.names}
    homes = {name: f".{home}" for name, home in dsr_kernels.HOMES.items()}
    assert told == homes | dict.fromkeys(dsr_kernels.MODULES, "")
    assert set(dsr_kernels.__all__) == set(told) - {"cuda", "nn"}


def test_classes_are_pickled_by_the_modules_they_are_in():
    program = """
import pickle, sys
loaded = pickle.loads(bytes.fromhex(sys.stdin.read()))
print(loaded.in_features)
"""
    layer = pickle.dumps(dsr_kernels.SparseLinear(4, 2))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=layer.hex(), capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"


def test_a_compiled_model_may_call_what_the_package_names():
    layer = dsr_kernels.SparseLinear(4, 2)

    def run_layer(x):
        pattern = (layer.crow_indices, layer.col_indices, (2, 4))
        return dsr_kernels.nn.functional.sparse_linear(x, layer.weight_values, layer.bias, *pattern)

    x = torch.ones(3, 4)
    compiled = torch.compile(run_layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_dir_lists_every_public_name_and_others_are_errors():
    assert set(dsr_kernels.__all__) <= set(dir(dsr_kernels))
    assert not {"cuda", "nn"} & set(dsr_kernels.__all__)  # `import *` would hide torch's
    assert all(hasattr(dsr_kernels, name) for name in dsr_kernels.__all__)
    with pytest.raises(AttributeError, match="module 'dsr_kernels' has no attribute 'modles'"):
        dsr_kernels.modles  # noqa: B018


STATE = """
import json, logging, os, random, signal, sys, warnings
import numpy as np
import torch, torch.compiler.config, torch._dynamo.config

def state():
    return {
        "compiler": repr(torch.compiler.config.get_config_copy()),
        "dynamo": repr(torch._dynamo.config.get_config_copy()),
        "backends": [
            torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic,
            torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        ],
        "sources": getattr(torch.compiler.config, "dynamic_sources", ""),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "denormal": torch.tensor(1e-40).mul(1).item(),
        "warnings": repr(warnings.filters),
        "environment": dict(os.environ),
        "signals": {s.name: repr(signal.getsignal(s)) for s in signal.valid_signals()
                    if isinstance(s, signal.Signals)},
        "hooks": [repr(sys.excepthook), repr(sys.displayhook), repr(warnings.showwarning)],
        "logging": [logging.root.level, repr(logging.root.handlers)],
        "path": sys.path[:],
        "random": [repr(random.getstate()), repr(np.random.get_state()),
                   torch.get_rng_state().tolist()],
        "ops": sorted({name.split("::")[0] for name in torch._C._dispatch_get_all_op_names()}),
    }

before = state()
import dsr_kernels.nn
after = state()
conv = dsr_kernels.nn.SparseConv2d(2, 2, 1)
built = getattr(torch.compiler.config, "dynamic_sources", "")
dsr_kernels.nn.SparseLinear(2, 2)
again = getattr(torch.compiler.config, "dynamic_sources", "")
print(json.dumps([before, after, built, again]))
"""


def test_importing_the_package_changes_nothing_outside_it():
    before, after, built, again = json.loads(run(STATE).stdout)
    assert after.pop("ops") == sorted([*before.pop("ops"), "dsr_kernels"])
    assert after == before
    assert before["sources"] == ""
    if "dynamic_sources" in before["compiler"]:  # since torch 2.8
        values, indices = r".*_parameters.*\['weight_values'\]", r".*_buffers.*\['col_indices'\]"
        assert built == again == f"{values},{indices}"


def test_torch_compile_learns_of_a_layer_that_is_unpickled():
    program = """
import pickle, sys, torch, torch.compiler.config
import dsr_kernels
if hasattr(torch.compiler.config, "dynamic_sources"):
    layer = pickle.dumps(dsr_kernels.SparseLinear(4, 2))
    torch.compiler.config.dynamic_sources = "mine"
    assert isinstance(pickle.loads(layer), dsr_kernels.SparseLinear)
    found = torch.compiler.config.dynamic_sources
    assert found.startswith("mine,") and found.count("weight_values") == 1, found
"""
    run(program)
