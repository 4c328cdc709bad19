"""The Triton fallback: its cases under the interpreter and on a GPU; its kernels as GPU code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.op_cases import problem

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsr_kernels.backends.triton import launch

FILE = Path(__file__).parents[1] / "helpers/triton_cases.py"
HOPPER = GPUTarget("cuda", 90, 32)
NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
}


@pytest.mark.parametrize("where", ["interpreter", "gpu"])
def test_cases(where: str) -> None:
    """In a process of their own: Triton looks for TRITON_INTERPRET once, when it is imported."""
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FILE],
        env={**os.environ, "TRITON_INTERPRET": str(int(where == "interpreter"))},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"[1-9]\d* passed", result.stdout)


def launches(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(kernel, arguments, constants) of each op as triton_launch calls them."""
    seen = []
    monkeypatch.setattr(
        launch,
        "_run",
        lambda kernel, _, *args, **constants: seen.append((kernel, args, constants)),
    )
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    x, values, bias, crow, col, shape = problem(weights, requires_grad=False)
    x, y = x.to(dtype), torch.empty(2, 4, 2, 5, dtype=dtype)
    launch.sparse_conv2d(y, x, values, bias, crow, col, shape)
    launch.sparse_conv2d_grad_input(x, y, values, crow, col, shape)
    launch.sparse_conv2d_grad_weight(values, x, y, crow, col, shape)
    return seen


def compiled(kernel, args: tuple, constants: dict) -> dict:
    """What Triton makes of a launch, from its own IR to the binary."""
    constants = dict(constants)
    options = {"num_warps": constants.pop("num_warps")}
    signature, known = dict.fromkeys(constants, "constexpr"), constants
    for name, value in zip(kernel.arg_names, args, strict=False):
        if value is None:
            signature[name], known[name] = "constexpr", None
        else:
            tensor = isinstance(value, torch.Tensor)
            signature[name] = f"*{NAMES[value.dtype]}" if tensor else "i32"
    ordered = {name: signature[name] for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, ordered, known), target=HOPPER, options=options).asm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_kernels_compile_for_a_gpu(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    seen = launches(dtype, monkeypatch)
    assert [kernel.fn.__name__ for kernel, *_ in seen] == ["conv", "conv", "grad_weight"]
    for call in seen:
        asm = compiled(*call)
        assert asm["cubin"]
        kind = "f64" if dtype == torch.float64 else "f32"  # what is accumulated
        assert re.search(rf"fma\.rn\.{kind}", asm["ptx"])
        assert ".local" not in asm["ptx"]
        assert "atom." not in asm["ptx"] and "red.global" not in asm["ptx"]
