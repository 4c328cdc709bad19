"""Which of the timed runs is the best dense one, and what ours is worth against it.

Runs have names of words: "dense" or "ours", then "bf16" where activations are bfloat16 and float32
is meant otherwise, the memory format, and after commas what else was done to the model:

    dense NCHW, dense bf16 channels_last, dense channels_last, folded, compiled, ours bf16, fused

Other names are no rivals: a mask, another sparse library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dsr_kernels.backends.processor import dense_bf16_by, has_amx

Milliseconds = Mapping[str, Mapping[str, float]]  # {name: {"min": ms, "median": ms}}

PRECISIONS = ("fp32", "bf16")
NAME = re.compile(
    r"(dense|ours)( bf16)?(?: NCHW| channels_last)?(?:, (?:compiled|folded|fused))*", re.ASCII
)


def side_of(name: str) -> str | None:
    """ "dense", "ours", or None for what is neither."""
    found = NAME.fullmatch(name)
    return found[1] if found else None


def precision_of(name: str) -> str:
    """ "fp32" or "bf16": the activations'. Sparse values and dense models' own weights are fp32."""
    found = NAME.fullmatch(name)
    return "bf16" if found and found[2] else "fp32"


def fastest(milliseconds: Milliseconds, side: str, precision: str | None = None) -> str | None:
    """The name of the run whose fastest round is the fastest of its side, and of a precision."""
    names = [
        name
        for name in milliseconds
        if side_of(name) == side and precision in (None, precision_of(name))
    ]
    return min(names, key=lambda name: milliseconds[name]["min"], default=None)


def ratio(milliseconds: Milliseconds, dense: str | None, ours: str | None) -> float | None:
    """How many times as fast as `dense` `ours` is, by the fastest rounds."""
    if dense is None or ours is None:
        return None
    return short(milliseconds[dense]["min"] / milliseconds[ours]["min"])


def verdict(milliseconds: Milliseconds) -> dict[str, Any]:
    """What a record says of its times, as plain JSON.

    "speed-up" is in float32 on both sides, "speed-up by precision" that and bfloat16 on both sides.
    "over best dense" sets our fastest run against dense's, whatever the precision of either.
    """
    by = {
        precision: ratio(
            milliseconds, *(fastest(milliseconds, side, precision) for side in ("dense", "ours"))
        )
        for precision in PRECISIONS
    }
    dense, ours = fastest(milliseconds, "dense"), fastest(milliseconds, "ours")
    return {
        "speed-up": by["fp32"],
        "speed-up by precision": {name: value for name, value in by.items() if value is not None},
        "best dense": dense,
        "best ours": ours,
        "over best dense": ratio(milliseconds, dense, ours),
    }


def words(name: str) -> str:
    """A rival in words for a table, without its side: "bf16 channels_last, compiled"."""
    side = side_of(name) or ""
    rest = name.removeprefix(side).strip(" ,")
    return rest if precision_of(name) == "bf16" else f"fp32{' ' + rest if rest else ''}"


def bf16_here() -> bool:
    """Whether dense bfloat16 is worth a measurement: oneDNN takes it."""
    return dense_bf16_by() is not None


def rival_sentence() -> str:
    """What a reader must know of the dense side of this machine."""
    by = dense_bf16_by()
    if by is None:
        return "dense bf16 was not measured: oneDNN does not take it on this processor"
    if by == "AMX":
        return "dense bf16 runs on this processor's matrix units (AMX)"
    why = "AMX is there, and oneDNN may not use it" if has_amx() else "this processor has no AMX"
    how = "by AVX512-BF16" if by == "AVX512-BF16" else "widened to fp32"
    return f"dense bf16 runs {how}: {why}"


def short(number: float) -> float:
    """The number with four digits, as records keep numbers."""
    return float(f"{number:.4g}")
