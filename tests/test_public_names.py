"""What `import dsr_kernels` makes reachable, and that it changes nothing outside the package."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import dsr_kernels


def run(program: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_models_and_rewiring_are_imported_when_they_are_asked_for():
    shown = run("import dsr_kernels", "-X", "importtime").stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.splitlines()}
    assert {"dsr_kernels", "dsr_kernels.nn", "dsr_kernels.nn.layers"} <= imported
    lazy = ("dsr_kernels.rewiring", "dsr_kernels.models", "dsr_kernels.training")
    assert not any(name.startswith(lazy) for name in imported)
    program = """
import sys, dsr_kernels
print(dsr_kernels.nn.SparseConv1d.__name__)
print(dsr_kernels.rewiring.DSR.__name__, "dsr_kernels.models" in sys.modules)
print(dsr_kernels.models.wrn_28.__name__)
from dsr_kernels import *
print(rewiring is dsr_kernels.rewiring)
"""
    expected = ["SparseConv1d", "DSR False", "wrn_28", "True"]
    assert run(program).stdout.splitlines() == expected


def test_dir_lists_every_public_name_and_others_are_errors():
    assert set(dsr_kernels.__all__) <= set(dir(dsr_kernels))
    assert "nn" not in dsr_kernels.__all__  # `import *` would hide torch's
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
import dsr_kernels
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
        assert built == again == r".*_parameters.*\['weight_values'\]"


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
