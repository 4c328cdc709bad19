"""docs/experiments.md says what the kept results say."""

import csv
from pathlib import Path

import pytest

from dsr_kernels.experiments.grid import load
from dsr_kernels.experiments.results import ACCURACY, COLUMNS, table_md

DOCS = Path(__file__).parents[2] / "docs"
KEPT = sorted(path.parent for path in (DOCS / "experiments").glob("*/results.csv"))
TEXT = ("method", "status", "error")


def rows_of(folder: Path) -> list[dict]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(tuple(row) == COLUMNS for row in rows)
    return [
        {
            key: (text or None) if key in TEXT or not text else float(text)
            for key, text in row.items()
        }
        for row in rows
    ]


def test_all_experiments_of_the_page_are_kept():
    names = [folder.name for folder in KEPT]
    of_page = ["blocks-short", "lenet300-fashion_mnist", "mechanism", "wrn28_2-fashion_mnist"]
    assert names == of_page


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_tables_follow_from_the_kept_rows(folder):
    grid, rows = load(folder.name), rows_of(folder)
    assert {row["status"] for row in rows} == {"done"}
    assert {row["seed"] for row in rows} == set(grid.seeds)
    table = table_md(grid, rows)
    assert (folder / "table.md").read_text(encoding="utf-8") == table
    accuracies = table.split(f"## {ACCURACY.title}\n\n")[1].split("\n\n")[0]
    assert accuracies in (DOCS / "experiments.md").read_text(encoding="utf-8")


def test_pictures_of_the_page_exist():
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    pictures = [part.split(")")[0] for part in page.split("](experiments/")[1:]]
    assert len(pictures) >= 6
    assert all((DOCS / "experiments" / picture).exists() for picture in pictures)
