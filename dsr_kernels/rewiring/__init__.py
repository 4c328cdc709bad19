"""Dynamic sparse training: which positions hold the non-zeros changes while the network trains.

    rewirer = DSR(model, optimizer, prune_fraction=0.1, every=100)
    for batch in batches:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        rewirer.step()  # counts the iteration, rewires when one is due

A method is a policy (`dsr.py`, `static.py`) on top of one engine (`engine.py`).
"""

from dsr_kernels.rewiring.dsr import DSR
from dsr_kernels.rewiring.engine import Rewirer
from dsr_kernels.rewiring.report import LayerReport, RewireReport
from dsr_kernels.rewiring.static import Static

__all__ = ["DSR", "LayerReport", "RewireReport", "Rewirer", "Static"]
