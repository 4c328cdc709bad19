"""The targets beside what was measured, as Markdown.

python benchmarks/targets.py KEPT.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean

from dsr_kernels.text_table import markdown

RAW = ("forward", "grad_input", "grad_weight")
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
SPEED_UPS = {  # geometric means over a family's layers and RAW, at each of SPARSITIES
    "WRN 3x3": (3.2, 6.0, 10.0, 16.0),
    "WRN 3x3 stride 2": (2.6, 4.5, 7.0, 10.0),
    "ResNet-50 3x3": (2.7, 5.0, 8.0, 13.0),
    "ResNet-50 1x1": (2.5, 3.5, 4.5, 5.0),
    "linear": (2.5, 5.0, 9.0, 14.0),
}
BREAK_EVEN = 0.45  # at most
MODULE_SHARE = 0.9  # at least this share of the raw operations' speed-up is left in a module
SPARSEPROP, STEP = 7.0, 2.8  # forward + backward, and WRN-28-2's training step, at 90 %
MISSING = "not measured"


def speed_up(
    layers: list[dict], sparsity: float, over: str = "speed-up", **fields: object
) -> float | None:
    """Geometric mean over the raw operations of the records with these fields.

    `over` names the ratio: "speed-up" over dense fp32, "over best dense". None where no record
    has it, as in JSONs that were kept before dense ran in bfloat16.
    """
    chosen = _chosen(layers, sparsity=sparsity, **fields)
    ratios = [r[over] for r in chosen if r["operation"] in RAW and over in r]
    return geometric_mean(ratios) if ratios else None


def _chosen(records: Iterable[dict], **fields: object) -> list[dict]:
    return [r for r in records if all(r.get(name) == value for name, value in fields.items())]


def break_even(layers: list[dict], layer: str) -> float | None:
    """The sparsity from which on `layer` is faster than dense, if times are linear in density.

    It is the lowest one measured if the layer is faster at all of them, None if it never is.
    """
    sparsities = sorted({r["sparsity"] for r in layers if r["layer"] == layer})
    points = [(s, speed_up(layers, s, layer=layer)) for s in sparsities]
    points = [(s, ratio) for s, ratio in points if ratio is not None]
    losing = [index for index, (_, ratio) in enumerate(points) if ratio < 1]
    if not losing:
        return points[0][0] if points else None
    if losing[-1] == len(points) - 1:
        return None
    (low, below), (high, above) = points[losing[-1]], points[losing[-1] + 1]
    return low + (high - low) * (1 / below - 1) / (1 / below - 1 / above)


def module_share(layers: list[dict]) -> float | None:
    """The modules' speed-ups over those of their three operations together, geometric mean."""
    shares = []
    for module in _chosen(layers, operation="module"):
        same = {name: module[name] for name in ("family", "layer", "sparsity")}
        raw = [r for r in _chosen(layers, **same) if r["operation"] in RAW]
        if len(raw) == len(RAW):
            ours = sum(r["ms"]["ours"]["min"] for r in raw)
            dense = sum(r["ms"]["ours"]["min"] * r["speed-up"] for r in raw)
            shares.append(module["speed-up"] * ours / dense)
    return geometric_mean(shares) if shares else None


def over_sparseprop(layers: list[dict], sparsity: float = 0.9) -> float | None:
    """sparseprop's time of forward and backward over ours, geometric mean."""
    both = [r["ms"] for r in _chosen(layers, operation="module", sparsity=sparsity)]
    ratios = [ms["sparseprop"]["min"] / ms["ours"]["min"] for ms in both if "sparseprop" in ms]
    return geometric_mean(ratios) if ratios else None


def target_table(kept: dict) -> str:
    """Markdown: target, measured, and whether it is met."""
    layers = kept["layers"]
    rows = []
    for family, targets in SPEED_UPS.items():
        for sparsity, target in zip(SPARSITIES, targets, strict=True):
            measured = speed_up(layers, sparsity, family=family)
            rows.append(_row(family, f"{100 * sparsity:g} %", target, measured, "x"))
    for layer in dict.fromkeys(r["layer"] for r in layers if r["sparsity"] < min(SPARSITIES)):
        point = break_even(layers, layer)
        name = f"{layer}: faster than dense from a sparsity of"
        if point is None:
            rows.append([name, "", f"<= {BREAK_EVEN:.0%}", "never", "no"])
        else:
            met = "yes" if point <= BREAK_EVEN else "no"
            rows.append([name, "", f"<= {BREAK_EVEN:.0%}", f"{point:.0%}", met])
    share, step = module_share(layers), _chosen(kept["training"], model="WRN-28-2", sparsity=0.9)
    peer = over_sparseprop(layers)
    rows += [
        _row("module over its operations", "all", MODULE_SHARE, share, ""),
        _row("forward + backward over sparseprop", "90 %", SPARSEPROP, peer, "x"),
        _row("WRN-28-2 training step", "90 %", STEP, step[0]["speed-up"] if step else None, "x"),
    ]
    return markdown(["", "sparsity", "target", "measured", "met"], rows)


def _row(name: str, sparsity: str, target: float, measured: float | None, unit: str) -> list[str]:
    if measured is None:
        return [name, sparsity, f"{target:g}{unit}", MISSING, ""]
    met = "yes" if measured >= target else "no"
    return [name, sparsity, f"{target:g}{unit}", f"{measured:.2f}{unit}", met]


if __name__ == "__main__":
    print(target_table(json.loads(Path(sys.argv[1]).read_text())))
