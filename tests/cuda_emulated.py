"""dsr_kernels._cuda for the CPU: the GPU kernels, run by the emulator of tests/cuda_emulator."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/emulated_cuda"


@functools.cache
def load() -> ModuleType:
    """The emulated module: the file that DSR_CUDA_EMULATED_MODULE names, or one built here.

    Skips the test where it cannot be built for want of tools, sources or the toolkit's headers.
    """
    path = os.environ.get("DSR_CUDA_EMULATED_MODULE") or _build()
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.emulated
    return module


def _build() -> Path:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    tools = {name: shutil.which(name, path=paths) for name in ("cmake", "ninja")}
    if not all(tools.values()) or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the emulated GPU kernels are built from the source tree by cmake and ninja")
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    )
    configured = _run(
        *(tools["cmake"], "-S", ROOT, "-B", BUILD, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DDSR_CUDA=OFF",
        "-DDSR_EMULATE_CUDA=plain",
        f"-Dpybind11_DIR={pybind11.stdout.strip()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    if "needs the headers of the CUDA toolkit" in " ".join(configured.stderr.split()):
        pytest.skip("the emulated GPU kernels need the headers of the CUDA toolkit")
    assert configured.returncode == 0, configured.stderr
    built = _run(tools["ninja"], "-C", BUILD, "_cuda_emulated")
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (BUILD / "csrc/cuda/cuda_emulator").glob("_cuda*.so")
    return path


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
