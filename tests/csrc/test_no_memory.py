"""Memory that cannot be had, in a process of its own: a MemoryError, and nothing has changed."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREPARE = """
import resource
import torch
from dsr_kernels.backends.native import _C

def limit(room):
    with open("/proc/self/statm") as sizes:
        used = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
"""
# Two layers of 2^21 entries, whose magnitudes as doubles take 16 MiB each.
SELECT = """
rows, length = 2**11, 2**10
crow = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
col = torch.arange(length, dtype=torch.int32).repeat(rows)
crow, col = crow.clone(), col.clone()
scores = torch.rand(rows * length)
layers = [
    (name, rows, 2 * length, col.numel(), crow.data_ptr(), col.data_ptr(), scores.data_ptr(),
     "float32", i)
    for i, name in enumerate("ab")
]
plan = _C.RewirePlan(layers, 2)
plan.prune_smallest_each([5, 5])  # the threads are there
before = plan.thresholds
limit(8 << 20)
try:
    plan.prune_smallest_each([5, 5])
except MemoryError:
    print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
plan.prune_smallest_each([5, 5])
assert plan.thresholds == before
"""
# A method whose rewire selects in each layer: the model is as it was, and goes on.
REWIRE = """
from torch import nn
from dsr_kernels import SparseLinear
from dsr_kernels.rewiring import SET

model = nn.Sequential(SparseLinear(4096, 1024, nnz=2**21), SparseLinear(4096, 1024, nnz=2**21))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rewirer = SET(model, optimizer, fraction=0.3)
rewirer.rewire()
before = [t.clone() for t in model.state_dict().values()]
limit(8 << 20)
try:
    rewirer.rewire()
except MemoryError:
    print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert all(map(torch.equal, before, model.state_dict().values()))
assert rewirer.rewires == 1
rewirer.rewire()
"""
# A plan of 2^21 non-zeros takes 8 bytes for each of them.
PLAN = """
rows, length = 2**11, 2**10
crow = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
col = torch.arange(length, dtype=torch.int32).repeat(rows)
size = {"height": 1, "width": 1, "out_size": (1, 1)}
kernel = {name: (1, 1) for name in ("kernel", "stride", "dilation")}
arguments = {"out_channels": rows, "in_channels": length, **size, **kernel, "padding": (0, 0)}
pattern = {"crow": crow.data_ptr(), "col": col.data_ptr(), "blocks": col.numel()}
limit(8 << 20)
try:
    _C.ConvPlan(**arguments, groups=1, dtype="float32", **pattern)
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("script", [SELECT, REWIRE, PLAN], ids=["select", "rewire", "plan"])
def test_it_is_a_memory_error(script: str) -> None:
    code = PREPARE + script
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MemoryError"]
