"""What an experiment shows: a bar of cells on a terminal, one line a finished cell everywhere."""

from __future__ import annotations

import sys

from dsr_kernels.training.progress import Bar

FORMAT = "|{bar}| {n_fmt}/{total_fmt} cells{postfix} [{elapsed}]"


class Progress(Bar):
    def __init__(self, total: int, done: int) -> None:
        super().__init__(sys.stderr.isatty(), total=total, initial=done, bar_format=FORMAT)

    def show(self, ended: int, running: list[str]) -> None:
        """How many cells have ended, and what is running."""
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(running), refresh=False)
            self.bar.n = ended
            self.bar.refresh()
