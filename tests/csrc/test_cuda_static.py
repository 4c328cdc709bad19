"""What ptxas made of the GPU kernels, for every architecture: nothing spilled, nothing narrow."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_static import table
from cuda_static.budgets import BUDGETS, MULTIPROCESSORS
from cuda_static.kernels import Kernel, find_cuobjdump, find_module, instructions, read

PAGE = Path(__file__).parents[2] / "docs/cuda.md"

pytestmark = pytest.mark.skipif(
    find_cuobjdump() is None, reason="no cuobjdump: neither the CUDA toolkit's nor Triton's"
)


@pytest.fixture(scope="module")
def module() -> Path:
    found = find_module()
    if found is None:
        pytest.skip("this build has no GPU kernels: there was no nvcc, or DSR_CUDA=OFF")
    return found


@pytest.fixture(scope="module")
def kernels(module: Path) -> list[Kernel]:
    return read(module)


def test_every_kernel_is_there_for_every_architecture(kernels: list[Kernel]) -> None:
    from dsr_kernels import _cuda

    built = {int(part.split("-")[0]) for part in _cuda.architectures.split(",")}
    for architecture in built:
        here = {(k.name, k.types) for k in kernels if k.architecture == architecture}
        assert here == {(k.name, k.types) for k in kernels} != set()


def test_every_kernel_states_its_budget_and_none_is_left_over(kernels: list[Kernel]) -> None:
    names = {kernel.name for kernel in kernels}
    assert not names - BUDGETS.keys(), f"state a budget for {sorted(names - BUDGETS.keys())}"
    assert not BUDGETS.keys() - names, f"no such kernel: {sorted(BUDGETS.keys() - names)}"


def test_nothing_is_spilled_and_nothing_lies_in_local_memory(kernels: list[Kernel]) -> None:
    bad = [
        f"{kernel}: {kernel.stack} bytes of stack, {kernel.local} of local memory, "
        f"{kernel.spills} spills and refills"
        for kernel in kernels
        if kernel.stack or kernel.local or kernel.spills
    ]
    assert not bad, "\n".join(bad)


def test_registers_leave_room_for_the_stated_thread_blocks(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert kernel.threads, f"{kernel}: has no __launch_bounds__"
        limits = MULTIPROCESSORS[kernel.architecture]
        fitting = limits.blocks_by_registers(kernel.registers, kernel.threads)
        expected = min(BUDGETS[kernel.name].blocks, limits.threads // kernel.threads)
        assert fitting >= expected, f"{kernel}: {kernel.registers} registers, {fitting} blocks"


def test_static_shared_memory_is_within_the_budget(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert kernel.shared <= BUDGETS[kernel.name].shared, f"{kernel}: {kernel.shared} bytes"


def test_every_multiply_add_is_fed_by_vectors_and_none_by_local_memory(
    module: Path, kernels: list[Kernel]
) -> None:
    looked_at = [kernel for kernel in kernels if kernel.architecture == 90]
    if not looked_at:
        pytest.skip("this build has no code for sm_90")
    code = instructions(module, 90)
    for kernel in looked_at:
        found = code[kernel.symbol]
        budget = BUDGETS[kernel.name]
        assert not [name for name in found if name.startswith(("LDL", "STL"))], str(kernel)
        assert any(name.startswith(budget.load) for name in found), f"{kernel}: no {budget.load}"
        if budget.matrices:
            # One load of matrices feeds one instruction at least.
            by = "HMMA.1688.F32.TF32" if kernel.types.startswith("float") else "HMMA.16816.F32"
            multiply_adds = sum(n for name, n in found.items() if name.startswith(by))
            others = sum(n for name, n in found.items() if name.startswith("HMMA")) - multiply_adds
            loads = sum(n for name, n in found.items() if name.startswith("LDSM.16.M"))
            assert 0 < loads <= multiply_adds, f"{kernel}: {multiply_adds}, {loads}"
            assert not others, f"{kernel}: {others} matrix instructions of another type"
            if kernel.types.startswith("float") and not kernel.name.startswith("fused"):
                assert any(name.startswith("LDGSTS") for name in found), f"{kernel}: no cp.async"
        if budget.slab:
            # 16 bytes read from the slab feed as many multiply-adds as they hold elements.
            elements = 4 if kernel.types.startswith("float") else 8
            reads, multiply_adds = found["LDS.128"], found["FFMA"]
            fed = elements * reads
            enough = multiply_adds > fed if budget.maps else multiply_adds == fed
            assert enough and fed > 0, f"{kernel}: {multiply_adds}, {reads}"


def test_the_table_of_the_documentation_is_of_this_build(
    module: Path, kernels: list[Kernel]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    toolkit = table.toolkit_of(module)
    if f"Compiled with CUDA {toolkit};" not in page:
        pytest.skip(f"the table is of another toolkit than CUDA {toolkit}")
    if {kernel.architecture for kernel in kernels} != MULTIPROCESSORS.keys():
        pytest.skip("the table is of a build for every architecture")
    assert table.section(kernels, toolkit) in page, "make cuda-table renews it"


PLANTED = """
__global__ void __launch_bounds__(64) planted(const int* at, float* out) {
  __shared__ float shared[96];
  float indexed[64];
  for (int i = 0; i < 64; ++i) indexed[i] = out[i] + i;
  shared[threadIdx.x] = indexed[at[threadIdx.x] % 64];
  __syncthreads();
  out[threadIdx.x] = shared[95 - threadIdx.x];
}
"""


def test_a_kernel_in_local_memory_is_seen_as_such(tmp_path: Path) -> None:
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        pytest.skip("no nvcc on PATH or in CUDACXX")
    (tmp_path / "planted.cu").write_text(PLANTED)
    subprocess.run(
        [nvcc, "-arch=sm_90", "-fatbin", "-o", "planted.fatbin", "planted.cu"],
        cwd=tmp_path,
        check=True,
    )
    (kernel,) = read(tmp_path / "planted.fatbin")
    assert (kernel.name, kernel.threads, kernel.shared) == ("planted", 64, 96 * 4)
    assert kernel.stack >= 64 * 4
    assert "STL" in " ".join(instructions(tmp_path / "planted.fatbin", 90)[kernel.symbol])
