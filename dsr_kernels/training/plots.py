"""The plots of a run, in one style. Each function takes the run's records and returns a matplotlib
figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsr_kernels.training.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dsr_kernels.training.report import Story

BLUE, ORANGE, GREEN, GREY, INK = "#2f6db3", "#d9742b", "#3b8f5a", "#8a8f98", "#22262b"
PARTS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#b9bec6",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e8ec",
    "text.color": INK,
    "xtick.color": "#4a4f57",
    "ytick.color": "#4a4f57",
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "legend.frameon": False,
}
FEW = 6  # up to this many layers each gets a label of its own


def draw(story: Story) -> dict[str, Figure]:
    """All plots that this run has data for, by file name."""
    matplotlib = require("matplotlib", "the plots of a report")
    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        figures = {"accuracy": accuracy(story), "loss": loss(story)}
        if any(row["pruned"] is not None for row in story.rewires):
            if story.recipe.method == "dsr":
                figures["threshold"] = threshold(story)
            figures["pruned"] = pruned(story)
            figures["nonzeros"] = nonzeros(story)
            figures["density"] = density(story)
        if story.layers and story.rewires:
            figures["sparsity"] = sparsity(story)
        return figures


def new_axes(title: str, x: str, y: str, height: float = 3.8):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _curves(axes, story: Story, kind: str, scale: float) -> None:
    for part, color in PARTS.items():
        points = [(r["epoch"], r[f"{part}_{kind}"] * scale) for r in story.metrics
                  if r.get(f"{part}_{kind}") is not None]  # fmt: skip
        if points:
            marker = "o" if len(points) <= 30 else None
            axes.plot(*zip(*points, strict=True), color=color, label=part, marker=marker, ms=4)
    _lr_steps(axes, story)
    whole_epochs(axes)


def legend(axes, place: str) -> None:
    if axes.get_legend_handles_labels()[0]:  # none before the first epoch
        axes.legend(loc=place)


def _lr_steps(axes, story: Story) -> None:
    """A faint line where the learning rate falls."""
    for index, (epoch, _) in enumerate(story.recipe.optimizer.lr[1:]):
        if epoch < story.recipe.training.epochs:
            label = "learning rate step" if index == 0 else None
            axes.axvline(epoch, color=GREY, lw=1, ls=(0, (2, 3)), zorder=0, label=label)


def whole_epochs(axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def accuracy(story: Story) -> Figure:
    figure, axes = new_axes("Accuracy", "epoch", "accuracy (%)")
    _curves(axes, story, "accuracy", 100.0)
    if story.results:
        final = 100 * story.results["test_accuracy"]
        if not any(row.get("test_accuracy") is not None for row in story.metrics):
            last = story.metrics[-1]["epoch"] if story.metrics else 0
            axes.plot([last], [final], "D", color=GREEN, ms=7, label=f"test, once: {final:.2f} %")
    legend(axes, "lower right")
    return figure


def loss(story: Story) -> Figure:
    figure, axes = new_axes("Loss", "epoch", "cross-entropy")
    _curves(axes, story, "loss", 1.0)
    values = [v for row in story.metrics for part in PARTS
              if (v := row.get(f"{part}_loss")) is not None and v > 0]  # fmt: skip
    if values and max(values) > 5 * min(values):
        log_axis(axes.yaxis, axes.set_yscale)
    legend(axes, "upper right")
    return figure


def log_axis(axis, set_scale) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    low, high = axis.get_view_interval()
    if high / low < 300:  # so narrow that powers of ten alone would leave it bare
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def nonzeros(story: Story) -> Figure:
    """One line a layer: labelled where they are few, coloured by depth where they are many."""
    figure, axes = new_axes("Non-zeros of each sparse layer", "epoch", "non-zeros", 4.4)
    epochs = [row["epoch"] for row in story.rewires]
    epochs.append(max(story.last_epoch, epochs[-1]))
    names = [layer["name"] for layer in story.layers]
    colors = by_depth(len(names))
    for name, color in zip(names, colors, strict=True):
        counts = [row[f"nonzeros:{name}"] for row in story.rewires]
        counts.append(counts[-1])
        axes.step(epochs, counts, where="post", color=color, lw=1.6)
        if len(names) <= FEW:
            axes.annotate(f" {name}", (epochs[-1], counts[-1]), color=color, va="center",
                          annotation_clip=False)  # fmt: skip
    log_axis(axes.yaxis, axes.set_yscale)
    whole_epochs(axes)
    axes.margins(x=0.01)
    if len(names) > FEW:
        depth_bar(figure, axes, names)
    return figure


def by_depth(count: int) -> list:
    from matplotlib import colormaps

    span = max(count - 1, 1)
    return [colormaps["viridis"](0.85 * i / span) for i in range(count)]


def depth_bar(figure, axes, names: list[str]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colors = ListedColormap(by_depth(len(names)))
    mappable = ScalarMappable(Normalize(0.5, len(names) + 0.5), colors)
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    ticks = sorted({1, (len(names) + 1) // 2, len(names)})
    bar.set_ticks(ticks, labels=[f"{tick}: {names[tick - 1]}" for tick in ticks], fontsize=9)
    bar.set_label("layer, input to output")


def density(story: Story) -> Figure:
    """Density of every layer over time as a map: rows are layers in the order of the model."""
    names = [layer["name"] for layer in story.layers]
    figure, axes = new_axes("Density of each sparse layer over time", "epoch", "",
                         1.6 + 0.21 * max(len(names), 6))  # fmt: skip
    table = [
        [100 * row[f"nonzeros:{layer['name']}"] / layer["positions"] for row in story.rewires]
        for layer in story.layers
    ]
    epochs = [row["epoch"] for row in story.rewires]
    edges = [*epochs, max(story.last_epoch, epochs[-1] + 1e-6)]
    rows = [index - 0.5 for index in range(len(names) + 1)]
    overall = 100 * story.rewires[0]["nonzeros"] / sum(layer["positions"] for layer in story.layers)
    norm = _around(overall, table)
    mesh = axes.pcolormesh(edges, rows, table, cmap="RdBu", norm=norm, shading="flat")
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(False)
    whole_epochs(axes)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    _plain_log_ticks(bar, norm)
    bar.set_label("density (%)")
    return figure


def _plain_log_ticks(bar, norm) -> None:
    steps = [norm.vmin * (norm.vmax / norm.vmin) ** (i / 4) for i in range(5)]
    bar.set_ticks(steps, labels=[f"{step:.2g}" for step in steps])
    bar.minorticks_off()


def _around(center: float, table: list[list[float]]):
    """Equal colour for equal ratio to `center`: half of it is as red as twice of it is blue."""
    from matplotlib.colors import LogNorm

    values = [max(value, 1e-3) for row in table for value in row]
    ratio = max(max(values) / center, center / min(values), 1.05)
    return LogNorm(center / ratio, center * ratio, clip=True)


def threshold(story: Story) -> Figure:
    figure, axes = new_axes("Pruning threshold H", "epoch", "H (magnitude)")
    rows = [row for row in story.rewires if row.get("threshold") is not None]
    epochs = [row["epoch"] for row in rows]
    axes.step(epochs, [row["threshold"] for row in rows], where="post", color=BLUE)
    axes.plot(epochs, [row["threshold"] for row in rows], ".", color=BLUE, ms=5)
    if rows:
        log_axis(axes.yaxis, axes.set_yscale)
    taken = sorted({row["threshold"] for row in rows})
    if len(taken) <= 8:  # it doubles and halves, so few values name them all
        axes.set_yticks(taken, labels=[f"{value:.3g}" for value in taken])
        axes.minorticks_off()
    whole_epochs(axes)
    return figure


def pruned(story: Story) -> Figure:
    figure, axes = new_axes("Weights moved at each rewire", "epoch", "weights")
    rows = [row for row in story.rewires if row.get("pruned") is not None]
    label = "pruned" if story.recipe.method == "gmp" else "pruned and regrown"
    axes.plot([row["epoch"] for row in rows], [row["pruned"] for row in rows], "-o", color=BLUE,
              ms=3.5, lw=1.2, label=label)  # fmt: skip
    settings = story.recipe.rewiring
    if settings.prune_count and story.recipe.method == "dsr":
        goal = settings.prune_count
        axes.axhline(goal, color=ORANGE, lw=1.3, label=f"target {goal:,}")
        if settings.threshold == "adaptive":
            low, high = (1 - settings.tolerance) * goal, (1 + settings.tolerance) * goal
            axes.axhspan(low, high, color=ORANGE, alpha=0.12, lw=0, label="within it H stays")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    whole_epochs(axes)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def sparsity(story: Story) -> Figure:
    """Final sparsity of each layer beside the one it started with."""
    names = [layer["name"] for layer in story.layers]
    figure, axes = new_axes("Final sparsity of each layer", "sparsity (%)", "",
                         1.4 + 0.24 * max(len(names), 5))  # fmt: skip
    final = story.final_nonzeros()
    values = [100 * (1 - final[layer["name"]] / layer["positions"]) for layer in story.layers]
    total = sum(layer["positions"] for layer in story.layers)
    overall = 100 * (1 - sum(final.values()) / total)
    axes.hlines(range(len(names)), overall, values, color="#c5d6ea", lw=5)
    axes.plot(values, range(len(names)), "o", color=BLUE, ms=6, label="layer")
    axes.axvline(overall, color=ORANGE, lw=1.4, label=f"all sparse layers: {overall:.2f} %")
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    low = min([*values, overall])
    axes.set_xlim(max(low - 0.18 * (100 - low), 0.0), 100.0)
    for index, layer in enumerate(story.layers):
        axes.annotate(f"{final[layer['name']]:,} of {layer['positions']:,}", (1.01, index),
                      xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#4a4f57",
                      annotation_clip=False)  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2)
    return figure
