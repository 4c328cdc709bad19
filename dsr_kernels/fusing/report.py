"""What fuse says: which layers run inside others, what did not become so, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsr_kernels import text_table

HEADER = ("layer", "what", "how it runs now")


@dataclass(frozen=True)
class Row:
    layer: str
    what: str  # its class, or "+"
    fused: bool
    note: str


@dataclass(frozen=True)
class FuseReport:
    """The layers of a model that fuse looked at, in order. Printed, it is a table."""

    rows: list[Row] = field(default_factory=list)
    not_traced: dict[str, str] = field(default_factory=dict)  # module -> why

    @property
    def fused(self) -> list[Row]:
        return [row for row in self.rows if row.fused]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if not row.fused]

    def __str__(self) -> str:
        lines = []
        if self.rows:
            table = [(row.layer, row.what, row.note) for row in self.rows]
            lines = text_table.columns([HEADER, *table], left=(0, 1, 2), rules=(1,))
        lines += [f"{name}: its forward {why}" for name, why in self.not_traced.items()]
        if not self.rows:
            lines.append("no batch norm and no sum was found to fuse")
        lines.append(f"{len(self.fused)} fused, {len(self.left)} left as they are")
        return "\n".join(lines)
