"""One name, one file: pytest imports test modules and packages beside them by short names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def repeated(names: list[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def test_modules_outside_packages_have_names_of_their_own():
    # Of two with one name pytest collects the first only, and stops at the second.
    modules = [
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert not repeated([name for name in modules if name != "conftest.py"])


def test_packages_of_tests_and_benchmarks_have_names_of_their_own():
    # Both folders are on the path of the tests of benchmarks: the first of a name hides the other.
    packages = [
        path.parent.name
        for folder in ("tests", "benchmarks")
        for path in (ROOT / folder).rglob("__init__.py")
    ]
    assert len(packages) > 3
    assert not repeated(packages)
