"""The peak memory of some code, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Not ru_maxrss: that one starts at what the parent held when it forked, and so hides growth.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""


def peak_growth(preamble: str, code: str) -> float:
    """MB by which `code` raises the peak that `preamble` has left; on Linux only."""
    measured = ["before = peak()", code, "print((peak() - before) / 1024)"]
    script = "\n".join([PEAK, preamble, *measured])
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return float(result.stdout)
