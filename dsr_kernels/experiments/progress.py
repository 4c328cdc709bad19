"""What an experiment shows: a bar of cells on a terminal, one line a finished cell everywhere."""

from __future__ import annotations

import sys

BAR = "|{bar}| {n_fmt}/{total_fmt} cells{postfix} [{elapsed}]"


class Progress:
    def __init__(self, total: int, done: int) -> None:
        self.bar = None
        if not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.bar = tqdm(total=total, initial=done, bar_format=BAR, dynamic_ncols=True, leave=False)

    def show(self, ended: int, running: list[str]) -> None:
        """How many cells have ended, and what is running."""
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(running), refresh=False)
            self.bar.n = ended
            self.bar.refresh()

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
