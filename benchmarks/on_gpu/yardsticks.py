"""What the device can do, measured."""

from __future__ import annotations

import shutil
import subprocess

import torch

from dsr_kernels.backends.native import _C
from dsr_kernels.bench.problem import float32_as

from .timing import Clock

COPY_BYTES = 1 << 30
SIDE = 8192  # of the matrices multiplied
SLEEP = 20_000_000  # cycles
FMA_PER_CLOCK = {(8, 0): 64}  # float32 multiply-adds of an SM, by compute capability; else 128
SHARED_BYTES_PER_CLOCK = 128  # that an SM reads from shared memory
QUERIED = {
    "driver": "driver_version",
    "SM clock now MHz": "clocks.sm",
    "SM clock max MHz": "clocks.max.sm",
    "memory clock MHz": "clocks.mem",
    "power limit W": "power.limit",
}


def measure(clock: Clock) -> dict:
    """The machine: names, versions and clocks, GF/s of multiply-adds and GB/s of a copy.

    "shared-memory GF/s" is what float32 multiply-adds reach that each read one operand of four
    bytes from shared memory.
    """
    known = {"gpu": _name(clock.device), "torch": torch.__version__}
    known |= _of_the_gpu(clock) if clock.cuda else _of_the_cpu()
    known["copy GB/s"] = round(_copy(clock), 1)
    return known


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "none: a CPU"


def _of_the_cpu() -> dict:
    peak = round(_C.peak_gflops(torch.get_num_threads()), 1)
    return {"peak GF/s": peak, "shared-memory GF/s": peak, "threads": torch.get_num_threads()}


def _of_the_gpu(clock: Clock) -> dict:
    properties = torch.cuda.get_device_properties(clock.device)
    matmul = {}
    for name, dtype, precision in (
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("bf16", torch.bfloat16, "ieee"),
    ):
        float32_as(precision)
        factor = torch.randn(SIDE, SIDE, device=clock.device, dtype=dtype)
        ms = clock.step(lambda factor=factor: factor @ factor, 5)["min"]
        matmul[f"{name} matmul GF/s"] = round(2 * SIDE**3 / ms / 1e6)
    float32_as("ieee")
    ms = clock.step(lambda: torch.cuda._sleep(SLEEP), 2)["min"]
    ghz = SLEEP / ms / 1e6
    sms, capability = properties.multi_processor_count, (properties.major, properties.minor)
    return {
        **_queried(clock.device),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "capability": "{}.{}".format(*capability),
        "SMs": sms,
        "L2 MiB": properties.L2_cache_size >> 20,
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "SM clock measured MHz": round(1e3 * ghz),
        "peak GF/s": round(2 * FMA_PER_CLOCK.get(capability, 128) * sms * ghz),
        "shared-memory GF/s": round(2 * SHARED_BYTES_PER_CLOCK / 4 * sms * ghz),
        **matmul,
        "empty run ms": clock.operation(lambda: None)["median"],
    }


def _copy(clock: Clock) -> float:
    """GB/s, read and written."""
    size = COPY_BYTES if clock.cuda else COPY_BYTES >> 5
    source = torch.ones(size // 4, device=clock.device)
    target = torch.empty_like(source)
    return 2 * size / clock.step(lambda: target.copy_(source), 10)["min"] / 1e6


def _queried(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={','.join(QUERIED.values())}"]
    query += ["--format=csv,noheader,nounits", f"--id={device.index or 0}"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(QUERIED):
        return {}
    return dict(zip(QUERIED, values, strict=True))
