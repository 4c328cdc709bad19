"""Dynamic sparse reparameterization (Mostafa & Wang, ICML 2019, arXiv 1902.05967)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dsr_kernels.rewiring.engine import Rewirer
from dsr_kernels.rewiring.schedule import as_int

DEFAULT_FRACTION = 0.1


class DSR(Rewirer):
    """Prunes the smallest weights of the whole network and regrows as many where weights survive.

    One rewire: prune every |w| < H over all layers; give each layer back a share of what was
    pruned in proportion to its survivors; grow at uniformly random positions that were zero
    before; start grown weights and their optimizer state at 0. Layers therefore trade non-zeros,
    and their total is conserved exactly. A layer always keeps its largest weight.

    Args:
        model: holds the sparse modules. Frozen ones (`values.requires_grad` False) are left alone.
        optimizer: holds their values; its state (momentum, moments) moves with the survivors.
        prune_fraction: N_p as a share of the non-zeros, in (0, 1); 0.1 if neither is given.
        prune_count: N_p, how many weights a rewire should prune.
        threshold: "adaptive" prunes below H and then doubles (halves) H for the next rewire if
            fewer than (1 - tolerance) N_p (more than (1 + tolerance) N_p) lay below it, as in the
            paper. "exact" prunes exactly the N_p smallest, found by selection over all layers.
        initial_threshold: H of the first rewire ("adaptive").
        tolerance: see `threshold`.
        every, schedule, stop, seed: see `Rewirer`.

    Raises ValueError for arguments out of range, a model without trainable sparse modules, and an
    optimizer that does not hold their values.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        prune_fraction: float | None = None,
        prune_count: int | None = None,
        threshold: str = "adaptive",
        initial_threshold: float = 1e-3,
        tolerance: float = 0.1,
        every: int | None = None,
        schedule: Sequence[tuple[int, int]] | None = None,
        stop: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, every=every, schedule=schedule, stop=stop, seed=seed)
        if optimizer is None:
            raise ValueError("optimizer: expected the optimizer of the model's values, got None")
        if self.nnz == 0:
            raise ValueError("model: expected a trainable sparse module, all of them are frozen")
        if threshold not in ("adaptive", "exact"):
            raise ValueError(f"threshold: expected 'adaptive' or 'exact', got {threshold!r}")
        if not 0 < initial_threshold < math.inf:
            raise ValueError(
                f"initial_threshold: expected a finite number > 0, got {initial_threshold!r}"
            )
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance: expected a number in [0, 1), got {tolerance!r}")
        self.mode = threshold
        self.threshold = float(initial_threshold) if threshold == "adaptive" else 0.0
        self.tolerance = float(tolerance)
        self.prune_count = _target(prune_fraction, prune_count, self.nnz)

    def _prune(self, plan: Any) -> tuple[float, float]:
        if self.mode == "exact":
            plan.prune_smallest(self.prune_count)
            return plan.cut, plan.cut
        plan.prune_below(self.threshold)
        return self.threshold, self._adapted(plan.below, plan.prunable)

    def _adapted(self, below: int, prunable: int) -> float:
        """H of the next rewire, when `below` of `prunable` weights lay below this one's.

        Beyond the paper: H stops rising once everything lies below it and never underflows to 0, so
        that a target out of reach cannot drive it where no later rewire brings it back from.
        """
        if below < (1 - self.tolerance) * self.prune_count:
            return 2 * self.threshold if below < prunable else self.threshold
        if below > (1 + self.tolerance) * self.prune_count:
            return max(self.threshold / 2, sys.float_info.min)
        return self.threshold

    def _policy_state(self) -> dict[str, Any]:
        return {"mode": self.mode, "threshold": self.threshold, "prune_count": self.prune_count}

    def _load_policy_state(self, state: dict[str, Any]) -> None:
        if state["mode"] != self.mode:
            raise ValueError(
                f"state_dict: expected a state of threshold={self.mode!r}, got {state['mode']!r}"
            )
        threshold = float(state["threshold"])
        if not 0 <= threshold < math.inf or (self.mode == "adaptive" and threshold == 0):
            raise ValueError(f"threshold: expected a finite number > 0, got {threshold!r}")
        self.prune_count = as_int(state["prune_count"], "prune_count", 1)
        self.threshold = threshold


def _target(fraction: float | None, count: int | None, nnz: int) -> int:
    """N_p from whichever way it was given."""
    if fraction is not None and count is not None:
        raise ValueError(
            f"prune_fraction, prune_count: expected at most one of them, got {fraction!r} and "
            f"{count!r}"
        )
    if count is not None:
        count = as_int(count, "prune_count", 1)
        if count > nnz:
            raise ValueError(
                f"prune_count: expected at most the model's {nnz} non-zeros, got {count}"
            )
        return count
    fraction = DEFAULT_FRACTION if fraction is None else fraction
    if not 0 < fraction < 1:
        raise ValueError(f"prune_fraction: expected a number in (0, 1), got {fraction!r}")
    return max(1, round(fraction * nnz))
