"""Generated parts of pages, between two marks."""

from __future__ import annotations

from pathlib import Path


def renew(page: Path, begin: str, end: str, made: str) -> None:
    """Puts what was made between the page's two marks, in the place of what is there."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")
