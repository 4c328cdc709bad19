"""The build says plainly what it lacks, ships what it needs, and keeps instruction sets apart."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma")


def run_cmake(build: Path, *options: str, **environment: str) -> tuple[int, str]:
    """CMake's exit status and what it prints, with its line breaks folded."""
    known = (f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DSR_")}
    result = subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, *known, *options],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )
    return result.returncode, " ".join((result.stdout + result.stderr).split())


def configure(build: Path, *options: str, **environment: str) -> str:
    """What CMake prints when configuring fails."""
    status, printed = run_cmake(build, *options, **environment)
    assert status != 0
    return printed


def fake_nvcc(folder: Path, *lines: str) -> str:
    """A compiler of which only its version and its complaint are real."""
    script = folder / "nvcc"
    script.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    script.chmod(0o755)
    return str(script)


def test_missing_compiler_is_one_clear_sentence(tmp_path: Path) -> None:
    assert "dsr_kernels compiles C++ and found no compiler: install g++" in configure(
        tmp_path, CXX=str(tmp_path / "no-such-compiler")
    )


def test_missing_openmp_is_one_clear_sentence(tmp_path: Path) -> None:
    printed = configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    assert "dsr_kernels needs OpenMP" in printed
    assert "install g++, or libomp-dev beside clang++" in printed


def test_gpu_kernels_asked_for_without_nvcc_are_refused(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nvcc")
    printed = configure(tmp_path / "build", DSR_CUDA="ON", CUDACXX=nowhere)
    assert f"DSR_CUDA=ON needs the CUDA compiler: there is no '{nowhere}'" in printed
    assert "install the CUDA toolkit 12.0 or newer" in printed
    assert printed.count("CMake Error") == 1


@pytest.mark.parametrize("old", ["release 11.8, V11.8.89", "not a compiler"])
def test_an_older_nvcc_is_refused(tmp_path: Path, old: str) -> None:
    compiler = fake_nvcc(tmp_path, f"echo '{old}'")
    printed = configure(tmp_path / "build", "-DDSR_CUDA=ON", CUDACXX=compiler)
    assert "and 12.0 or newer is needed" in printed


HOST_REFUSED = (
    'case "$*" in *--version*) echo "release 12.4, V12.4.131"; exit 0;; esac',
    'echo "host_config.h:143:2: error: #error -- unsupported GNU version!" >&2; exit 1',
)


def test_a_host_compiler_that_nvcc_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    compiler = fake_nvcc(tmp_path, *HOST_REFUSED)
    printed = configure(tmp_path / "build", DSR_CUDA="ON", CUDACXX=compiler)
    assert f"{compiler} of CUDA 12.4 fails with " in printed
    assert "error: #error -- unsupported GNU version!" in printed
    assert "a C++ compiler it accepts in CUDAHOSTCXX" in printed


@pytest.mark.parametrize(
    "environment,said",
    [
        ({"CUDACXX": "/nowhere/nvcc"}, "GPU kernels: not built: there is no '/nowhere/nvcc'"),
        ({"DSR_CUDA": "OFF"}, "Configuring done"),
    ],
    ids=["auto", "off"],
)
def test_a_build_without_gpu_kernels_goes_on(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    status, printed = run_cmake(tmp_path, **environment)
    assert status == 0 and said in printed
    assert "GPU kernels: built" not in printed
    targets = subprocess.run(
        ["cmake", "--build", tmp_path, "--target", "help"], capture_output=True, text=True
    )
    assert " _C\n" in targets.stdout and " _cuda\n" not in targets.stdout


def no_gpu_in_sight() -> None:
    """Skips the test where this machine has what AUTO looks for."""
    script = ROOT / "csrc/cuda/find_torch.py"
    printed = subprocess.run([sys.executable, "-I", script], capture_output=True, text=True)
    signs = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
    libraries = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    if printed.stdout.strip() or any(map(os.path.exists, signs)) or "libcuda.so.1" in libraries:
        pytest.skip("a GPU's driver or a torch with CUDA is here")


def test_nvcc_alone_builds_no_gpu_kernels_and_says_how_to_ask(tmp_path: Path) -> None:
    no_gpu_in_sight()
    compiler = fake_nvcc(tmp_path, *HOST_REFUSED)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    unset = {"CUDACXX": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": ""}
    status, printed = run_cmake(tmp_path / "build", PATH=path, **unset)
    assert status == 0
    assert f"GPU kernels: not built: there is {compiler}, but neither an NVIDIA driver" in printed
    assert "DSR_CUDA=ON pip install ." in printed


@pytest.mark.parametrize(
    "version,environment,tried",
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", {}, True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", {}, False),
        ("cuda: Optional[str] = None", {"DSR_CUDA_ARCHITECTURES": "90-real"}, True),
    ],
    ids=["torch-with-cuda", "torch-without", "architectures"],
)
def test_a_torch_with_cuda_or_named_targets_ask_for_gpu_kernels(
    tmp_path: Path, version: str, environment: dict[str, str], tried: bool
) -> None:
    no_gpu_in_sight()
    folder = tmp_path / "venv/lib/python3.99/site-packages/torch"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text(version + "\n")
    compiler = fake_nvcc(tmp_path, *HOST_REFUSED)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    given = {"CUDACXX": "", "CONDA_PREFIX": "", "VIRTUAL_ENV": str(tmp_path / "venv")}
    status, printed = run_cmake(tmp_path / "build", PATH=path, **given, **environment)
    assert status == 0
    assert (f"not built: {compiler} of CUDA 12.4 fails with " in printed) == tried


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    printed = configure(tmp_path, DSR_CUDA="MAYBE")
    assert "DSR_CUDA: expected AUTO, ON or OFF, got 'MAYBE'." in printed
    printed = configure(tmp_path, "-DDSR_CUDA=OFF", "-DDSR_CUDA_ARCHITECTURES=80-real,sm_90")
    assert "DSR_CUDA_ARCHITECTURES: expected AUTO, native or numbers such as" in printed
    assert "got 'sm_90'" in printed


def test_the_gpu_module_needs_neither_toolkit_nor_driver() -> None:
    spec = importlib.util.find_spec("dsr_kernels._cuda")
    if spec is None:
        pytest.skip("this build has no GPU kernels")
    printed = subprocess.run(["readelf", "-d", spec.origin], capture_output=True, text=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", printed.stdout)
    assert needed and not [name for name in needed if "cuda" in name]
    asked = "from dsr_kernels import _cuda; print(_cuda.toolkit_version, *_cuda.device_count())"
    told = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    ).stdout
    assert re.match(r"\d+ ([1-9]|0 no CUDA device: \w+)", told)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instruction sets")
def test_instruction_sets_share_no_code(tmp_path: Path) -> None:
    # A function that several builds define under one name is linked once: an AVX-512 copy of a
    # shared helper would then crash processors without AVX-512.
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no g++ on PATH")
    flags = ("-std=c++20", "-O3", "-fopenmp", "-w", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}")
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
    assert {"csrc/cuda/CMakeLists.txt", "csrc/cuda/device.cu"} <= needed
    needed |= {"CMakeLists.txt", "LICENSE", "Makefile", "constraints.txt"}
    needed |= {str(p.relative_to(ROOT)) for p in (ROOT / "dsr_kernels").rglob("*.toml")}
    assert needed <= shipped
