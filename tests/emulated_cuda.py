"""The GPU kernels for the CPU: builds of the emulator, and processes in which they can be loaded.

python tests/emulated_cuda.py thread build/emulated-thread -m pytest -q tests/test_x.py
builds _cuda with that sanitizer beside a copy of the package and its tests, and there runs Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILDS = ("plain", "address", "thread")
LIBRARIES = {"plain": (), "address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}


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
    command = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(command, capture_output=True, text=True)
    if pybind11.returncode != 0:
        raise Missing("no pybind11")
    options = {
        "DSR_CUDA": "OFF",
        "DSR_EMULATE_CUDA": build,
        "CMAKE_CXX_COMPILER": tool("g++"),
        "pybind11_DIR": pybind11.stdout.strip(),
        "Python_EXECUTABLE": sys.executable,
    }
    command = [tool("cmake"), "-S", ROOT, "-B", folder, *(f"-D{k}={v}" for k, v in options.items())]
    configured = subprocess.run(command, capture_output=True, text=True)
    if "needs the headers of the CUDA toolkit" in " ".join(configured.stderr.split()):
        raise Missing("no headers of the CUDA toolkit")
    if configured.returncode != 0:
        raise RuntimeError(configured.stderr)


def make(folder: Path, target: str) -> subprocess.Popen[str]:
    """Starts the build of a target; the files come to lie in output(folder)."""
    command = [tool("cmake"), "--build", folder, "--target", target]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(folder: Path) -> Path:
    return folder / "csrc/cuda/cuda_emulator"


def package(build: str, folder: Path) -> Path:
    """A folder with the package and its tests in which _cuda is emulated."""
    configure(build, folder)
    making = make(folder, "_cuda_emulated")
    printed = making.communicate()[0]
    if making.returncode != 0:
        raise RuntimeError(printed)
    copy = folder / "package"
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("dsr_kernels", "tests"):
        shutil.copytree(ROOT / part, copy / part)
    for module in output(folder).glob("_cuda*.so"):
        shutil.copy(module, copy / "dsr_kernels")
    return copy


def main(build: str, folder: str, *arguments: str) -> int:
    """The exit status of Python, or 0 where the machine lacks something, after saying what."""
    try:
        variables = environment(build)
        copy = package(build, Path(folder).resolve())
    except Missing as missing:
        print(f"skipped: {missing}")
        return 0
    return subprocess.run([sys.executable, *arguments], cwd=copy, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
