"""Tries an installed wheel beside torch: one OpenMP runtime, kernels, a rewire, a short training.

python .ci/try_wheel.py [--gpu-kernels]    # in an empty folder, not in the source tree
"""

import re
import subprocess
import sys
from pathlib import Path

import torch

import dsr_kernels
from dsr_kernels.backends.native import _cuda

RUNTIME = re.compile(r"/lib(gomp|omp|iomp5)\b[^/]*$")


def openmp_runtimes():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if RUNTIME.search(line)}


def main():
    torch.set_num_threads(2)
    layer = dsr_kernels.SparseConv2d(16, 16, 3, padding=1, sparsity=0.9)
    x = torch.randn(4, 16, 8, 8)
    torch.testing.assert_close(layer(x), layer.dense_module()(x))
    layer(x).sum().backward()
    assert len(openmp_runtimes()) == 1, openmp_runtimes()
    assert (_cuda is not None) == ("--gpu-kernels" in sys.argv)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    dsr_kernels.rewiring.SET(layer, optimizer, fraction=0.5, every=1).step()
    dsr = [sys.executable, "-m", "dsr_kernels"]
    subprocess.run([*dsr, "info"], check=True)
    recipe = ["--recipe", "lenet300-digits", "--set", "training.epochs=1", "--out", "try-wheel"]
    subprocess.run([*dsr, "train", *recipe], check=True)


main()
