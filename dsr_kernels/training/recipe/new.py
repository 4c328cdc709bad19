"""Writes a new recipe, with a comment on every key."""

from __future__ import annotations

import re
from pathlib import Path

from dsr_kernels.errors import UsageError, check_path, in_words
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import takes

TEMPLATE = recipes.FOLDER / "new_recipe.txt"


def write(path: Path, method: str, model: str, data: str) -> None:
    """Writes the recipe of that method, model and data set to the new file `path`.

    Raises UsageError where there is such a file, or for a name that is none.
    """
    check_path(path, "new")
    text = text_of(method, model, data)
    recipes.parse_text(text, f"new: {path}")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"new: {path} is there already; name another file") from None
    except OSError as error:
        raise UsageError(f"new: {in_words(error)}") from None


def text_of(method: str, model: str, data: str) -> str:
    """The commented recipe. What it sets of [rewiring] is what the method takes."""
    head, model_table, rest = TEMPLATE.read_text(encoding="utf-8").partition("\n[model]\n")
    model_part, data_table, tail = rest.partition("\n[data]\n")
    head = _set(head, "method", method)
    whole = head + model_table + _set(model_part, "name", model) + data_table
    before, rewiring, after = _set(tail, "name", data).partition("\n[rewiring]")
    lines = after.split("\n")
    for number, line in enumerate(lines):
        if (key := re.match(r"(\w+) = ", line)) and not takes(method, f"rewiring.{key[1]}"):
            lines[number] = f"# {line}"
    return whole + before + rewiring + "\n".join(lines)


def _set(text: str, key: str, value: str) -> str:
    """`text` with `value` at the first line of the key, whose comment stays."""
    line = f"{key} = {recipes.in_toml(value)}"
    pattern = rf'^{key} = "[^"]*"( *)'
    return re.sub(pattern, lambda m: line + (m[1] and "  "), text, count=1, flags=re.MULTILINE)
