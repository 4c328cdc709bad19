"""The device under test. Importing this skips the importing module where there is none."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os

import pytest
import torch

from dsr_kernels.bench.problem import float32_as


def _why_not() -> str | None:
    """Why no test of tests/gpu can run here; None where they can."""
    if not torch.cuda.is_available():
        return f"no CUDA device that torch {torch.__version__} can use"
    try:
        kernels = importlib.import_module("dsr_kernels._cuda")
    except ImportError as error:
        if importlib.util.find_spec("triton") is None:
            return f"no GPU kernels: no triton, and dsr_kernels._cuda cannot be imported ({error})"
        return None  # the Triton kernels take over
    if kernels.emulated:
        return "dsr_kernels._cuda is the emulator's build, for the CPU"
    count, reason = kernels.device_count()
    return None if count else reason


DEVICE = torch.device(os.environ.get("DSR_TEST_DEVICE", "cuda"))
ON_CUDA = DEVICE.type == "cuda"
if ON_CUDA:
    _reason = _why_not()
    if _reason is not None:
        pytest.skip(f"tests/gpu: {_reason}", allow_module_level=True)
    DEVICE = torch.device("cuda", torch.cuda.current_device())
    float32_as("ieee")  # torch's own error is what ours is measured by

cuda_only = pytest.mark.skipif(not ON_CUDA, reason="about CUDA itself")


def side_stream() -> contextlib.AbstractContextManager:
    """Work inside goes to another stream, which waits for the present one; none on the CPU."""
    if not ON_CUDA:
        return contextlib.nullcontext()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def synchronize() -> None:
    if ON_CUDA:
        torch.cuda.synchronize()


def needs_memory(needed: int) -> None:
    """Skips the test where the device has fewer free bytes."""
    if ON_CUDA:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < needed:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} free")
