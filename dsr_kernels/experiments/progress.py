"""What an experiment shows: a bar of cells on a terminal, and one line for each finished cell."""

from __future__ import annotations

import sys

from dsr_kernels.training.progress import Bar

FORMAT = "|{bar}| {n_fmt}/{total_fmt} cells{postfix} [{elapsed}]"


class Progress(Bar):
    """A bar over all cells of the grid."""

    def __init__(self, total: int, done: int) -> None:
        super().__init__(sys.stderr.isatty(), total=total, initial=done, bar_format=FORMAT)

    def show(self, ended: int, running: list[str]) -> None:
        """Shows how many cells have ended, and which are running."""
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(running), refresh=False)
            self.bar.n = ended
            self.bar.refresh()
