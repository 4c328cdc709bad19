"""The package's rooms import one way, in the order that docs/architecture.md writes down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dsr_kernels"
PAGE = ROOT / "docs/architecture.md"
MOST_AT_TOP_LEVEL = 12  # Python files


def written_order() -> dict[str, int]:
    """Room or module -> its height: the line of the page's block that names it."""
    (block,) = re.findall(r"<!-- rooms -->\s+((?: {4}.+\n)+)", PAGE.read_text(encoding="utf-8"))
    lines = [line.split("  ")[0] for line in block.replace("    ", "", 1).split("\n    ")]
    heights = {}
    for height, line in enumerate(lines):
        for name in line.strip().split(", "):
            assert name not in heights, f"{name} is written twice"
            heights[name] = height
    return heights


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module, name: str, modules: set[str]) -> Iterator[tuple[str, int]]:
    """(module of the package, line) of every import, in functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield alias.name, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and argument.value.startswith(PACKAGE):
                    yield argument.value, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: imports are absolute"
            if (node.module or "").split(".")[0] == PACKAGE:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    compiled = alias.name in ("_C", "_cuda")
                    yield (inner if inner in modules or compiled else node.module), node.lineno


def read_package(package: Path) -> dict[str, dict[str, int]]:
    """module -> the modules of the package that it imports, with a line of each."""
    files = {module_name(path, package.parent): path for path in sorted(package.rglob("*.py"))}
    graph = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = dict(imports_of(tree, name, set(files)))
    return graph


def entry_of(module: str, heights: dict[str, int]) -> str:
    """The entry of the written order that a module belongs to: the most specific one."""
    parts = module.split(".")[1:]
    for end in range(len(parts), 0, -1):
        if (entry := ".".join(parts[:end])) in heights:
            return entry
    raise AssertionError(f"{module}: docs/architecture.md names no room for it")


def upward_imports(graph: dict[str, dict[str, int]], heights: dict[str, int]) -> list[str]:
    """One sentence for each import that does not go down."""
    found = []
    for module, imported in graph.items():
        if module in (PACKAGE, f"{PACKAGE}.__main__") or not imported:
            continue  # the public names, above everything; a folder's docstring
        room = entry_of(module, heights)
        for target, line in imported.items():
            if target in (PACKAGE, f"{PACKAGE}._C", f"{PACKAGE}._cuda"):
                if room != "backends.native":
                    found.append(f"{module}:{line} imports {target}")
                continue
            other = entry_of(target, heights)
            if other != room and heights[other] >= heights[room]:
                found.append(f"{module}:{line} imports {target}, which is not below it")
    return found


def circles(graph: dict[str, dict[str, int]]) -> list[str]:
    """Modules that import themselves by way of others."""
    reach = {module: set(imported) & set(graph) for module, imported in graph.items()}
    changed = True
    while changed:
        changed = False
        for reached in reach.values():
            more = set().union(*(reach[other] for other in reached)) - reached
            reached |= more
            changed = changed or bool(more)
    return sorted(module for module, reached in reach.items() if module in reached)


def test_no_import_goes_up():
    assert upward_imports(read_package(ROOT / PACKAGE), written_order()) == []


def test_there_is_no_circle_of_imports():
    assert circles(read_package(ROOT / PACKAGE)) == []


def test_every_written_room_exists():
    modules = {module.removeprefix(f"{PACKAGE}.") for module in read_package(ROOT / PACKAGE)}
    assert set(written_order()) <= modules


def test_few_files_lie_at_the_top_level():
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= MOST_AT_TOP_LEVEL


@pytest.mark.parametrize(
    "line,message",
    [
        ("from dsr_kernels import high", "dsr_kernels.low:1 imports dsr_kernels.high"),
        (
            "def f():\n    from dsr_kernels.high import x",
            "dsr_kernels.low:2 imports dsr_kernels.high",
        ),
        ("if TYPE_CHECKING:\n    import dsr_kernels.high", "dsr_kernels.low:2 imports"),
        ("from dsr_kernels import _C", "dsr_kernels.low:1 imports dsr_kernels"),
        ('importlib.import_module("dsr_kernels.high")', "dsr_kernels.low:1 imports"),
    ],
)
def test_an_import_that_goes_up_is_found(tmp_path, line, message):
    package = tmp_path / PACKAGE
    package.mkdir()
    for name, text in (("__init__", ""), ("low", line), ("high", "from dsr_kernels import low")):
        (package / f"{name}.py").write_text(text)
    (found,) = upward_imports(read_package(package), {"low": 0, "high": 1})
    assert found.startswith(message)


def test_a_circle_is_found(tmp_path):
    package = tmp_path / PACKAGE
    package.mkdir()
    for name, text in (
        ("__init__", ""),
        ("a", "from dsr_kernels.b import x"),
        ("c", ""),
        ("b", "from dsr_kernels import c, a"),
    ):
        (package / f"{name}.py").write_text(text)
    assert circles(read_package(package)) == ["dsr_kernels.a", "dsr_kernels.b"]
