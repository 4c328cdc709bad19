"""What the processor can, for words and records: its name, its vectors, and its bfloat16.

Nothing is decided here: the kernels ask the processor themselves (csrc/cpu/dispatch.cpp).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {  # our words, and Linux's flags
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX512-BF16": "avx512_bf16",
    "AVX512-FP16": "avx512_fp16",
    "AMX tiles": "amx_tile",
    "AMX bf16": "amx_bf16",
    "AMX int8": "amx_int8",
    "AMX fp16": "amx_fp16",
}
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables of oneDNN
UNLIMITED = ("", "ALL", "DEFAULT")


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> dict[str, bool]:
    """Whether the processor has each of INSTRUCTIONS, and the system lets programs use it."""
    flags = _cpuinfo("flags")
    if flags is not None:
        present = set(flags.split())
        return {words: flag in present for words, flag in INSTRUCTIONS.items()}
    # Elsewhere than on Linux a newer torch knows. Its names are Linux's, but for avx512f.
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = INSTRUCTIONS | {"AVX-512": "avx512_f"}
    return {words: bool(found.get(name)) for words, name in names.items()}


def has_amx() -> bool:
    """Whether there are matrix units for bfloat16."""
    found = instructions()
    return found["AMX tiles"] and found["AMX bf16"]


def dense_bf16_by() -> str | None:
    """By what torch's dense convolutions multiply bfloat16, or None where oneDNN does not.

    "AMX", "AVX512-BF16", or "fp32" where oneDNN widens. Without oneDNN torch's own loops do it,
    so slowly that nobody would.
    """
    if not _onednn_takes_bf16():
        return None
    found, limit = instructions(), _isa_limit()
    if has_amx() and (limit in UNLIMITED or "AMX" in limit):
        return "AMX"
    newer = any(name in limit for name in ("BF16", "FP16", "AMX", "AVX10"))
    return "AVX512-BF16" if found["AVX512-BF16"] and (limit in UNLIMITED or newer) else "fp32"


def _onednn_takes_bf16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # torch has no public name for this. Where a torch lacks the operation, the rule it follows is
    # the answer: AVX-512.
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(asked()) if asked is not None else instructions()["AVX-512"]


def _isa_limit() -> str:
    """The newest instruction set that oneDNN may use, in its words; "" where nothing was set."""
    values = (os.environ.get(name, "") for name in ISA_LIMITS)
    return next(filter(None, values), "").upper()


def processor_words() -> str:
    """The processor in one line: "Xeon: AVX2, AVX-512; no AMX"."""
    found = instructions()
    there = ", ".join(words for words, present in found.items() if present) or "none we look for"
    missing = [words for words, present in found.items() if not present]
    return f"{cpu_name()}: {there}" + (f"; no {', '.join(missing)}" if missing else "")


def dense_bf16_words() -> str:
    """One sentence: by what a dense model under bfloat16 autocast multiplies here."""
    by = dense_bf16_by()
    if by is None:
        return "oneDNN does not take it here: a dense model is faster in float32"
    limit = f" (limited to {_isa_limit()})" if _isa_limit() not in UNLIMITED else ""
    if by == "fp32":
        return f"oneDNN widens it to float32{limit}"
    without = " (no AMX)" if by != "AMX" and not has_amx() else ""
    return f"oneDNN multiplies it by {by}{limit or without}"


def processor_facts() -> dict[str, Any]:
    """For records of benchmarks: name, instructions, and by what dense bfloat16 runs."""
    present = [words for words, there in instructions().items() if there]
    return {"cpu": cpu_name(), "instructions": present, "dense bf16 by": dense_bf16_by()}


def _cpuinfo(field: str) -> str | None:
    """The first processor's field in /proc/cpuinfo; None where there is none."""
    try:
        with CPUINFO.open(encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == field:
                    return value.strip()
    except OSError:
        pass
    return None
