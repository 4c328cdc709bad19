"""A reader finds the way from a layer to its kernel: by name, and every argument by its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dsr_kernels"

# (file, function, what it calls by name): each step is a definition in the next file.
WAY = [
    ("nn/layers.py", "forward", "functional.sparse_conv2d"),
    ("nn/functional.py", "sparse_conv2d", "autograd.sparse_conv2d"),
    ("ops/autograd.py", "sparse_conv2d", "library.sparse_conv2d"),
    ("ops/library.py", "sparse_conv2d", "sparse_conv2d_found"),
    ("ops/library.py", "sparse_conv2d_found", "call.into"),
    ("ops/library.py", "sparse_conv2d_found", "preparer.prepare_forward"),
    ("backends/cpu_calls.py", "prepare_forward", "Forward"),
    ("backends/cpu_calls.py", "__init__", "_C.Forward"),  # csrc/bindings/calls.cpp
    ("backends/cpu_calls.py", "into", "self.run"),
]

FLOORS = [
    "ops/autograd.py",
    "ops/library.py",
    "backends/cpu.py",
    "backends/cuda/launch.py",
    "backends/triton/launch.py",
    "ops/reference.py",
]
OPERATIONS = {
    "sparse_conv2d",
    "sparse_conv2d_grad_input",
    "sparse_conv2d_grad_weight",
    "sparse_conv2d_grad_bias",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def read_by_position(function: Function) -> bool:
    """Whether a function takes *args and gives places in it a meaning: args[0], a, *b = args."""
    if function.args.vararg is None:
        return False
    name = function.args.vararg.arg

    def is_it(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == name

    def takes_apart(node: ast.AST) -> bool:
        if isinstance(node, ast.Assign):
            return is_it(node.value) and isinstance(node.targets[0], ast.Tuple | ast.List)
        return isinstance(node, ast.Subscript) and is_it(node.value)

    return any(map(takes_apart, ast.walk(function)))


def test_no_star_argument_is_read_by_position() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{function.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if read_by_position(function)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("def f(*shape): return shape[:-1]", True),
        ("def f(x, *args):\n    first, *rest = args", True),
        ("lambda *args: args[0]", True),
        ("def f(*sizes): return g(*sizes)", False),
        ("def f(sizes): return sizes[0]", False),
    ],
)
def test_a_star_argument_read_by_position_is_found(text: str, found: bool) -> None:
    (function,) = functions(ast.parse(text))
    assert read_by_position(function) == found


@pytest.mark.parametrize("file, name, called", WAY, ids=[file for file, *_ in WAY])
def test_each_step_to_the_kernel_is_called_by_name(file: str, name: str, called: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    calls = {
        ast.unparse(node.func)
        for function in functions(tree)
        if getattr(function, "name", None) == name
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    }
    assert called in calls


@pytest.mark.parametrize("file", FLOORS)
def test_an_operation_has_the_same_name_on_every_floor(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    # Two of them in one call, and what the autograd.Functions call.
    defined -= {"sparse_conv2d_backward", "sparse_conv2d_backward_weight", "sparse_conv2d_found"}
    assert {name for name in defined if name.startswith("sparse_conv2d")} == OPERATIONS
