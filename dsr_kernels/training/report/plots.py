"""The plots of a run. Each function takes the run's records and returns a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsr_kernels.training.recipe.rewirer import for_method, method_of
from dsr_kernels.training.report import style
from dsr_kernels.training.run.story import Story

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

PARTS = {"train": style.BLUE, "validation": style.ORANGE, "test": style.GREEN}


def draw(story: Story) -> dict[str, Figure]:
    """The plots that this run has data for, by file name. Raises UsageError without matplotlib."""
    with style.drawing("the plots of a report"):
        figures = {"accuracy": accuracy(story), "loss": loss(story)}
        if any(row["pruned"] is not None for row in story.rewires):
            if method_of(story.recipe).GLOBAL_THRESHOLD:
                figures["threshold"] = threshold(story)
            figures["pruned"] = pruned(story)
            figures["nonzeros"] = nonzeros(story)
            if moves(story):
                figures["density"] = density(story)
        if story.layers and story.rewires:
            figures["sparsity"] = sparsity(story)
        return figures


def moves(story: Story) -> bool:
    """Whether any layer gains or loses non-zeros. SET moves them within each layer alone."""
    names = [f"nonzeros:{layer['name']}" for layer in story.layers]
    return any(row[name] != story.rewires[0][name] for row in story.rewires for name in names)


def _curves(axes: Axes, story: Story, kind: str, scale: float) -> None:
    """A curve for each part of the data that has this kind of measure."""
    for part, color in PARTS.items():
        column = f"{part}_{kind}"
        rows = [row for row in story.metrics if row.get(column) is not None]
        if rows:
            points = [row["epoch"] for row in rows], [row[column] * scale for row in rows]
            axes.plot(*points, color=color, label=part, marker=style.marker(rows), ms=4)
    _lr_steps(axes, story)
    style.whole_epochs(axes)


def _lr_steps(axes: Axes, story: Story) -> None:
    """A faint line where the learning rate falls."""
    for index, (epoch, _) in enumerate(story.recipe.optimizer.lr[1:]):
        if epoch < story.recipe.training.epochs:
            label = "learning rate step" if index == 0 else None
            axes.axvline(epoch, color=style.GREY, lw=1, ls=(0, (2, 3)), zorder=0, label=label)


def accuracy(story: Story) -> Figure:
    figure, axes = style.new_axes("Accuracy", "epoch", "accuracy (%)")
    _curves(axes, story, "accuracy", 100.0)
    if story.results:
        final = 100 * story.results["test_accuracy"]
        if not any(row.get("test_accuracy") is not None for row in story.metrics):
            label = f"test, once: {final:.2f} %"
            axes.plot([story.last_epoch], [final], "D", color=style.GREEN, ms=7, label=label)
    style.legend(axes, "lower right")
    return figure


def loss(story: Story) -> Figure:
    figure, axes = style.new_axes("Loss", "epoch", "cross-entropy")
    _curves(axes, story, "loss", 1.0)
    losses = [row.get(f"{part}_loss") for row in story.metrics for part in PARTS]
    values = [loss for loss in losses if loss is not None and loss > 0]
    if values and max(values) > 5 * min(values):
        style.log_axis(axes.yaxis, axes.set_yscale)
    style.legend(axes, "upper right")
    return figure


def nonzeros(story: Story) -> Figure:
    """A line for each layer. Few are labelled, many are coloured by depth."""
    figure, axes = style.new_axes("Non-zeros of each sparse layer", "epoch", "non-zeros", 4.4)
    epochs = [row["epoch"] for row in story.rewires]
    epochs.append(max(story.last_epoch, epochs[-1]))
    names = [layer["name"] for layer in story.layers]
    colors = style.by_depth(len(names))
    for name, color in zip(names, colors, strict=True):
        counts = [row[f"nonzeros:{name}"] for row in story.rewires]
        counts.append(counts[-1])
        axes.step(epochs, counts, where="post", color=color, lw=1.6)
        if len(names) <= style.FEW:
            end = epochs[-1], counts[-1]
            axes.annotate(f" {name}", end, color=color, va="center", annotation_clip=False)
    style.log_axis(axes.yaxis, axes.set_yscale)
    style.whole_epochs(axes)
    axes.margins(x=0.01)
    if len(names) > style.FEW:
        style.depth_bar(figure, axes, names)
    return figure


def density(story: Story) -> Figure:
    """The density of each layer over time, as a map with a row for each layer."""
    names = [layer["name"] for layer in story.layers]
    height = 1.6 + 0.21 * max(len(names), 6)
    figure, axes = style.new_axes("Density of each sparse layer over time", "epoch", "", height)
    table = [
        [100 * row[f"nonzeros:{layer['name']}"] / layer["positions"] for row in story.rewires]
        for layer in story.layers
    ]
    epochs = [row["epoch"] for row in story.rewires]
    # What holds from the last rewire on has a width, too, where that is the end of training.
    shortest = (epochs[-1] - epochs[0]) / 50 or 1e-6
    edges = [*epochs, max(story.last_epoch, epochs[-1] + shortest)]
    rows = [index - 0.5 for index in range(len(names) + 1)]
    positions = sum(layer["positions"] for layer in story.layers)
    norm = _around(100 * story.rewires[-1]["nonzeros"] / positions, table)
    mesh = axes.pcolormesh(edges, rows, table, cmap="RdBu", norm=norm, shading="flat")
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(False)
    style.whole_epochs(axes)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    # The colours go as far on both sides, even beyond 100 %; the bar ends where densities do.
    values = [min(max(value, norm.vmin), norm.vmax) for row in table for value in row]
    bar.ax.set_ylim(min(values), max(values))
    style.log_axis(bar.ax.yaxis, bar.ax.set_yscale)
    bar.set_label("density (%)")
    return figure


def _around(center: float, table: list[list[float]]) -> LogNorm:
    """Equal colours for equal ratios to `center`: half of it is as red as twice of it is blue."""
    from matplotlib.colors import LogNorm

    values = [max(value, 1e-3) for row in table for value in row]
    ratio = max(max(values) / center, center / min(values), 1.05)
    return LogNorm(center / ratio, center * ratio, clip=True)


def threshold(story: Story) -> Figure:
    figure, axes = style.new_axes("Pruning threshold H", "epoch", "H (magnitude)")
    rows = [row for row in story.rewires if row.get("threshold") is not None]
    epochs = [row["epoch"] for row in rows]
    axes.step(epochs, [row["threshold"] for row in rows], where="post", color=style.BLUE)
    axes.plot(epochs, [row["threshold"] for row in rows], ".", color=style.BLUE, ms=5)
    if rows:
        style.log_axis(axes.yaxis, axes.set_yscale)
    taken = sorted({row["threshold"] for row in rows})
    if len(taken) <= 8:  # H doubles and halves, so it often has few values
        axes.set_yticks(taken, labels=[f"{value:.3g}" for value in taken])
        axes.minorticks_off()
    style.whole_epochs(axes)
    return figure


def pruned(story: Story) -> Figure:
    title, label = "Weights moved at each rewire", "pruned and regrown"
    method = method_of(story.recipe)
    if method.SHRINKS:
        title, label = "Weights pruned at each step", "pruned"
    elif (every := method.REPORT_EVERY) > 1:
        title, label = f"Weights moved in every {every} iterations", f"{label}, sum of {every}"
    figure, axes = style.new_axes(title, "epoch", "weights")
    rows = [row for row in story.rewires if row.get("pruned") is not None]
    axes.plot(
        [row["epoch"] for row in rows],
        [row["pruned"] for row in rows],
        "-o",
        color=style.BLUE,
        ms=3.5,
        lw=1.2,
        label=label,
    )
    if target := method.prune_target(for_method(story.recipe)):
        goal, tolerance = target.count, target.tolerance
        axes.axhline(goal, color=style.ORANGE, lw=1.3, label=f"target {goal:,}")
        if tolerance is not None:
            low, high = (1 - tolerance) * goal, (1 + tolerance) * goal
            axes.axhspan(
                low, high, color=style.ORANGE, alpha=0.12, lw=0, label="H stays within this"
            )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    style.whole_epochs(axes)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def sparsity(story: Story) -> Figure:
    """The final sparsity of each layer beside that of all of them."""
    names = [layer["name"] for layer in story.layers]
    height = 1.4 + 0.24 * max(len(names), 5)
    figure, axes = style.new_axes("Final sparsity of each layer", "sparsity (%)", "", height)
    final = story.final_nonzeros()
    values = [100 * (1 - final[layer["name"]] / layer["positions"]) for layer in story.layers]
    total = sum(layer["positions"] for layer in story.layers)
    overall = 100 * (1 - sum(final.values()) / total)
    axes.hlines(range(len(names)), overall, values, color="#c5d6ea", lw=5)
    axes.plot(values, range(len(names)), "o", color=style.BLUE, ms=6, label="layer")
    axes.axvline(overall, color=style.ORANGE, lw=1.4, label=f"all sparse layers: {overall:.2f} %")
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    low = min([*values, overall])
    axes.set_xlim(max(low - 0.18 * (100 - low), 0.0), 100.0)
    for index, layer in enumerate(story.layers):
        axes.annotate(
            f"{final[layer['name']]:,} of {layer['positions']:,}",
            (1.01, index),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color="#4a4f57",
            annotation_clip=False,
        )
    figure.legend(loc="outside lower center", ncols=2)
    return figure
