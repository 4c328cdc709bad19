"""The site's own pages: the notebook runs, cards and reference are complete, links lead on."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest
from helpers.image_sets import write_idx_set

import dsr_kernels
from dsr_kernels import cuda, distributed, models, nn, rewiring

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"


def website(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"website_{name}", ROOT / f"website/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def said(cell: dict[str, Any]) -> str:
    """What the stored notebook has below a cell, but for pictures."""
    outputs = [o for o in cell["outputs"] if "image/png" not in o.get("data", {})]
    return "".join(website("notebook").text_of(output) for output in outputs)


def test_the_notebook_runs_and_says_what_is_stored(tmp_path, monkeypatch):
    """With a few tiny images: what depends on them is compared by its form, digits apart."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg", force=True)
    write_idx_set(tmp_path / "data", compress=True, train=400, test=20)
    replaced = {
        'Path("/usr/share/datasets/fashion-mnist")': f"Path({str(tmp_path / 'data')!r})",
        "iterations = 600": "iterations = 6",
        "every=50": "every=2",
        "100 * iteration": "4 * iteration",
        "100 * (iteration + 1)": "4 * (iteration + 1)",
    }
    names: dict[str, Any] = {}
    for cell in cells("code"):
        source = "".join(cell["source"])
        for old in [old for old in replaced if old in source]:
            source = source.replace(old, replaced[old])
            if old != "every=50":  # it stands where training begins and where it goes on
                del replaced[old]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(compile(source, NOTEBOOK.name, "exec"), names)
        if "summary" in source or "print(layer)" in source:
            assert shown.getvalue() == said(cell)
        else:
            assert shape(shown.getvalue()) == shape(said(cell))
    assert list(replaced) == ["every=50"]
    assert names["rewirer"].rewires == 2
    assert not list(tmp_path.glob("*.pt"))


def shape(text: str) -> list[str]:
    return [re.sub(r"[\d ]+", "#", line) for line in text.splitlines()]


def test_the_notebook_was_run_whole_and_holds_no_path_of_its_machine():
    code = cells("code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    stored = json.dumps([cell["outputs"] for cell in code])
    assert not re.search(r"/(home|root|tmp|work|usr|opt|mnt|Users)/|Traceback|Warning", stored)
    assert sum("image/png" in o.get("data", {}) for cell in code for o in cell["outputs"]) == 1


def test_the_page_of_the_notebook_has_all_cells_and_its_picture():
    page, pictures = website("notebook").to_markdown(NOTEBOOK.read_text(encoding="utf-8"), "page")
    assert page.count("```python\n") == len(cells("code"))
    assert page.count("```{ .text .output }\n") == sum(bool(said(cell)) for cell in cells("code"))
    assert list(pictures) == ["page-1.png"]
    assert pictures["page-1.png"].startswith(b"\x89PNG")
    assert re.search(r"!\[Density of each layer[^]]*\]\(page-1\.png\)", page)


REPOSITORY = "https://example.org/dsr/"


@pytest.mark.parametrize(
    ("page", "link", "expected", "without"),
    [
        ("methods.md", "(limits.md#speed)", "[a](limits.md#speed)", None),
        ("howto/loop.md", "(../methods.md)", "[a](../methods.md)", None),
        ("index.md", "(tutorial.ipynb)", "[a](tutorial.md)", None),
        ("howto/data.md", "(../tutorial.ipynb#x)", "[a](../tutorial.md#x)", None),
        ("tutorial.md", "(tutorial.ipynb)", "[a](tutorial.ipynb)", None),
        ("methods.md", "(../CONTRIBUTING.md#style)", "[a](contributing.md#style)", None),
        ("howto/loop.md", "(../../CHANGELOG.md)", "[a](../changelog.md)", None),
        ("contributing.md", "(docs/cuda.md)", "[a](cuda.md)", None),
        ("cuda.md", "(../LICENSE)", f"[a]({REPOSITORY}blob/main/LICENSE)", "a"),
        ("cuda.md", "(../csrc/cuda)", f"[a]({REPOSITORY}tree/main/csrc/cuda)", "a"),
        ("cuda.md", "(https://x.org/y.md)", "[a](https://x.org/y.md)", None),
        ("cuda.md", "(#limits)", "[a](#limits)", None),
    ],
)
def test_links_lead_on_in_the_site(page, link, expected, without):
    rewrite = website("links").rewrite_links
    assert rewrite(f"x [a]{link} y", page, REPOSITORY) == f"x {expected} y"
    without = expected if without is None else without
    assert rewrite(f"x [a]{link} y", page, "") == f"x {without} y"


def test_pictures_stay_and_a_picture_may_be_a_link():
    rewrite = website("links").rewrite_links
    assert rewrite("![a](../x.png)", "cuda.md", "") == "![a](../x.png)"
    assert rewrite("[![a](x.png)](../LICENSE)", "cuda.md", "") == "![a](x.png)"


EVERY_REWIRER = {"model", "optimizer", "every", "schedule", "total", "stop", "block_score", "seed"}


@pytest.mark.parametrize("name", rewiring.METHODS)
def test_each_method_has_a_card_with_its_arguments_and_their_defaults(name):
    kind = rewiring.METHODS[name]
    card = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")
    assert f'`method = "{name}"`' in card
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", card, re.MULTILINE)
    shown = {argument: default for row, default in rows for argument in re.findall(r"`(\w+)`", row)}
    parameters = inspect.signature(kind).parameters.values()
    own = {p.name: p.default for p in parameters if p.name not in EVERY_REWIRER}
    assert own.keys() == shown.keys() - EVERY_REWIRER
    for argument, default in own.items():
        schedule, growth = getattr(kind, "FRACTION_SCHEDULE", ""), getattr(kind, "GROWTH", "")
        default = {"fraction_schedule": schedule, "growth": growth}.get(argument, default)
        if default is inspect.Parameter.empty:
            assert shown[argument] == "must be given"
        elif default is not None:
            text = f'`"{default}"`' if isinstance(default, str) else str(default)
            assert shown[argument] == text, argument
    for title in ("## Hyper-parameters", "## When", "## Cost"):
        assert title in card


def test_the_reference_has_every_public_name():
    pages = (ROOT / "docs/reference").glob("*.md")
    shown = {
        line.rsplit(".", 1)[-1]
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    }
    rooms = dsr_kernels, cuda, distributed, nn, rewiring
    public = {name for room in rooms for name in room.__all__}
    # Rooms and a table of names; classes that only functions of the reference make.
    elsewhere = {"distributed", "models", "rewiring", "METHODS"}
    assert public - shown == elsewhere
    assert set(models.__all__) - shown == {"LeNet300100", "ResNet", "WideResNet"}


def test_the_page_of_the_command_line_has_every_command():
    shown = website("command_line").help_of_all()
    commands = ("train", "new", "report", "export", "experiment", "bench", "info")
    expected = ["dsr", *(f"dsr {command}" for command in commands)]
    assert re.findall(r"^## `(.+)`\n\n```text\nusage: \1 ", shown, re.MULTILINE) == expected
    assert "--compare-dense" in shown
    assert max(map(len, shown.splitlines())) <= 88


def test_nothing_of_the_theme_comes_from_elsewhere():
    own = [path for path in (ROOT / "website").rglob("*") if path.suffix in (".css", ".svg", ".js")]
    texts = [path.read_text(encoding="utf-8").replace("http://www.w3.org/", "") for path in own]
    assert own
    assert not any("http" in text for text in texts)
    assert re.search(r"^ +font: false", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
