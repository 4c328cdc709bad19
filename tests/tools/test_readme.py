"""README.md and the other pages: short, true to what was measured, and without dead ends."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dsr_kernels import cli
from dsr_kernels.experiments import grid as grids
from dsr_kernels.training.recipe import load as recipes

ROOT = Path(__file__).parents[2]
README = "README.md"
FOLDERS_OF_PAGES = ("howto", "methods", "reference")
PAGES = (
    README,
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/cuda.md",
    "docs/distributed.md",
    "docs/experiments.md",
    "docs/faq.md",
    "docs/fusing.md",
    "docs/glossary.md",
    "docs/index.md",
    "docs/install.md",
    "docs/layers.md",
    "docs/limits.md",
    "docs/measured.md",
    "docs/methods.md",
    "docs/optimizers.md",
    "docs/performance.md",
    "docs/recipes.md",
    "docs/reliability.md",
    "docs/scripts.md",
    "docs/training.md",
    "docs/works_with.md",
    "tests/cuda_emulator/README.md",
    *(f"docs/{f}/{p.name}" for f in FOLDERS_OF_PAGES for p in (ROOT / "docs" / f).glob("*.md")),
)
WORDS, COLUMNS = 900, 100


class Line(NamedTuple):
    number: int  # from 1
    text: str
    code: bool  # of a code block, fenced or indented


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def lines(page: str) -> list[Line]:
    found, fenced, indented, after_blank = [], False, False, True
    for number, text in enumerate(read(page).splitlines(), 1):
        fence = text.lstrip().startswith("```")
        indented = text.startswith("    ") and (indented or after_blank)
        found.append(Line(number, text, fenced or fence or indented))
        fenced ^= fence
        after_blank = not text.strip()
    return found


def prose(page: str) -> str:
    return "\n".join(line.text for line in lines(page) if not line.code)


def test_every_page_is_listed():
    present = [path.name for path in ROOT.glob("*.md")]
    present += [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    assert set(present) <= set(PAGES)


def test_the_readme_is_short():
    assert len(read(README).split()) <= WORDS


def test_the_readme_s_table_has_at_most_eight_rows_some_of_which_dense_wins():
    rows = [line.text for line in lines(README) if line.text.startswith("| ")][1:]
    assert 1 <= len(rows) <= 8
    assert sum(bool(re.search(r"\*0\.\d\d\*", row)) for row in rows) >= 3


def test_the_eight_lines_train_and_rewire():
    (source,) = re.findall(r"```python\n(.*?)```", read(README), re.DOTALL)
    assert "every=100" in source
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("conv1", torch.nn.Conv2d(3, 8, 3))
    model.add_module("conv2", torch.nn.Conv2d(8, 8, 3))
    model.add_module("flat", torch.nn.Flatten())
    model.add_module("linear", torch.nn.Linear(8 * 4 * 4, 10))
    batch = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    names = {"my_model": model, "loader": [batch] * 3, "epochs": 1}
    exec(compile(source.replace("every=100", "every=2"), README, "exec"), names)
    kinds = [type(layer).__name__ for layer in names["model"]]
    assert kinds == ["Conv2d", "SparseConv2d", "Flatten", "Linear"]
    assert (names["rewirer"].iteration, names["rewirer"].rewires) == (3, 1)


def test_the_eight_lines_type_check(tmp_path):
    pytest.importorskip("mypy")
    (source,) = re.findall(r"```python\n(.*?)```", read(README), re.DOTALL)
    given = (
        "epochs: int\nmy_model: torch.nn.Module\nloader: list[tuple[torch.Tensor, torch.Tensor]]\n"
    )
    imports, rest = source.split("\n\n", 1)
    (tmp_path / "eight_lines.py").write_text(f"{imports}\n{given}{rest}")
    command = (sys.executable, "-m", "mypy", "--follow-imports=silent")
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "eight_lines.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {word.strip().replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = folder / name if name else ROOT / page
        assert path.exists(), f"{page}: {target} does not exist"
        assert not anchor or anchor in headings(path), f"{page}: {target}: no such heading"


FILE = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)`")
# A path is named from the root, from the package, from csrc or from beside the page.
BESIDE = (ROOT, ROOT / "dsr_kernels", ROOT / "csrc", ROOT / "docs")
ENDINGS = (".py", ".md", ".h", ".cuh", ".cu", ".cpp", ".toml", ".txt", "/")
MADE = (  # by a build or a run, or on a data set's disk
    "report.html",
    "recipe.toml",
    "grid.toml",
    "recipes/",
    "jobs/",
    "runs/",
    "metrics.csv",
    "rewires.csv",
    "timings.csv",
    "log.txt",
    "build/",
    "RUN/",
    "table.md",
    "checkpoints/",
    "plots/",
    "tensorboard/",
    "train/",
    "val/",
)


FOLDERS = ("benchmarks", "csrc", "docs", "dsr_kernels", "tests")


@functools.cache
def names() -> set[str]:
    """The name of every file and folder of the repository, wherever it lies."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return {path.name for path in (*found, *ROOT.iterdir())}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    if page == "CHANGELOG.md":
        pytest.skip("names what has been, too")
    beside = (*BESIDE, (ROOT / page).parent)
    for name in FILE.findall(prose(page)):
        if not name.endswith(ENDINGS) or name.startswith(MADE) or "NAME" in name:
            continue
        whole = "/" in name.rstrip("/")
        there = any((f / name).exists() for f in beside) if whole else name.rstrip("/") in names()
        assert there, f"{page}: `{name}` does not exist"


def commands(page: str) -> list[str]:
    """The lines of code blocks, and what stands between backticks, that call dsr with options."""
    blocks = [line.text for line in lines(page) if line.code]
    inline = re.findall(r"`(dsr [^`]*?--[^`]*)`", prose(page))
    found = [text.strip() for text in blocks if re.match(r" *dsr [^…─]*$", text)]
    return found + [" ".join(text.split()) for text in inline]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, capsys):
    for command in commands(page):
        _, *arguments = shlex.split(command, comments=True)
        try:
            options = cli._parser().parse_args(arguments)
        except SystemExit as end:
            assert not end.code, f"{page}: {command}: {capsys.readouterr().err}"
            continue
        recipe, grid = getattr(options, "recipe", None), getattr(options, "name", None)
        own = recipe is None or recipe.endswith(".toml")
        assert own or recipe in recipes.names(), f"{page}: {command}"
        known = (None, "NAME", *grids.names())
        assert grid in known or grid.endswith(".toml"), f"{page}: {command}"
        for override in getattr(options, "overrides", None) or []:
            if not override.endswith("=NAME"):
                recipes.load(recipes.DEFAULT if own else recipe, [override])


def test_the_readme_names_its_make_targets():
    shown = re.findall(r"^    make ([\w-]+)", read(README), re.MULTILINE)
    assert shown == ["demo", "test"]
    for page in PAGES:
        for target in re.findall(r"(?:`|^    )make ([a-z][\w-]*)", read(page), re.MULTILINE):
            assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_wrapped(page):
    """Tables, code, pictures and lines that are one link may be longer."""
    free = re.compile(r"\s*(\||!\[|[-*]? *\[[^]]*\]\([^)]*\)[.,;]?$|<!--)")
    wide = [
        f"{page}:{line.number}"
        for line in lines(page)
        if len(line.text) > COLUMNS and not line.code and not free.match(line.text)
    ]
    assert not wide, "\n".join(wide)
