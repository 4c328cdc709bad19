"""Plots of a kept benchmark JSON, as PNG and SVG.

    python benchmarks/plots.py KEPT.json FOLDER

Cases where sparse is slower are drawn like the others. Each title names the hardware.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from targets import RAW, break_even, speed_up

from dsr_kernels.bench.rivals import fastest
from dsr_kernels.training.report import style
from dsr_kernels.training.report.style import BLUE, GREEN, GREY, ORANGE

LOSING = "#c0392b"
KIND_COLORS = {
    "sparse conv": BLUE,
    "dense conv": ORANGE,
    "batch norm": GREEN,
    "ReLU, add": "#e7b416",
    "rest": GREY,
}
OPERATION_COLORS = {"forward": BLUE, "grad_input": ORANGE, "grad_weight": GREEN}


def draw(kept: dict) -> dict[str, Figure]:
    """The plots that `kept` has data for, by file name."""
    with style.drawing("the pictures of a benchmark"):
        figures = {}
        if kept["layers"]:
            figures = {"speed_up": draw_speed_up(kept), "roofline": draw_roofline(kept)}
        if kept["training"]:
            figures["training_step"] = draw_training_step(kept)
        if kept["inference"]:
            figures["inference"] = draw_inference(kept)
        if kept["training"] or kept["memory"]:
            figures["memory"] = draw_memory(kept)
        return figures


def hardware(kept: dict) -> str:
    machine = kept["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['cpu']}, {threads}, {machine['isa']}"


def _figure(
    title: str, kept: dict, width: float, height: float, columns: int = 1
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.suptitle(f"{title}\n{hardware(kept)}", x=0.01, ha="left", fontsize=12, weight="bold")
    return figure, axes


def draw_speed_up(kept: dict) -> Figure:
    """Geometric mean of the three operations against sparsity, a line per layer."""
    layers = kept["layers"]
    families = list(dict.fromkeys(record["family"] for record in layers))
    title = "Speed-up over the faster dense format: mean of forward, grad-input, grad-weight"
    width = 3.4 * max(len(families), 2)
    figure, panels = _figure(title, kept, width, 4.6, len(families))
    for axes, family in zip(panels, families, strict=True):
        _speed_up_panel(axes, family, [r for r in layers if r["family"] == family])
    panels[0].set_ylabel("times as fast as dense")
    return figure


def _speed_up_panel(axes: Axes, family: str, layers: list[dict]) -> None:
    colors = [BLUE, ORANGE, GREEN, "#e7b416", "#8e5ea2"]
    ratios, marked = [], 0
    for index, layer in enumerate(dict.fromkeys(r["layer"] for r in layers)):
        color = colors[index % len(colors)]
        sparsities = sorted({r["sparsity"] for r in layers if r["layer"] == layer})
        points = [(100 * s, speed_up(layers, s, layer=layer)) for s in sparsities]
        points = [(percent, ratio) for percent, ratio in points if ratio is not None]
        if not points:
            continue
        ratios += [ratio for _, ratio in points]
        axes.plot(*zip(*points, strict=True), "-o", color=color, ms=4, label=layer)
        even = break_even(layers, layer)
        if even is not None and points[0][1] < 1:
            axes.plot([100 * even], [1], "D", color=color, ms=8, mec="white", zorder=5)
            beside = {"xytext": (6, -13 - 10 * marked), "textcoords": "offset points"}
            label = f"{100 * even:.0f} %"
            axes.annotate(label, (100 * even, 1), color=color, fontsize=9, **beside)
            marked += 1
    axes.set_title(family)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    low, high = min([*ratios, 0.75]) * 0.8, max([*ratios, 1.1]) * 1.2
    axes.axhspan(low, 1, color=LOSING, alpha=0.07, lw=0)
    axes.axhline(1, color=LOSING, lw=1)
    axes.set_ylim(low, high)
    axes.set_xlabel("sparsity (%)")
    axes.legend(fontsize=8, loc="upper left")


def roof(record: dict, machine: dict) -> float:
    """GF/s that peak and memory allow, each compulsory byte moved once."""
    return min(machine["peak GF/s"], machine["copy GB/s"] * record["flops"] / record["bytes"])


def draw_roofline(kept: dict, sparsity: float = 0.9) -> Figure:
    """Share of the roofline of each layer and operation at one sparsity."""
    chosen = [r for r in kept["layers"] if r["sparsity"] == sparsity and r["operation"] in RAW]
    names = list(dict.fromkeys((r["layer"], r["batch"]) for r in chosen))
    figure, (axes,) = _figure(
        f"Share of the roofline at {100 * sparsity:g} % sparsity", kept, 9, 1.8 + 0.5 * len(names)
    )
    machine = kept["machine"]
    for offset, operation in enumerate(RAW):
        for record in (r for r in chosen if r["operation"] == operation):
            place = names.index((record["layer"], record["batch"])) + 0.26 * (offset - 1)
            limit = roof(record, machine)
            bound = "peak" if limit == machine["peak GF/s"] else "memory"
            axes.barh(place, 100 * record["GF/s"] / limit, 0.24, color=OPERATION_COLORS[operation])
            end = 100 * record["GF/s"] / limit, place
            label = f" {record['GF/s']:.0f} of {limit:.0f} GF/s ({bound})"
            axes.annotate(label, end, va="center", fontsize=7, color="#4a4f57")
    axes.set_yticks(range(len(names)), [f"{layer}, N={batch}" for layer, batch in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.01)
    shares = [100 * r["GF/s"] / roof(r, machine) for r in chosen]
    axes.set_xlim(0, max([*shares, 100]) + 30)  # room for the words
    limits = f"peak {machine['peak GF/s']:.0f} GF/s, {machine['copy GB/s']:.1f} GB/s"
    axes.set_xlabel(f"% of min({limits} x useful FLOP per compulsory byte)")
    handles = [matplotlib.patches.Patch(color=OPERATION_COLORS[name], label=name) for name in RAW]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(RAW))
    return figure


def draw_training_step(kept: dict) -> Figure:
    """Each step as a bar of kinds: dense, then ours at each sparsity; in bfloat16 too if known.

    The bars are of eager steps. The ratio below ours is over the fastest dense of that precision,
    compiled or not.
    """
    models = list(dict.fromkeys(r["model"] for r in kept["training"]))
    width = 5.2 * max(len(models), 2)
    figure, panels = _figure("Training step by kind of work", kept, width, 4.4, len(models))
    for axes, model in zip(panels, models, strict=True):
        records = [r for r in kept["training"] if r["model"] == model]
        bars = _step_bars(records)
        for place, bar in enumerate(bars.values()):
            below = 0.0
            for kind, milliseconds in bar.items():
                axes.bar(place, milliseconds, 0.62, below, color=KIND_COLORS[kind])
                below += milliseconds
            axes.annotate(f"{below:.0f} ms", (place, below), ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(len(bars)), list(bars), fontsize=9 if len(bars) < 6 else 7)
        axes.set_title(f"{model}, batch {records[0]['batch']}")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(top=1.1 * max(sum(bar.values()) for bar in bars.values()))
    panels[0].set_ylabel("ms, fastest round")
    handles = [matplotlib.patches.Patch(color=c, label=kind) for kind, c in KIND_COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _step_bars(records: list[dict]) -> dict[str, dict[str, float]]:
    """Label -> milliseconds by kind, of one model's records, one per sparsity."""
    bars = {}
    for precision in ("", " bf16"):
        if f"dense{precision}" not in records[0]["ms by kind"]:
            continue
        bars[f"dense{precision}".replace(" ", "\n")] = records[0]["ms by kind"][f"dense{precision}"]
        for record in records:
            by = record.get("speed-up by precision", {"fp32": record["speed-up"]})
            ratio = f"{by[precision.strip() or 'fp32']:.2f}x"
            words = [f"{100 * record['sparsity']:g} %", precision.strip(), ratio]
            bars["\n".join(filter(None, words))] = record["ms by kind"][f"ours{precision}"]
    return bars


def draw_inference(kept: dict) -> Figure:
    """A panel for each model and batch: what dense runs there are, or the fastest, and ours."""
    records = kept["inference"]
    width = 4.5 * max(len(records), 2)
    figure, panels = _figure("Inference", kept, width, 3.6, len(records))
    for axes, record in zip(panels, records, strict=True):
        names = _inference_bars(record["ms"])
        times = [record["ms"][name]["min"] for name in names]
        colors = [BLUE if name.startswith("ours") else GREY for name in names]
        axes.bar_label(axes.bar(range(len(names)), times, 0.6, color=colors), fmt="%.1f ms")
        labels = [name.replace(",", "").replace(" ", "\n") for name in names]
        axes.set_xticks(range(len(names)), labels, fontsize=9)
        axes.set_title(
            f"{record['model']}, batch {record['batch']}, {100 * record['sparsity']:g} % sparse: "
            f"{record['speed-up']:.2f}x",
            fontsize=10,
        )
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)
    panels[0].set_ylabel("ms, fastest round")
    return figure


def _inference_bars(ms: dict) -> list[str]:
    """All names where they are few, else the fastest of each side and precision."""
    if len(ms) <= 4:
        return list(ms)
    pairs = [(side, p) for side in ("dense", "ours") for p in ("fp32", "bf16")]
    return [name for name in (fastest(ms, *pair) for pair in pairs) if name is not None]


def draw_memory(kept: dict) -> Figure:
    """Weights, gradients and optimizer state; peak of training; both as shares of dense."""
    groups = [
        ("weights, gradients, optimizer state", kept["training"], "held bytes"),
        ("peak growth while training", kept["memory"], "peak bytes"),
    ]
    figure, panels = _figure("Memory, ours beside dense", kept, 12, 4.4, 2)
    for axes, (title, records, field) in zip(panels, groups, strict=True):
        labels = [f"{r['model']}\n{100 * r['sparsity']:g} %" for r in records]
        pairs = zip(labels, records, strict=True)
        labels = [f"{label}\n{record.get('allocator', '')}" for label, record in pairs]
        for offset, (name, color) in enumerate((("dense", GREY), ("ours", BLUE))):
            shares = [100 * r[field][name] / r[field]["dense"] for r in records]
            places = [index + 0.38 * (offset - 0.5) for index in range(len(records))]
            bars = axes.bar(places, shares, 0.36, color=color)
            sizes = [f"{r[field][name] / 2**20:,.4g}\nMiB" for r in records]
            axes.bar_label(bars, sizes, fontsize=8)
        axes.set_xticks(range(len(labels)), labels, fontsize=8.5)
        axes.set_title(title)
        axes.set_ylabel("% of dense")
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)
    colors = {"dense": GREY, "ours": BLUE}
    handles = [matplotlib.patches.Patch(color=c, label=name) for name, c in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in draw(json.loads(source.read_text())).items():
        for suffix in ("png", "svg"):
            with style.drawing("the pictures of a benchmark"):
                figure.savefig(folder / f"{name}.{suffix}")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
