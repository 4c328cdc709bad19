"""What is installed: on every Python that pyproject.toml names, and for tests that need more."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Releases that need a newer Python than the package does, and which.
NEWER = {"transformers": "3.11"}


def wanted(extra: str, python: str) -> dict[str, Requirement]:
    """By name: what an extra, and the extras it names, ask for on a Python."""
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            found[requirement.name] = requirement
            if requirement.name == PROJECT["name"]:
                for other in requirement.extras:
                    found |= wanted(other, python)
    return found


@pytest.mark.parametrize("name", NEWER)
def test_the_oldest_python_is_not_asked_for_what_it_cannot_have(name):
    oldest = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"]).group(1)
    assert oldest == "3.10"
    assert name not in wanted("dev", oldest)
    assert name in wanted("dev", NEWER[name])
    assert "lightning" in wanted("dev", oldest)


@pytest.mark.parametrize("package", ["torchvision", "onnxscript"])
def test_what_needs_a_package_of_the_examples_runs_with_them(package):
    wanted = (ROOT / "examples/requirements.txt").read_text(encoding="utf-8")
    assert re.search(rf"^{package}==", wanted, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (run,) = re.findall(r"\.venv-examples/bin/python -m pytest ((?:.+\\\n)*.+)", makefile)
    asked = f'pytest.importorskip("{package}'
    files = [path for path in (ROOT / "tests").rglob("*.py") if asked in path.read_text("utf-8")]
    needing = {path.relative_to(ROOT).as_posix() for path in files}
    assert needing and needing <= set(run.split())
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert "run: make examples" in workflow


def test_the_triton_that_torch_with_cuda_asks_for_is_not_excluded():
    """Torch 2.13.0 of PyPI asks for 3.7.1, and its CPU build for none."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {r.name: r for r in map(Requirement, (t.split("#")[0] for t in lines if t[0] != "#"))}
    assert pinned["torch"].specifier.contains("2.13.0")
    asked = wanted("dev", "3.10")["triton"]
    assert all(r.specifier.contains("3.7.1") for r in (pinned["triton"], asked))
