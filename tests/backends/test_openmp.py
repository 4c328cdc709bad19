"""Torch and the compiled core share one OpenMP runtime, whatever its file is called."""

from __future__ import annotations

import ctypes.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsr_kernels.backends import openmp
from dsr_kernels.backends.native import _C

LOADED = """
import re, torch

def runtimes():
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "/" in line}
    return {file for file in files if re.search(r"/lib(gomp|omp|iomp5)\\b[^/]*$", file)}

torch.set_num_threads(2)
torch.ones(1 << 20).exp()
before = runtimes()
import dsr_kernels
dsr_kernels.SparseLinear(256, 256)(torch.ones(256, 256)).sum().backward()
assert runtimes() == before, runtimes() - before
assert len(before) == 1, before
"""


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_second_runtime_is_loaded():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_the_core_asks_for_no_runtime_by_name():
    if "__kmpc_" in printed("readelf", "-sW", "--dyn-syms", _C.__file__):
        pytest.skip("clang++ has built it, for libomp")
    assert "omp" not in printed("readelf", "-d", _C.__file__).casefold()


@pytest.fixture
def renamed(tmp_path: Path) -> Path:
    """A library that is linked to a runtime with a name as auditwheel gives."""
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("no gcc")
    build = (compiler, "-shared", "-fPIC", "-x", "c", "-", "-o")
    runtime = tmp_path / "libgomp-a34b3233.so.1"
    library = tmp_path / "libcomputes.so"
    text = "int only_here(void) { return 7; } void GOMP_parallel(void) {}"
    named = f"-Wl,-soname,{runtime.name}"
    subprocess.run([*build, runtime, named], input=text, text=True, check=True)
    text = "void GOMP_parallel(void); void compute(void) { GOMP_parallel(); }"
    linked = ("-Wl,-rpath,$ORIGIN", "-x", "none", str(runtime))
    subprocess.run([*build, library, *linked], input=text, text=True, check=True)
    return library


def test_a_renamed_runtime_is_found_and_made_visible(renamed):
    program = f"""
import ctypes.util
from pathlib import Path
from dsr_kernels.backends import openmp
openmp.LIBRARY = Path({str(renamed)!r})
ctypes.CDLL(str(openmp.LIBRARY))
assert not hasattr(ctypes.CDLL(None), "only_here")
openmp.share()
print(ctypes.CDLL(None).only_here(), openmp.runtime_of(openmp.LIBRARY))
"""
    runtime = renamed.with_name("libgomp-a34b3233.so.1")
    assert printed(sys.executable, "-c", program).split() == ["7", str(runtime)]


def test_without_any_runtime_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    assert openmp.runtime_of(tmp_path / "nowhere.so") is None
    assert openmp.runtime_of(Path(ctypes.util.find_library("m") or "libm.so.6")) is None
    monkeypatch.setattr(openmp, "LIBRARY", tmp_path / "nowhere.so")
    monkeypatch.setattr(openmp, "ANY", "libgomp-nowhere.so.1")
    with pytest.raises(ImportError, match=r"libgomp-nowhere.*: apt install libgomp1"):
        openmp.share()
