"""The CUDA devices torch can use, or why it can use none."""

from __future__ import annotations

import torch


def why_no_cuda() -> str | None:
    """None where torch can use a CUDA device, else one sentence: "no CUDA device: ..."."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"no CUDA device: this torch ({torch.__version__}) is built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:  # torch raises RuntimeError and AssertionError, by the reason
        return f"no CUDA device: {str(error).split('. ')[0].rstrip('.')}"
    return "no CUDA device: torch sees none"


def stream_of(index: int) -> int:
    """The handle of torch's current stream on a GPU: without the object that torch makes of it."""
    return torch._C._cuda_getCurrentRawStream(index)


def cuda_names() -> list[str]:
    """Name, compute capability and memory of every CUDA device."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        f"{device.name} (compute capability {device.major}.{device.minor}, "
        f"{device.total_memory / 2**30:.0f} GiB)"
        for device in found
    ]
