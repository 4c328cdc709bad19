"""The GPU kernels for the CPU, run by the emulator of tests/cuda_emulator.

Tests take the module from load(). To watch the kernels with a sanitizer,

    python tests/helpers/cuda_emulated.py thread build/emulated-thread -m pytest -q tests/test_x.py

builds _cuda with it beside a copy of the package and its tests, and there runs Python.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "build/emulated-plain"
BUILDS = ("plain", "address", "thread")
LIBRARIES = {"plain": (), "address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}


@functools.cache
def load() -> ModuleType:
    """The emulated module: the file that DSR_CUDA_EMULATED_MODULE names, or one built here.

    Skips the test where it cannot be built for want of tools, sources or the toolkit's headers.
    """
    try:
        path = os.environ.get("DSR_CUDA_EMULATED_MODULE") or build_module("plain", PLAIN)
    except Missing as missing:
        pytest.skip(str(missing))
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.emulated
    return module


class Missing(Exception):
    """What this machine lacks, in words."""


def tool(name: str) -> str:
    """A program of the environment that Python runs in, or of PATH."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=places)
    if found is None:
        raise Missing(f"no {name}")
    return found


def libraries(build: str) -> list[str]:
    """The sanitizers' runtimes, to be loaded before Python itself, which has none."""
    found = []
    for name in LIBRARIES[build]:
        command = [tool("g++"), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not os.path.isabs(path):
            raise Missing(f"g++ has no {name}")
        found.append(path)
    return found


def environment(build: str) -> dict[str, str]:
    """For a Python process that loads this build: a report makes its exit status non-zero.

    Reports go to the descriptor of stderr, which pytest keeps: run it with --capture=sys.
    """
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries(build)),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Python, torch and OpenMP synchronize in ways that ThreadSanitizer does not see.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
        "OMP_NUM_THREADS": "1",
    }


def configure(build: str, folder: Path) -> None:
    if not (ROOT / "CMakeLists.txt").exists():
        raise Missing("the emulated GPU kernels are built from the source tree")
    command = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(command, capture_output=True, text=True)
    if pybind11.returncode != 0:
        raise Missing("no pybind11")
    options = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "CMAKE_CXX_COMPILER": tool("g++"),
        "DSR_CUDA": "OFF",
        "DSR_EMULATE_CUDA": build,
        "pybind11_DIR": pybind11.stdout.strip(),
        "Python_EXECUTABLE": sys.executable,
    }
    command = [tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja"]
    command += [f"-D{name}={value}" for name, value in options.items()]
    configured = subprocess.run(command, capture_output=True, text=True)
    if "needs the headers of the CUDA toolkit" in " ".join(configured.stderr.split()):
        raise Missing("no headers of the CUDA toolkit")
    if configured.returncode != 0:
        raise RuntimeError(configured.stderr)


def make(folder: Path, target: str) -> Path:
    """Builds a target; the folder that its files lie in."""
    command = [tool("ninja"), "-C", folder, target]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        raise RuntimeError(made.stdout + made.stderr)
    return folder / "csrc/cuda/cuda_emulator"


def build_module(build: str, folder: Path) -> Path:
    """The file of the module _cuda. Processes of tests take turns: one builds, the others find."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        configure(build, folder)
        (path,) = make(folder, "_cuda_emulated").glob("_cuda*.so")
    return path


def main(build: str, folder: str, *arguments: str) -> int:
    """The exit status of Python, or 0 where the machine lacks something, after saying what."""
    try:
        variables = environment(build)
        module = build_module(build, Path(folder).resolve())
    except Missing as missing:
        print(f"skipped: {missing}")
        return 0
    copy = Path(folder).resolve() / "package"
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("dsr_kernels", "tests"):
        shutil.copytree(ROOT / part, copy / part)
    shutil.copy(module, copy / "dsr_kernels")
    variables["DSR_CUDA_EMULATED_MODULE"] = str(module)
    return subprocess.run([sys.executable, *arguments], cwd=copy, env=variables).returncode


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in LIBRARIES:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(LIBRARIES)} FOLDER PYTHON-ARGUMENTS...")
    sys.exit(main(*sys.argv[1:]))
