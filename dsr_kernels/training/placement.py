"""Where a run computes, and in what precision: the device, its random numbers, autocast."""

from __future__ import annotations

from typing import Any

import torch

from dsr_kernels.backends import devices
from dsr_kernels.errors import UsageError

CPU = torch.device("cpu")
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device called `name`, with its number. Raises UsageError where there is none such."""
    kind, colon, number = name.partition(":")
    if name == "cpu":
        return CPU
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise UsageError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    if reason := devices.why_no_cuda():
        raise UsageError(f"--device {name}: {reason}")
    index = int(number) if colon else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: expected a number below {torch.cuda.device_count()}, "
            "the number of CUDA devices"
        )
    return torch.device("cuda", index)


def use(device: torch.device) -> None:
    """Makes `device` the current one, and torch's dense layers on it deterministic."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True


def move(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies the tensors to `device`; a GPU fetches them while the CPU goes on."""
    if device.type == "cpu":
        return list(tensors)
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]


def synchronize(device: torch.device) -> None:
    """Waits until `device` has done all its work. A clock needs that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def runs_ahead(device: torch.device) -> bool:
    """Whether the CPU may go on while `device` is still busy, so that each look at a number waits.

    Only there a step can be replayed from a graph.
    """
    return device.type == "cuda"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that forward and loss run in."""
    return torch.autocast(
        device.type, PRECISIONS.get(precision, torch.bfloat16), enabled=precision in PRECISIONS
    )


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Keeps float16 gradients from becoming 0; does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's generators, for the checkpoint."""
    state: dict[str, Any] = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_random"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(device: torch.device, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["random"])
    if device.type == "cuda" and "cuda_random" in state:
        torch.cuda.set_rng_state(state["cuda_random"], device)
