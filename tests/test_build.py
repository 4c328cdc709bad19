"""The build says plainly what it lacks, ships what it needs, and keeps instruction sets apart."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma")


def configure(build: Path, *options: str, **environment: str) -> str:
    """What CMake prints when configuring fails, with its line breaks folded."""
    result = subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    return " ".join(result.stderr.split())


def test_missing_compiler_is_one_clear_sentence(tmp_path: Path) -> None:
    assert "dsr_kernels compiles C++ and found no compiler: install g++" in configure(
        tmp_path, CXX=str(tmp_path / "no-such-compiler")
    )


def test_missing_openmp_is_one_clear_sentence(tmp_path: Path) -> None:
    printed = configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    assert "dsr_kernels needs OpenMP" in printed
    assert "install g++, or libomp-dev beside clang++" in printed


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instruction sets")
def test_instruction_sets_share_no_code(tmp_path: Path) -> None:
    # A function that several builds define under one name is linked once: an AVX-512 copy of a
    # shared helper would then crash processors without AVX-512.
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no g++ on PATH")
    flags = ("-std=c++17", "-O3", "-fopenmp", "-w", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}")
    compilations = {}
    for source in sorted((ROOT / "csrc/cpu/isa").glob("*.cpp")):
        target = tmp_path / f"{source.stem}.o"
        command = [compiler, "-c", source, "-o", target, *flags, "-DDSR_ISA=avx512"]
        compilations[target] = subprocess.Popen([*command, *AVX512])
    for target, compilation in compilations.items():
        assert compilation.wait() == 0
        listed = subprocess.run(["nm", "-C", target], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            kind, name = line[17:].split(" ", 1)
            if kind in "TWVuDBR" and not name.startswith("DW.ref"):
                assert "dsr::cpu::avx512::" in name, f"{target.stem}.cpp exports {line}"


@pytest.mark.slow
def test_source_distribution_holds_every_native_source(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        shipped = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    needed = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    needed |= {"CMakeLists.txt", "LICENSE", "Makefile", "constraints.txt"}
    needed |= {str(p.relative_to(ROOT)) for p in (ROOT / "dsr_kernels").rglob("*.toml")}
    assert needed <= shipped
