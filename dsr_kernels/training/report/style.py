"""The style that all plots share: colours, axes and ticks."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING

from dsr_kernels.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#2f6db3", "#d9742b", "#3b8f5a", "#8a8f98", "#22262b"
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
FEW = 6  # up to this many layers, each has a label of its own
MARKED = 30  # up to this many points, each point of a curve has a dot


@contextlib.contextmanager
def drawing(purpose: str) -> Iterator[None]:
    """Figures made in here have this style and need no display.

    Raises UsageError where matplotlib, which `purpose` needs, is not installed.
    """
    matplotlib = require("matplotlib", purpose)
    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        yield


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def new_axes(title: str, x: str, y: str, height: float = 3.8) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, labelled `x` and `y`; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def legend(axes: Axes, place: str) -> None:
    """A legend, if there is anything to name."""
    if axes.get_legend_handles_labels()[0]:  # none before the first epoch
        axes.legend(loc=place)


def whole_epochs(axes: Axes) -> None:
    """Puts ticks at whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def marker(points: Sized) -> str | None:
    """A dot for each point, if there are few: one alone makes no line."""
    return "o" if len(points) <= MARKED else None


def log_axis(axis: Axis, set_scale: Callable[[str], object]) -> None:
    """Makes the axis logarithmic, with enough plain numbers along it.

    To be called once everything on it is drawn.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

    set_scale("log")
    low, high = axis.get_view_interval()
    ticks = _log_ticks(low, high)
    if not ticks:
        axis.set_minor_locator(NullLocator())
        equal = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = [tick for tick in equal if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or finer steps where these are few; none where those are few too."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return []


def by_depth(count: int) -> list[tuple[float, ...]]:
    """A colour for each of `count` layers, from the input to the output."""
    from matplotlib import colormaps

    span = max(count - 1, 1)
    return [colormaps["viridis"](0.85 * i / span) for i in range(count)]


def depth_bar(figure: Figure, axes: Axes | Sequence[Axes], names: list[str]) -> None:
    """A colour bar that says which layer has which colour of `by_depth`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colors = ListedColormap(by_depth(len(names)))
    mappable = ScalarMappable(Normalize(0.5, len(names) + 0.5), colors)
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    ticks = sorted({1, (len(names) + 1) // 2, len(names)})
    bar.set_ticks(ticks, labels=[f"{tick}: {names[tick - 1]}" for tick in ticks], fontsize=9)
    bar.set_label("layer, input to output")
