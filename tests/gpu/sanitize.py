"""Runs the tests marked `sanitizer` under the tools of compute-sanitizer, one after the other.

    python tests/gpu/sanitize.py [--tool memcheck] [--tool racecheck] ...

Prints a line for each tool, and the end of its output where it found something. Exit status: how
many tools found something or did not finish; 2 where there is no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
OURS = ("--kernel-regex", "kns=dsr")  # our kernels only, by their namespace
FOUND = 86  # the exit status where a tool found something
# Tensors of their own, so that reading beyond one does not end in another.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "DSR_TEST_DEVICE": "cuda"}
TESTS = [
    *("-m", "pytest", "tests/gpu", "-m", "gpu and sanitizer"),
    *("-q", "-x", "-p", "no:cacheprovider", "--no-header"),
]


def command(sanitizer: str, tool: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "10"]
    if tool != "initcheck":  # which has to see all that writes
        options += OURS
    return [sanitizer, *options, sys.executable, *TESTS]


def run(sanitizer: str, tool: str, seconds: float) -> bool:
    """Whether the tests passed and the tool found nothing; says so."""
    start = time.monotonic()
    process = subprocess.Popen(
        command(sanitizer, tool),
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        status = "" if process.returncode == 0 else f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tool and the Python below it
        output, _ = process.communicate()
        status = f"not finished after {seconds:g} s"
    passed = re.search(r"\d+ passed.*", output)
    summary = re.search(r"(ERROR|RACECHECK) SUMMARY: .*", output)
    if not status and not (passed and summary):
        status = "no test ran" if not passed else "no summary"
    says = [m.group() for m in (summary, passed) if m]
    verdict = f"FAILED: {status}" if status else "ok"
    taken = f"{time.monotonic() - start:.0f} s"
    print(f"{tool:<10} " + "; ".join([verdict, *says, taken]), flush=True)
    if status:
        print(output[-6000:], flush=True)
    return not status


def main() -> int:
    parser = argparse.ArgumentParser(description="compute-sanitizer on a few small GPU tests")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="default: all, in turn")
    parser.add_argument("--seconds", type=float, default=60, help="for each tool (default: 60)")
    options = parser.parse_args()
    name = "compute-sanitizer"
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / name
    sanitizer = shutil.which(name) or shutil.which(toolkit)
    if sanitizer is None:
        print(f"{name}, a part of the CUDA toolkit, is neither on PATH nor {toolkit}")
        return 2
    tools = options.tool or TOOLS
    return sum(not run(sanitizer, tool, options.seconds) for tool in tools)


if __name__ == "__main__":
    sys.exit(main())
