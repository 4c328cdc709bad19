"""Names that a caller may give, and the closest ones to a name that is none of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


def resembling(got: str, known: Iterable[str], count: int, least: float) -> list[str]:
    """Up to `count` known names that resemble `got`, whatever its case, the closest first.

    `least` is the smallest resemblance that counts: 1 for equal names, 0 for any two.
    """
    by_folded = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(got.casefold(), by_folded, count, least)
    return [by_folded[name] for name in found]


def closest(got: str, known: Iterable[str]) -> str | None:
    """The known name that `got` resembles most; None where none is close."""
    return next(iter(resembling(got, known, 1, 0.6)), None)


def advice(got: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """ "did you mean X?" with the closest known name, or all of them where none is close.

    Of dotted names the part behind the last dot may be what resembles.
    """
    known = list(known)
    leaves = {name.split(".")[-1]: name for name in known}
    close = closest(got, known)
    if close is None and (leaf := closest(got.split(".")[-1], leaves)):
        close = leaves[leaf]
    return f"did you mean {spell(close)}?" if close else f"expected one of {', '.join(known)}"


def unknown(got: str, known: Iterable[str]) -> str:
    """'got'; did you mean X?"""
    return f"'{got}'; {advice(got, known)}"


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError with the closest choice unless `value` is one."""
    choices = list(choices)
    if value not in choices:
        hint = advice(str(value), choices, repr)
        raise ValueError(f"{name}: unknown value {value!r}; {hint}")
