"""What an evaluation measures."""

from __future__ import annotations

from collections.abc import Mapping

import torch

MANY = 10  # of more classes than these the five best are looked at, too


def measures(classes: int) -> tuple[str, ...]:
    """Names of what is measured on a part of the data: mean cross-entropy, top-1 accuracy and, of
    many classes, top-5 accuracy.
    """
    return ("loss", "accuracy", "top5") if classes > MANY else ("loss", "accuracy")


def hits(output: torch.Tensor, labels: torch.Tensor, best: int = 1) -> torch.Tensor:
    """How many images have their label among the `best` largest outputs [B, classes]; a tensor, so
    that a GPU need not be waited for.
    """
    if best == 1:
        return (output.argmax(1) == labels).sum()
    return (output.topk(best, dim=1).indices == labels[:, None]).sum()


def named(part: str, values: Mapping[str, float]) -> dict[str, float]:
    """As columns of metrics.csv: test_loss, test_accuracy, ..."""
    return {f"{part}_{name}": value for name, value in values.items()}
