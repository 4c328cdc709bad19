"""The emulator finds the defects planted in kernels, and nothing in kernels that are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import cuda_emulated
from helpers.cuda_emulated import BUILDS

pytestmark = pytest.mark.slow

WRONG = "planted: wrong result"
RACE = r"ThreadSanitizer: data race .*{file}:\d+ in {kernel}"

# Each defect with the builds that find it and what they say; the others must find nothing.
# Random order alone shows some races as wrong results, never all: that takes the thread build.
RACES = {
    "missing_barrier": (True, "reverse_tile"),
    "overwritten_tile": (True, "add_reversed_tiles"),
    "missing_syncwarp": (True, "swap_neighbours"),
    "missing_barrier_for_global": (True, "reverse_in_global"),
    "plain_add_in_block": (False, "histogram"),
    "plain_add_between_blocks": (False, "histogram"),
    "read_of_another_block": (True, "read_a_block"),
    "missing_fence_before_ticket": (False, "add_in_last_block"),
    "missing_fence_after_ticket": (False, "add_in_last_block"),
}
MATRIX_ROWS = r"ThreadSanitizer: data race .*(matrices.h:\d+ in|in .*load_from_others)"
MEETINGS = {
    "divergent_barrier": r"wait at different barriers, .*meetings.cu:\d+ and .*meetings.cu:\d+",
    "barrier_after_return": r"meetings.cu:\d+: 14 threads of the block left the kernel before",
    "full_mask_by_half_warp": r"deadlock: 32 of 32 threads wait for ever; thread 0 at .*:",
    "mask_without_the_caller": r"lane 15 calls a warp primitive whose mask 00007fff does not name",
    "shuffle_from_absent_lane": r"shuffle reads lane 20, which took no part",
    "divergent_vote": r"lanes of warp 0 meet at different warp primitives",
    "shared_memory_not_asked_for": r"102400 bytes of dynamic shared .* allowed 49152",
    "copy_never_waited_for": r"the thread left the kernel before waiting for 2 of its copies",
    "empty_grid": r"a grid has 1 to .* blocks; got \(0, 1, 1\)",
}
COPIES = {  # of the two accesses in a race, the thread build names the later one
    "copy_waited_for_too_late": "wait_after_barrier",
    "copy_read_without_barrier": "share_copies",
    "copy_begun_too_early": "copy_over",
}
ADDRESSES = {
    "global_read_out_of_bounds": r"heap-buffer-overflow .*memory.cu:\d+ in copy",
    "global_write_out_of_bounds": r"heap-buffer-overflow .*memory.cu:\d+ in copy",
    "static_shared_overrun": r"use-after-poison .*memory.cu:\d+ in write_static",
    "dynamic_shared_overrun": r"use-after-poison .*memory.cu:\d+ in write_dynamic",
    "misaligned_vector_load": r"memory.cu:\d+:\d+: runtime error: .* misaligned address",
    "signed_overflow": r"memory.cu:\d+:\d+: runtime error: signed integer overflow",
    "shift_out_of_range": r"memory.cu:\d+:\d+: runtime error: shift exponent 32 is too large",
    "copy_from_out_of_bounds": r"heap-buffer-overflow .*copies.h:\d+ in .*wait_for_copies",
    "register_array_overrun": r"memory.cu:\d+:\d+: runtime error: index 8 out of bounds",
}
FINDINGS: dict[str, dict[str, str]] = {
    "uninitialised_shared": dict.fromkeys(BUILDS, WRONG),
    "copy_read_before_the_wait": dict.fromkeys(BUILDS, WRONG),
    "two_atomics_for_one": {"plain": WRONG, "address": WRONG},
    # Rows overlap: also a race, and a wrong result.
    "shared_row_overrun": {
        "plain": WRONG,
        "address": r"memory.cu:\d+:\d+: runtime error: index 32 out of bounds",
        "thread": RACE.format(file="memory.cu", kernel="index_static"),
    },
}
for name, (shows, kernel) in RACES.items():
    FINDINGS[name] = {"thread": RACE.format(file="races.cu", kernel=kernel)}
    if shows:
        FINDINGS[name] |= {"plain": WRONG, "address": WRONG}
for name, kernel in COPIES.items():
    begun_or_waited_for = r"copies.h:\d+ in .*(begin_copy|wait_for_copies)"
    race = rf"ThreadSanitizer: data race .*(copies.cu:\d+ in {kernel}|{begun_or_waited_for})"
    FINDINGS[name] = {"plain": WRONG, "address": WRONG, "thread": race}
FINDINGS["matrix_row_without_syncwarp"] = {
    "plain": WRONG,
    "address": WRONG,
    "thread": MATRIX_ROWS,
}
for name, said in MEETINGS.items():
    FINDINGS[name] = dict.fromkeys(BUILDS, said)
for name, said in ADDRESSES.items():
    FINDINGS[name] = {"address": said}


def sanitizers(build: str) -> None:
    try:
        cuda_emulated.libraries(build)
    except cuda_emulated.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each build's program and library lie."""
    folders = {build: tmp_path_factory.mktemp(build) for build in BUILDS}
    try:
        for build, folder in folders.items():
            cuda_emulated.configure(build, folder)
    except cuda_emulated.Missing as missing:
        pytest.skip(str(missing))
    return {
        build: cuda_emulated.make(folder, "run_emulator_defects")
        for build, folder in folders.items()
    }


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "run_emulator_defects", *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    "seed, order, preempt",
    [(1, "random", 0), (2, "random", 0.5), (3, "ascending", 0.2), (4, "descending", 0)],
)
def test_right_kernels_stay_right(
    built: dict[str, Path], build: str, seed: int, order: str, preempt: float
) -> None:
    sanitizers(build)
    result = run(
        built[build],
        "clean",
        DSR_EMULATOR_SEED=str(seed),
        DSR_EMULATOR_ORDER=order,
        DSR_EMULATOR_PREEMPT=str(preempt),
    )
    assert result.returncode == 0, result.stdout
    names = re.findall(r"^(\w+) clean: right$", result.stdout, re.MULTILINE)
    assert set(FINDINGS) < set(names)
    right = {"shuffles", "votes_and_reductions", "atomics", "bits_and_numbers", "places"}
    assert right | {"matrices", "products", "tf32"} < {*names}
    assert "Sanitizer" not in result.stdout


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.parametrize("build", BUILDS)
def test_planted_defect_is_found(built: dict[str, Path], build: str, name: str) -> None:
    sanitizers(build)
    result = run(built[build], "planted", name, "1" if build == "thread" else "6")
    expected = FINDINGS[name].get(build)
    if expected is None:
        assert result.returncode == 0, result.stdout
        assert "Sanitizer" not in result.stdout
    else:
        assert result.returncode != 0
        assert re.search(expected, result.stdout), result.stdout
    if build == "plain" or not re.search("AddressSanitizer|runtime error", result.stdout):
        # A launch that failed does not harm the next.
        assert f"{name} clean: right" in result.stdout
    if build == "thread" and name in MEETINGS:
        assert "data race" not in result.stdout


def test_every_kernel_instance_is_listed_with_its_launches(built: dict[str, Path]) -> None:
    printed = run(built["plain"], "clean").stdout
    assert re.search(r"^kernel dsr::\S* ?\S*copy<float>: 2 launches$", printed, re.MULTILINE)
    assert re.search(r"^kernel dsr::.*histogram: 2 launches$", printed, re.MULTILINE)
    assert ": 0 launches" not in printed


@pytest.mark.parametrize(
    "build, defect, found",
    [
        ("address", "global_write_out_of_bounds", "AddressSanitizer: heap-buffer-overflow"),
        ("thread", "plain_add_between_blocks", "ThreadSanitizer: data race"),
    ],
)
def test_defect_in_a_launch_from_python_ends_the_process(
    built: dict[str, Path], build: str, defect: str, found: str
) -> None:
    sanitizers(build)
    program = """
import ctypes, sys
import torch
a = torch.randn(64, 64, requires_grad=True)
(a @ a).relu().sum().backward()
library = ctypes.CDLL(sys.argv[1])
assert library.dsr_run_clean() == 0
print("so far so good", file=sys.stderr, flush=True)
library.dsr_run_planted(sys.argv[2].encode(), 1)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, built[build] / "libemulator_defects.so", defect],
        env=cuda_emulated.environment(build),
        capture_output=True,
        text=True,
        timeout=120,
    )
    before, after = result.stderr.split("so far so good")
    assert "Sanitizer" not in before
    assert found in after
    assert result.returncode != 0
