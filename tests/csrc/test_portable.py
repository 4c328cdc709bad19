"""The portable kernels as a program without Python: built here, and for aarch64 under qemu.

The builds are kept in build/, so that only the first run of these tests takes its half minute.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers.cuda_emulated import Missing, tool

ROOT = Path(__file__).parents[2]
AARCH64 = "aarch64-linux-gnu"


def build(folder: Path, **options: str) -> Path:
    """The program portable_check, built with these options; skips where tools are missing."""
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the check is built from the source tree")
    known = {"DSR_PORTABLE_CHECK": "ON", "CMAKE_MAKE_PROGRAM": needed("ninja"), **options}
    command = [needed("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja"]
    command += [f"-D{name}={value}" for name, value in known.items()]
    for step in (command, [known["CMAKE_MAKE_PROGRAM"], "-C", folder, "portable_check"]):
        made = subprocess.run(step, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    return folder / "portable_check"


def needed(name: str) -> str:
    try:
        return tool(name)
    except Missing as missing:
        pytest.skip(str(missing))


def check(*command: str | Path) -> None:
    """Runs the program: it must find the wide and the narrow, every kind of lanes, and no error."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[-1] == "all right"
    assert sum(line.endswith("lanes plane row batch") for line in lines) >= 5
    assert any(line.startswith("rewire: ") for line in lines)


def test_the_portable_kernels_agree_with_plain_loops() -> None:
    needed("g++")
    check(build(ROOT / "build/portable"))


@pytest.mark.slow
def test_the_portable_kernels_agree_with_plain_loops_on_aarch64() -> None:
    compiler, emulator = needed(f"{AARCH64}-g++"), needed("qemu-aarch64")
    program = build(
        ROOT / "build/portable-aarch64",
        CMAKE_SYSTEM_NAME="Linux",
        CMAKE_SYSTEM_PROCESSOR="aarch64",
        CMAKE_CXX_COMPILER=compiler,
    )
    check(emulator, "-L", f"/usr/{AARCH64}", program)
