"""Names that a caller may give, and the closest one to a name that is none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def closest(got: str, known: Iterable[str]) -> str | None:
    """The known name that `got` resembles most, whatever its case; None where none is close."""
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(got.casefold(), by_folded, 1, 0.6)
    return by_folded[close[0]] if close else None


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError with the closest choice unless `value` is one."""
    choices = list(choices)
    if value in choices:
        return
    close = closest(str(value), choices)
    tail = f"did you mean {close!r}?" if close else f"expected one of {', '.join(choices)}"
    raise ValueError(f"{name}: unknown value {value!r}; {tail}")
