"""The kernels of every instruction set this machine can run, on tails, bands and wide layers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.nn_cases import check_layer, layer

from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

# Sizes beyond one tile, one block of channels, one unit of images and one band of rows.
GEOMETRIES = {
    "several tiles and blocks": dict(c=70, o=9, k=3, size=(17, 13), n=3),
    "several units of images": dict(c=48, o=4, k=3, size=(8, 8), n=37),
    "several bands of rows": dict(c=40, o=3, k=5, size=(61, 47), n=1),
    "more than one block of outputs": dict(c=3, o=261, k=3, size=(5, 6), n=2),
    "stride in both directions": dict(c=37, o=33, k=3, size=(33, 31), n=5, stride=(2, 3)),
    "stride beyond the kernel": dict(c=4, o=5, k=1, size=(10, 9), n=3, stride=3),
    "pointwise": dict(c=130, o=20, k=1, size=(7, 7), n=9, padding=0),
    "single pixel": dict(c=300, o=65, k=1, size=(1, 1), n=131, padding=0),
    "grouped": dict(c=36, o=24, k=3, size=(11, 12), n=4, groups=12),
}


@pytest.fixture(params=_C.available_isas())
def isa(request):
    active = _C.isa()
    patterns.clear()  # a plan belongs to the instruction set it was made for
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(active)
    patterns.clear()


def conv_and_input(name: str, dtype: torch.dtype, sparsity: float):
    g = dict(GEOMETRIES[name])
    c, o, k, size, n = (g.pop(key) for key in ("c", "o", "k", "size", "n"))
    g.setdefault("padding", k // 2)
    conv = layer(c, o, k, sparsity=sparsity, dtype=dtype, seed=3, **g)
    return conv, torch.randn(n, c, *size, dtype=dtype, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_kernel_agrees_with_torch(isa: str, name: str, dtype: torch.dtype) -> None:
    sparsity = random.Random(name).choice((0.5, 0.9))
    conv, x = conv_and_input(name, dtype, sparsity)
    check_layer(conv, x)
    check_layer(conv, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_results_do_not_depend_on_threads(isa: str, name: str) -> None:
    conv, x = conv_and_input(name, torch.float32, 0.8)
    x.requires_grad_()
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y = conv(x)
            results.append(
                [y, *torch.autograd.grad(y, (x, conv.weight_values), torch.ones_like(y) / 3)]
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_default_is_the_fastest_of_this_processor() -> None:
    """On Intel's processors AVX512-BF16 is the slower way, so it has to be asked for there."""
    expected = _C.available_isas()
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if expected[-1] == "avx512_bf16" and intel:
        expected.pop()
    environment = {key: os.environ[key] for key in os.environ if key != "DSR_CPU_ISA"}
    code = "from dsr_kernels.backends.native import _C; print(_C.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected[-1]


def test_subnormals_are_flushed_and_the_callers_mode_is_kept(isa: str) -> None:
    conv = layer(1, 1, 1, sparsity=0.0, bias=False)
    tiny = torch.full((1, 1, 4, 4), 1e-40)
    with torch.no_grad():
        conv.weight_values.fill_(1.0)
        if isa != "portable" or os.uname().machine == "x86_64":
            assert conv(tiny).abs().max() == 0
    assert (tiny * 1.0).abs().max() > 0


def run_python(code: str, isa: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DSR_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )


def test_environment_variable_chooses_the_instruction_set() -> None:
    result = run_python("import dsr_kernels; dsr_kernels.show_config()", "portable")
    assert result.returncode == 0, result.stderr
    assert "CPU kernels  portable (available: portable" in result.stdout


def test_unknown_instruction_set_is_refused_by_name() -> None:
    result = run_python("import dsr_kernels; dsr_kernels.show_config()", "sse9")
    assert result.returncode != 0
    assert "DSR_CPU_ISA asks for 'sse9', but this processor and build have: portable" in (
        result.stderr
    )


def test_a_stride_far_beyond_the_kernel_costs_no_memory() -> None:
    conv = layer(16, 16, 1, stride=1000, sparsity=0.5)
    x = torch.randn(1, 16, 3, 4)
    check_layer(conv, x)
    shape = (1, 1), (1000, 1000), (0, 0), (1, 1), (1, 1)
    pattern = conv.crow_indices.data_ptr(), conv.col_indices.data_ptr(), conv.nnz
    plan = _C.ConvPlan(16, 16, 3, 4, *shape, 1, *pattern, "float32")
    assert plan.bytes < 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "must be at least 1"),
        ({"groups": 3}, "groups = 3 must divide"),
        ({"width": 0}, "must be at least 1"),
        ({"blocks": 1}, "crow_indices"),
    ],
)
def test_the_native_core_refuses_impossible_geometries(change: dict, message: str) -> None:
    conv = layer(4, 4, 1, sparsity=0.5)
    arguments = {
        "out_channels": 4,
        "in_channels": 4,
        "height": 2,
        "width": 2,
        "kernel": (1, 1),
        "stride": (1, 1),
        "padding": (0, 0),
        "out_size": (2, 2),
        "dilation": (1, 1),
        "groups": 1,
        "crow": conv.crow_indices.data_ptr(),
        "col": conv.col_indices.data_ptr(),
        "blocks": conv.nnz,
        "dtype": "float32",
    }
    with pytest.raises(ValueError, match=message):
        _C.ConvPlan(**arguments | change)
