"""The stub files name what the compiled modules offer, no more and no less."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

from dsr_kernels.backends import native

PACKAGE = Path(native.__file__).parents[1]
MODULES = [module for module in (native._C, native._cuda) if module is not None]


def read_stub(stub: Path) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
    """Public class or "" -> the names that the stub gives it; class -> its bases."""
    found: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}

    def read(body: list[ast.stmt], owner: str) -> None:
        names = found.setdefault(owner, set())
        for node in body:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base) for base in node.bases]
                read(node.body, node.name)
                if not node.decorator_list:  # else @type_check_only
                    names.add(node.name)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                names.add(ast.unparse(node.target))

    read(ast.parse(stub.read_text(encoding="utf-8")).body, "")
    return found, bases


def named_in(stub: Path) -> dict[str, set[str]]:
    """Public class or "" -> the names that the stub gives it, those of its bases included, which
    may be classes of _C's stub.
    """
    found, bases = read_stub(stub)
    shared = read_stub(PACKAGE / "_C.pyi")[0] | found
    for name, names in found.items():
        names.update(*(shared[base] for base in bases.get(name, []) if base in shared))
    return {owner: names for owner, names in found.items() if not owner or owner in found[""]}


def offered_by(thing: ModuleType | type) -> set[str]:
    return {name for name in dir(thing) if not name.startswith(("__", "_pybind11_"))}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_stub_names_what_the_module_offers(module: ModuleType) -> None:
    named = named_in(PACKAGE / f"{module.__name__.rpartition('.')[2]}.pyi")
    assert named.pop("") == offered_by(module)
    for name, members in named.items():
        assert members == offered_by(getattr(module, name)), name
