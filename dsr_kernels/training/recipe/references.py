"""Names in a recipe of what lies elsewhere: "timm:resnet50", or "package.module:function"."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError

LIBRARY = re.compile(r"(\w+):([\w./-]+)")
FUNCTION = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


class Reference(NamedTuple):
    """`where` is a library that is known by its name, or a module of the user's."""

    where: str
    name: str


def find(text: str, libraries: Collection[str]) -> Reference | None:
    """What `text` refers to; None where it is no such name."""
    of_library, of_module = LIBRARY.fullmatch(text), FUNCTION.fullmatch(text)
    if of_library and of_library[1] in libraries:
        return Reference(of_library[1], of_library[2])
    return Reference(of_module[1], of_module[2]) if of_module else None


def forms(libraries: Collection[str]) -> str:
    """The forms of a reference, for a message."""
    return " or ".join([*(f"{library}:NAME" for library in libraries), "package.module:function"])


def imported(reference: Reference, key: str) -> Callable[..., Any]:
    """The user's function. Modules are looked for in the current folder, too.

    Raises UsageError, which names the recipe's `key`, where there is none. What an error in the
    user's code was is printed.
    """
    where, name = reference
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # for good: the function, and workers, may import more
    try:
        found: Any = importlib.import_module(where)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{where}.".startswith(f"{missing}."):
            raise failed(error, f"recipe: {key}: importing {where}") from None
        raise UsageError(
            f"recipe: {key}: there is no module {missing} in {os.getcwd()} or on Python's path; "
            "start in the folder that holds it, or name that folder in PYTHONPATH"
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            known = [other for other in dir(found) if callable(getattr(found, other, None))]
            raise UsageError(f"recipe: {key}: {where} has no {unknown(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"recipe: {key}: expected a function or a class, got {where}:{name} of type "
            f"{type(found).__name__}"
        )
    return found


def call(
    function: Callable[..., Any], key: str, arguments: Mapping[str, Any], offered: Mapping[str, Any]
) -> Any:
    """What `function` gives for the recipe's arguments, and those of `offered` that it names.

    Raises UsageError for arguments that it does not take and for an error in it, which is printed.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C
        signature = None
    named = set() if signature is None else set(signature.parameters)
    given = {name: value for name, value in offered.items() if name in named} | dict(arguments)
    if signature is not None:
        try:
            signature.bind(**given)
        except TypeError as error:
            raise UsageError(
                f"recipe: {key}: {error}; set {key.partition('.')[0]}.arguments"
            ) from None
    try:
        return function(**given)
    except UsageError:
        raise
    except Exception as error:
        raise failed(error, f"recipe: {key}") from None


def failed(error: Exception, what: str) -> Exception:
    """What to raise for an error in code that is not ours, whose traceback is printed first.

    Memory that runs out is left as it is.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return UsageError(f"{what} failed: {type(error).__name__}: {error}")
