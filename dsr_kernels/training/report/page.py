"""Writes report.html, one file that needs nothing else, and the plots of a run as PNG files."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.report import plots, style
from dsr_kernels.training.run import out_folder
from dsr_kernels.training.run.files import Json, write_atomically
from dsr_kernels.training.run.folder import PLOTS, Run
from dsr_kernels.training.run.story import Story

CAPTIONS = {
    "accuracy": "Training accuracy is measured during the epoch, on augmented images.",
    "loss": "The loss is cross-entropy, without weight penalties.",
    "nonzeros": "Rewiring moves non-zeros between layers.",
    "density": "The same as a share of each layer's positions. White is the density of all sparse "
    "layers at the end, blue is denser, red is sparser.",
    "threshold": "All layers share one threshold. It doubles when too few weights fall below it, "
    "and halves when too many do.",
    "pruned": "A rewire grows as many weights as it prunes; gradual pruning grows none.",
    "sparsity": "The numbers are each layer's non-zeros at the end and its positions.",
}
HEADINGS = {"threshold": "Rewiring", "nonzeros": "Where the weights are"}
STYLE = """
body { font: 15px/1.5 "DejaVu Sans", system-ui, sans-serif; color: #22262b; background: #fff;
       max-width: 1080px; margin: 32px auto; padding: 0 24px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 10px; }
p.lead { color: #4a4f57; margin: 4px 0 22px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 12px; }
.tile { border: 1px solid #dfe3e8; border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.tile span { color: #5a6069; font-size: 13px; }
figure { margin: 0 0 26px; } figure img { width: 100%; display: block; }
figcaption { color: #5a6069; font-size: 13.5px; }
table { border-collapse: collapse; font-size: 14px; } .wide { overflow-x: auto; }
td, th { padding: 4px 18px 4px 0; border-bottom: 1px solid #eceff2; text-align: left;
         vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.note { color: #5a6069; font-size: 13.5px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 0 40px; }
"""


SHOWN = (  # columns of metrics.csv
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_top5",
    "test_accuracy",
    "test_top5",
)


def write(run: Run) -> Path:
    """Writes RUN/plots/*.png and RUN/report.html; returns the path of the report.

    Raises UsageError where RUN/plots is a link.

    Without matplotlib the report has tables only, and says what to install for the plots.
    """
    story = Story.read(run)
    out_folder.refuse_links(run.folder, [PLOTS])
    images, missing = {}, None
    try:
        figures = plots.draw(story)
    except UsageError as error:
        figures, missing = {}, str(error)
    for name, figure in figures.items():
        images[name] = style.png(figure)
        (run.folder / PLOTS).mkdir(exist_ok=True)
        write_atomically(run.folder / PLOTS / f"{name}.png", images[name])
    path = run.folder / "report.html"
    write_atomically(path, _page(story, images, missing))
    return path


def _page(story: Story, images: dict[str, bytes], missing: str | None) -> str:
    recipe = story.recipe
    title = recipe.name or "run"
    blocks = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(_what_ran(recipe))}</p>',
        _tiles(story),
        "<h2>Training</h2>",
    ]
    if missing:
        blocks.append(f'<p class="note">No plots: {html.escape(missing)}</p>')
    for name, image in images.items():
        if name in HEADINGS:
            blocks.append(f"<h2>{HEADINGS[name]}</h2>")
        source = base64.b64encode(image).decode()
        blocks.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{source}">'
            f"<figcaption>{CAPTIONS[name]}</figcaption></figure>"
        )
    blocks += [_memory(story), _epochs(story), '<div class="two">', _machine(story)]
    blocks += [_recipe(recipe), "</div>"]
    body = "\n".join(blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _what_ran(recipe: Recipe) -> str:
    """Method, sparsity and seed, and the recipe's description."""
    dense = recipe.method == "dense"
    sparsity = "" if dense else f", sparsity {recipe.model.sparsity:g}"
    ran = (
        f"{recipe.model.name} on {recipe.data.name}: {recipe.method}{sparsity}, seed {recipe.seed}"
    )
    return f"{ran}. {recipe.description}" if recipe.description else ran


def _tiles(story: Story) -> str:
    tiles = []
    if story.results:
        images = story.results["test_images"]
        tiles.append((f"{story.results['test_accuracy']:.2%}", f"test accuracy, {images:,} images"))
        if "test_top5" in story.results:
            tiles.append((f"{story.results['test_top5']:.2%}", "test top-5 accuracy"))
    else:
        done = f"epoch {story.last_epoch:.0f} of {story.recipe.training.epochs}"
        tiles.append((done, "unfinished run"))
    best = [r["validation_accuracy"] for r in story.metrics if r.get("validation_accuracy")]
    if best:
        tiles.append((f"{best[-1]:.2%}", "validation accuracy, last epoch"))
    tiles += _sizes(story)
    if story.speed():
        tiles.append((f"{story.speed():,.0f} images/s", "training, median over epochs"))
    against = (story.results or {}).get("against_dense")
    if against:
        tiles.append(
            (
                f"{against['sparse_over_best_dense']:.2f}x",
                "the speed of the dense twin in its best layout",
            )
        )
    cells = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _sizes(story: Story) -> list[tuple[str, str]]:
    """Sparsity and memory at the end of training, or at its start while it is not finished."""
    if not story.layers:
        return []
    began, now = story.about["model"], story.ended or story.about["model"]
    when = ""
    if story.rewires and began["nonzeros"] != int(story.rewires[-1]["nonzeros"]):
        when = " at the end" if story.ended else " at the start"
    sparse = f"sparse{when}: {now['nonzeros']:,} non-zeros"
    if now["nonzeros"] != began["nonzeros"]:
        sparse += f"; {_sparsity(began):.1%}, {began['nonzeros']:,} at the start"
    ratio = now["dense_bytes"]["total"] / now["bytes"]["total"]
    memory = f"weights, indices and optimizer{when}, against dense"
    tiles = [(f"{_sparsity(now):.1%}", sparse)]
    if story.ended and "zeros" in now:  # not in the results of older versions
        share = now["zeros"] / max(now["nonzeros"], 1)
        tiles.append(
            (f"{share:.2%}", f"of the non-zeros are exactly 0 at the end: {now['zeros']:,}")
        )
    return [*tiles, (f"{ratio:.1f}x smaller", memory)]


def _sparsity(model: Json) -> float:
    return 1 - model["nonzeros"] / model["sparse_positions"]


def _table(rows: list[tuple[str, ...]], head: tuple[str, ...] = (), numbers: bool = False) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        kinds = [""] + [' class="n"' if numbers else ""] * (len(cells) - 1)
        joined = "".join(
            f"<{tag}{kind}>{html.escape(str(cell))}</{tag}>"
            for cell, kind in zip(cells, kinds, strict=True)
        )
        return f"<tr>{joined}</tr>"

    top = line(head, "th") if head else ""
    return f'<div class="wide"><table>{top}{"".join(line(row, "td") for row in rows)}</table></div>'


def _memory(story: Story) -> str:
    began, now = story.about["model"], story.ended or story.about["model"]
    rows, both = [], began["bytes"] != now["bytes"]
    for kind in ("parameters", "indices", "optimizer", "total"):
        own, twin = now["bytes"][kind], now["dense_bytes"][kind]
        start = (f"{began['bytes'][kind]:,}",) if both else ()
        ratio = f"{twin / own:.2f}x" if own and twin else ""
        rows.append((kind, *start, f"{own:,}", f"{twin:,}", ratio))
    note = "Batch norm's statistics, gradients and activations are not counted on either side."
    against = (story.results or {}).get("against_dense")
    speed = ""
    if against:
        pairs = [
            (name.replace("_", " "), f"{v:,.1f}")
            for name, v in against["images_per_second"].items()
        ]
        speed = (
            "<h2>Speed against the dense twin</h2>"
            + _table(pairs, ("training step", "images/s"), True)
            + f'<p class="note">Median of {against["rounds"]} interleaved rounds, '
            + f"batch {against['batch']}.</p>"
        )
    own = ("at the start", "at the end") if both else ("this run",)
    head = ("bytes", *own, "dense twin", "dense / end" if both else "dense / this")
    return f'<h2>Memory</h2>{_table(rows, head, True)}<p class="note">{note}</p>{speed}'


def _epochs(story: Story) -> str:
    """The last rows of metrics.csv."""
    kept = [key for key in SHOWN if any(row.get(key) is not None for row in story.metrics)]

    def show(key: str, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.2%}" if key.endswith(("accuracy", "top5")) else f"{value:.4g}"

    rows = [tuple(show(key, row.get(key)) for key in kept) for row in story.metrics[-12:]]
    head = tuple(key.replace("_", " ") for key in kept)
    which = "Epochs" if len(story.metrics) <= 12 else "The last 12 epochs"
    return f"<h2>{which}</h2>{_table(rows, head, True)}" if rows else ""


def _machine(story: Story) -> str:
    rows = [(key, str(value)) for key, value in story.about["machine"].items()]
    if "processes" in story.about:
        processes = story.about["processes"]
        hosts = ", ".join(dict.fromkeys(processes["hosts"]))
        rows.append(("processes", f"{processes['number']} on {hosts}"))
    rows += [(f"{part} images", f"{n:,}") for part, n in story.about["images"].items()]
    if story.results and "peak_rss_mib" in story.results:
        rows.append(("peak memory of the process", f"{story.results['peak_rss_mib']:,} MiB"))
    if story.results and "peak_gpu_mib" in story.results:
        rows.append(("peak memory on the GPU", f"{story.results['peak_gpu_mib']:,} MiB"))
    return f"<div><h2>Machine and data</h2>{_table(rows)}</div>"


def _recipe(recipe: Recipe) -> str:
    rows = [(key, _short(v)) for key, v in recipes.values(recipe).items() if key != "name"]
    return f"<div><h2>Recipe</h2>{_table(rows)}</div>"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(entry)}" for key, entry in value.items())
    if isinstance(value, list) and not all(isinstance(pair, tuple) for pair in value):
        return ", ".join(_short(entry) for entry in value)
    if isinstance(value, list):
        return ", ".join(f"from epoch {epoch:g}: {number:g}" for epoch, number in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
