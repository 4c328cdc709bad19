"""What an evaluation measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

MANY = 10  # with more classes than these, top-5 accuracy is measured too


def measures(classes: int) -> tuple[str, ...]:
    """The names of what is measured on a part of the data.

    These are mean cross-entropy, top-1 accuracy and, with many classes, top-5 accuracy.
    """
    return ("loss", "accuracy", "top5") if classes > MANY else ("loss", "accuracy")


def hits(output: torch.Tensor, labels: torch.Tensor, best: int = 1) -> torch.Tensor:
    """How many images have their label among their `best` largest outputs [B, classes].

    The count is a tensor, so that nobody has to wait for a GPU.
    """
    if best == 1:
        return (output.argmax(1) == labels).sum()
    return (output.topk(best, dim=1).indices == labels[:, None]).sum()


class Tally:
    """Sums of measures over images."""

    def __init__(self, names: Iterable[str]) -> None:
        self.sums: dict[str, float] = dict.fromkeys(names, 0)

    def add(self, loss: torch.Tensor, output: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds the images of a batch: their summed loss, output [B, classes] and labels [B]."""
        self.sums["loss"] += loss.item()
        self.sums["accuracy"] += int(hits(output, labels))
        if "top5" in self.sums:
            self.sums["top5"] += int(hits(output, labels, 5))

    def means(self, images: int, over_processes: Callable[..., list[float]]) -> dict[str, float]:
        """Each measure's mean over that many images. `over_processes` adds what others have."""
        totals = over_processes(*self.sums.values())
        return {name: total / images for name, total in zip(self.sums, totals, strict=True)}


def named(part: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values under the names of metrics.csv's columns: test_loss, test_accuracy, ..."""
    return {f"{part}_{name}": value for name, value in values.items()}
