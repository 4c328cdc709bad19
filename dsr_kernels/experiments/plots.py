"""The plots of an experiment, in the style of a run's report."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from dsr_kernels.errors import UsageError
from dsr_kernels.experiments.folder import DONE
from dsr_kernels.experiments.grid import Cell
from dsr_kernels.experiments.results import (
    ACCURACY,
    SIZE,
    SPEED,
    Results,
    Row,
    Summary,
    summarize,
)
from dsr_kernels.training.report import style
from dsr_kernels.training.report.plots import moves
from dsr_kernels.training.run import out_folder
from dsr_kernels.training.run.files import write_atomically
from dsr_kernels.training.run.story import Story

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (
    *("#2f6db3", "#d9742b", "#3b8f5a", "#b8403f", "#7b5aa6"),
    *("#8c6d4a", "#c65f9e", "#5b6670", "#a3a12f", "#2fa3b3"),
)
LINES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # the next one once the colours are used up
COLUMNS = 3  # of panels
LEVEL_LABELS = 6  # if there are more names than these below an axis, they are turned
BYTES = 4  # of a weight
PARTS = ("validation", "test", "train")  # the first that all runs have is plotted over epochs
Stories = dict[str, Story]  # finished runs by the name of their cell


def write(results: Results, rows: list[Row]) -> None:
    """Writes OUT/plots/*.png from the finished cells. Raises UsageError without matplotlib, and
    where OUT/plots is a link.
    """
    with style.drawing("the plots of an experiment"):
        out_folder.refuse_links(results.folder.path, ["plots"])
        folder = results.folder.path / "plots"
        folder.mkdir(exist_ok=True)
        for name, figure in _draw(results, rows, _stories(results)).items():
            write_atomically(folder / f"{name}.png", style.png(figure))


def _draw(results: Results, rows: list[Row], stories: Stories) -> dict[str, Figure]:
    figures = {}
    if any(row["status"] == DONE for row in rows):
        figures["accuracy"] = accuracy(results, rows)
        figures["cost"] = cost(results, rows)
    for sparsity in results.grid.sparsities:
        here = _by_method(results, stories, sparsity)
        rewired = {name: runs[0] for name, runs in here.items() if moves(runs[0])}
        explored = {name: runs for name, runs in here.items() if _explores(runs[0])}
        if here:
            figures[f"epochs-{sparsity:g}"] = epochs(results, here, sparsity)
        if rewired:
            figures[f"nonzeros-{sparsity:g}"] = nonzeros(rewired, sparsity)
        if explored:
            figures[f"exploration-{sparsity:g}"] = exploration(results, explored, sparsity)
    return figures


def _explores(story: Story) -> bool:
    """Whether the run recorded its exploration."""
    return story.rewires[0].get("exploration") is not None


def _stories(results: Results) -> Stories:
    stories = {}
    for cell in results.cells:
        if results.folder.done(cell):
            with contextlib.suppress(UsageError):  # a damaged file, which the table names
                stories[cell.name] = results.story(cell)
    return stories


def _by_method(results: Results, stories: Stories, sparsity: float) -> dict[str, list[Story]]:
    """The finished runs at one sparsity, in the order of the seeds."""
    found: dict[str, list[Story]] = defaultdict(list)
    for method in results.grid.methods:
        for cell in results.cells:
            if _belongs(cell, method, sparsity) and cell.name in stories:
                found[method].append(stories[cell.name])
    return dict(found)


def _belongs(cell: Cell, method: str, sparsity: float) -> bool:
    return cell.method == method and cell.sparsity in (None, sparsity)


def _look(results: Results, method: str) -> dict:
    """The colour and the dashes of a method, the same in every plot."""
    index = list(results.grid.methods).index(method)
    return {"color": COLORS[index % len(COLORS)], "ls": LINES[index // len(COLORS) % len(LINES)]}


def accuracy(results: Results, rows: list[Row]) -> Figure:
    """Test accuracy against sparsity: mean and sample standard deviation over the seeds.

    Where there is only one sparsity, the methods stand beside each other.
    """
    rows = [row for row in rows if row["status"] == DONE]
    if len(results.grid.sparsities) == 1:
        return _beside(results, rows, results.grid.sparsities[0])
    figure, axes = style.new_axes("Test accuracy", "sparsity (%)", "test accuracy (%)", 4.6)
    levels = sorted(results.grid.sparsities)
    for method in results.grid.methods:
        look = _look(results, method)
        of_method = [row for row in rows if row["method"] == method]
        if of_method and of_method[0]["sparsity"] is None:
            found = Summary.of([row["test_accuracy"] for row in of_method])
            mean, spread = _percent(found)
            axes.axhline(mean, label=method, **look)
            axes.axhspan(mean - spread, mean + spread, color=look["color"], alpha=0.12, lw=0)
            continue
        summaries = [(level, summarize(rows, method, level, ACCURACY)) for level in levels]
        points = [(1 - level, *_percent(found)) for level, found in summaries if found]
        if points:
            marks = {"marker": "o", "ms": 4, "capsize": 3, "elinewidth": 1.2}
            axes.errorbar(*zip(*points, strict=True), label=method, **marks, **look)
    _sparsity_axis(axes, levels)
    figure.legend(loc="outside right upper")
    return figure


def _beside(results: Results, rows: list[Row], sparsity: float) -> Figure:
    """The methods that have an accuracy at `sparsity`, as dots along the x axis."""
    title = f"Test accuracy at {100 * sparsity:g} % sparsity"
    figure, axes = style.new_axes(title, "", "test accuracy (%)", 4.6)
    methods = results.grid.methods
    summaries = {method: summarize(rows, method, sparsity, ACCURACY) for method in methods}
    found = {method: summary for method, summary in summaries.items() if summary}
    for place, (method, summary) in enumerate(found.items()):
        mean, spread = _percent(summary)
        marks = {"marker": "o", "ms": 6, "capsize": 4, "elinewidth": 1.2}
        color = _look(results, method)["color"]
        axes.errorbar([place], [mean], [spread], color=color, **marks)
    turned = {"rotation": 30, "ha": "right"} if len(found) > LEVEL_LABELS else {}
    axes.set_xticks(range(len(found)), list(found), **turned)
    axes.set_xlim(-0.6, len(found) - 0.4)
    axes.grid(axis="x", visible=False)
    return figure


def cost(results: Results, rows: list[Row]) -> Figure:
    """Test accuracy against what it cost: a dot for each method and sparsity, means over the seeds.

    Left the time of training, as the runs had it; right the bytes of float32 weights.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for method in results.grid.methods:
        found = [
            [summarize(rows, method, sparsity, quantity) for quantity in (SPEED, SIZE, ACCURACY)]
            for sparsity in results.grid.sparsities
        ]
        points = [[summary.mean for summary in each] for each in found if all(each)]
        if not points:
            continue
        times = [1000 / speed for speed, _, _ in points]
        mebibytes = [size * BYTES / 2**20 for _, size, _ in points]
        accuracies = [100 * accuracy for _, _, accuracy in points]
        for axes, costs in zip(panels, (times, mebibytes), strict=True):
            axes.plot(costs, accuracies, marker="o", label=method, **_look(results, method))
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].set_xlabel("seconds per 1,000 images of training")
    panels[1].set_xlabel("weights (MiB of float32)")
    for axes in panels:
        axes.set_xlim(left=0)
    figure.suptitle("Test accuracy and its cost", weight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _percent(found: Summary) -> tuple[float, float]:
    """Mean and deviation in percent; the deviation is 0 for one seed."""
    return 100 * found.mean, 100 * (found.deviation or 0)


def _sparsity_axis(axes: Axes, levels: list[float]) -> None:
    """Logarithmic in the density: from 0.98 to 0.99 is as far as from 0.9 to 0.95."""
    densities = [1 - level for level in levels]
    axes.set_xlim(1.05 * max(densities), min(densities) / 1.05)  # a single one has no span
    axes.set_xscale("log")
    axes.set_xticks(densities, [f"{100 * level:g}" for level in levels])
    axes.minorticks_off()


def epochs(results: Results, here: dict[str, list[Story]], sparsity: float) -> Figure:
    """Accuracy after each epoch, mean over the seeds.

    It is the validation accuracy or, where some run has none, that of another part of the data.
    """
    metrics = [row for stories in here.values() for story in stories for row in story.metrics]
    part = next(part for part in PARTS if all(_has(row, part) for row in metrics))
    title = f"{part.capitalize()} accuracy at {100 * sparsity:g} % sparsity"
    figure, axes = style.new_axes(title, "epoch", f"{part} accuracy (%)", 4.6)
    tops, ends = [], []
    for method, stories in here.items():
        points = _mean_over_seeds(stories, "metrics", f"{part}_accuracy")
        marks = {"marker": style.marker(points), "ms": 4}
        axes.plot(*zip(*points, strict=True), label=method, **marks, **_look(results, method))
        tops.append(max(value for _, value in points))
        ends.append(points[-1][1])
    # The plot shows the end of every curve. The first epochs would squeeze the differences there.
    margin = 0.25 * (max(tops) - min(ends)) + 0.2
    axes.set_ylim(min(ends) - margin, max(tops) + margin / 2)
    style.whole_epochs(axes)
    figure.legend(loc="outside right upper")
    return figure


def _has(row: Row, part: str) -> bool:
    return row.get(f"{part}_accuracy") is not None


def _mean_over_seeds(stories: list[Story], table: str, column: str) -> list[tuple[float, float]]:
    """[(epoch, mean in %)] for the epochs that every seed has."""
    curves = [{row["epoch"]: row[column] for row in getattr(story, table)} for story in stories]
    common = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    return [(epoch, 100 * statistics.mean(curve[epoch] for curve in curves)) for epoch in common]


def exploration(results: Results, here: dict[str, list[Story]], sparsity: float) -> Figure:
    """The share of positions that have ever been active, mean over the seeds."""
    title = f"Exploration rate at {100 * sparsity:g} % sparsity"
    figure, axes = style.new_axes(title, "epoch", "positions ever active (%)", 4.6)
    for method, stories in here.items():
        points = _mean_over_seeds(stories, "rewires", "exploration")
        points.append((max(stories[0].last_epoch, points[-1][0]), points[-1][1]))
        x, y = zip(*points, strict=True)
        axes.step(x, y, where="post", label=method, **_look(results, method))
    style.log_axis(axes.yaxis, axes.set_yscale)
    style.whole_epochs(axes)
    figure.legend(loc="outside right upper")
    return figure


def nonzeros(here: dict[str, Story], sparsity: float) -> Figure:
    """Non-zeros of each layer over time: a panel for each method, of its first seed."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(here))
    lines = math.ceil(len(here) / columns)
    figure = Figure(figsize=(1.4 + 3.3 * columns, 1.3 + 2.5 * lines), dpi=130, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    names = [layer["name"] for layer in next(iter(here.values())).layers]
    colors = style.by_depth(len(names))
    for axes, (method, story) in zip(panels, here.items(), strict=False):
        times = [row["epoch"] for row in story.rewires]
        times.append(max(story.last_epoch, times[-1]))
        for name, color in zip(names, colors, strict=True):
            counts = [row[f"nonzeros:{name}"] for row in story.rewires]
            axes.step(times, [*counts, counts[-1]], where="post", color=color, lw=1.4, label=name)
        axes.set_title(method, fontsize=11)
        style.log_axis(axes.yaxis, axes.set_yscale)
        style.whole_epochs(axes)
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)  # not every panel has one below it
    for axes in panels[len(here) :]:
        axes.set_visible(False)
    figure.suptitle(f"Non-zeros of each layer at {100 * sparsity:g} % sparsity", weight="bold")
    if len(names) <= style.FEW:
        names_and_lines = panels[0].get_legend_handles_labels()
        figure.legend(*names_and_lines, loc="outside lower center", ncols=style.FEW)
    else:
        style.depth_bar(figure, list(panels), names)
    return figure
