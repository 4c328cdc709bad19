"""What training shows: a progress bar on a terminal, and one line for each epoch."""

from __future__ import annotations

import sys
from typing import Any

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed}, {remaining} left]"


class Bar:
    """tqdm's progress bar, if it is wanted and installed, and lines that do not disturb it."""

    def __init__(self, wanted: bool, **options: Any) -> None:
        self.bar = None
        if not wanted:
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.bar = tqdm(dynamic_ncols=True, leave=False, **options)

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Progress(Bar):
    """A bar over all iterations of the run, with loss, accuracy, images/s and the time left."""

    def __init__(self, total: int, done: int, epochs: int, quiet: bool | None = None) -> None:
        wanted = sys.stderr.isatty() if quiet is None else not quiet
        super().__init__(wanted, total=total, initial=done, bar_format=BAR, mininterval=0.25)
        self.epochs = epochs

    def iteration(self, epoch: int, means: tuple[float, float] | None, speed: float) -> None:
        """means: loss and accuracy, as far as they are known."""
        if self.bar is None:
            return
        self.bar.set_description_str(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
        text = "" if means is None else f"loss {means[0]:.3f}, accuracy {means[1]:.1%}, "
        text += f"{speed:.0f} images/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()

    def epoch(self, row: dict[str, Any], speed: float) -> None:
        """Prints one line for a finished epoch."""
        line = f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
        line += f"  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.2%}"
        for part in ("validation", "test"):
            if row.get(f"{part}_accuracy") is not None:
                line += f"  {part} {row[f'{part}_accuracy']:.2%}"
            if row.get(f"{part}_top5") is not None:
                line += f" (top-5 {row[f'{part}_top5']:.2%})"
        self.say(f"{line}  {speed:.0f} images/s")
