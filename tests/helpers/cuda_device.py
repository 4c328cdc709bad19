"""Where tests of the GPU kernels run: the emulator, or with DSR_TEST_DEVICE=cuda a GPU."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch
from helpers import cuda_emulated

from dsr_kernels.backends import native

DEVICE = torch.device(os.environ.get("DSR_TEST_DEVICE", "cpu"))
EMULATED = DEVICE.type == "cpu"
if not EMULATED and DEVICE.index is None and torch.cuda.is_available():
    DEVICE = torch.device(DEVICE.type, torch.cuda.current_device())

emulated = pytest.mark.skipif(not EMULATED, reason="about the emulated kernels")


def kernels() -> ModuleType:
    return cuda_emulated.load() if EMULATED else native._cuda


def queue() -> tuple[int, int]:
    """(device, stream) of a call; the emulator has one of each."""
    return (0, 0) if EMULATED else (DEVICE.index, torch.cuda.current_stream(DEVICE).cuda_stream)


def configure(**how) -> None:
    """How the emulator orders threads and blocks."""
    if EMULATED:
        kernels().emulator.configure(**how)
