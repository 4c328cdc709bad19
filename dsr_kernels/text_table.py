"""Tables as text: columns side by side for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def columns(
    rows: Sequence[Sequence[str]], left: Collection[int] = (), rules: Collection[int] = ()
) -> list[str]:
    """The lines of a table whose columns are as wide as their widest cell, two spaces apart.

    Cells of the columns `left` are aligned to the left, all others to the right. A rule stands
    above each of the rows `rules`.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
    rule = "-" * max(map(len, lines), default=0)
    table: list[str] = []
    for index, line in enumerate(lines):
        table += [rule, line] if index in rules else [line]
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [_markdown_row(header), "|---" * len(header) + "|"]
    return "\n".join(lines + [_markdown_row(row) for row in rows])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
