"""Dynamic sparse training: which positions hold the non-zeros changes while the network trains.

    rewirer = DSR(model, optimizer, prune_fraction=0.1, every=100, total=25_000)
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        rewirer.step()  # counts the iteration, rewires when one is due

Or `rewirer.attach()` once, in the place of the last line: then the optimizer's steps call it.

A method is a policy in a file of its own in `methods/`, on one engine (`rewirer.py`). What each of
them prunes, and where as many weights grow:

    DSR     dsr.py     smallest of all layers; random, where weights survive   Mostafa & Wang 2019
    Static  static.py  nothing
    SET     set.py     smallest of each layer; random, in the same layer       Mocanu et al. 2018
    DeepR   deepr.py   those that change sign; random, in the same layer       Bellec et al. 2018
    RigL    rigl.py    smallest of each layer; by gradient, in the same layer  Evci et al. 2020
    SNFS    snfs.py    smallest of each layer; by gradient and momentum        Dettmers & Z. 2019
    GMP     gmp.py     smallest, on a schedule; nothing grows                  Zhu & Gupta 2017
"""

from dsr_kernels.rewiring.methods.deepr import DeepR
from dsr_kernels.rewiring.methods.dsr import DSR
from dsr_kernels.rewiring.methods.gmp import GMP
from dsr_kernels.rewiring.methods.rigl import RigL
from dsr_kernels.rewiring.methods.set import SET
from dsr_kernels.rewiring.methods.snfs import SNFS
from dsr_kernels.rewiring.methods.static import Static
from dsr_kernels.rewiring.report import LayerReport, RewireReport
from dsr_kernels.rewiring.rewirer import Rewirer

METHODS: dict[str, type[Rewirer]] = {  # by their names in recipes
    "dsr": DSR,
    "static": Static,
    "set": SET,
    "deepr": DeepR,
    "rigl": RigL,
    "snfs": SNFS,
    "gmp": GMP,
}

__all__ = [
    "DSR",
    "GMP",
    "METHODS",
    "SET",
    "SNFS",
    "DeepR",
    "LayerReport",
    "RewireReport",
    "Rewirer",
    "RigL",
    "Static",
]
