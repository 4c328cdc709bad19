"""What each GPU kernel may use, and what a multiprocessor has to give."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The limits of one kernel, for every element type and architecture."""

    blocks: int  # thread blocks that the registers must leave room for on a multiprocessor
    shared: int = 0  # most bytes of static shared memory
    slab: bool = False  # computes on dynamic shared memory, which it reads in 16-byte vectors
    maps: bool = False  # multiplies and adds beside what it does on the slab
    matrices: bool = False  # computes by matrix instructions on what they load from shared memory
    load: str = ""  # how it must read the list of non-zeros from global memory


BUDGETS = {
    "gather_kernel": Budget(1, slab=True, load="LDG.E.128"),
    "grad_weight_kernel": Budget(1, slab=True, load="LDG.E.64"),
    "fused_gather_kernel": Budget(1, slab=True, maps=True, load="LDG.E.128"),
    "fused_grad_weight_kernel": Budget(1, slab=True, maps=True, load="LDG.E.64"),
    "window_gather_kernel": Budget(1, matrices=True, load="LDG.E.128"),
    "fused_window_gather_kernel": Budget(1, matrices=True, load="LDG.E.128"),
    "window_grad_weight_kernel": Budget(1, matrices=True, load="LDG.E.64"),
    "fused_window_grad_weight_kernel": Budget(1, matrices=True, load="LDG.E.64"),
    "combine_sums_kernel": Budget(12, shared=1024),
    "combine_moments_kernel": Budget(12, shared=1024),
    "arrange_kernel": Budget(8),
    "reduce_splits_kernel": Budget(6, shared=1024),
    "direct_gather_kernel": Budget(5),
    "direct_grad_weight_kernel": Budget(4, shared=2048),
    # Selecting what to prune.
    "check_crow_kernel": Budget(12),
    "find_largest_kernel": Budget(12),
    "find_largest_entry_kernel": Budget(12),
    "clear_histogram_kernel": Budget(12),
    "count_digits_kernel": Budget(12, shared=1024),
    "pick_digit_kernel": Budget(12, shared=32),
    "count_at_threshold_kernel": Budget(10, shared=32),
    "scan_chunks_kernel": Budget(12, shared=32),
    # Moving what survives and growing the rest.
    "fill_ranks_kernel": Budget(12),
    "count_rank_digits_kernel": Budget(12, shared=1024),
    "scan_rank_digits_kernel": Budget(12, shared=32),
    "scatter_ranks_kernel": Budget(10, shared=4096),
    "move_survivors_kernel": Budget(10, shared=48),
    "place_grown_kernel": Budget(12),
    "write_crow_kernel": Budget(12),
}


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one architecture (CUDA C++ Programming Guide, "Compute Capabilities")."""

    threads: int
    blocks: int
    shared_of_block: int  # KiB a thread block may have
    warp_schedulers: int = 4
    registers_of_scheduler: int = 16384

    def blocks_by_registers(self, registers: int, threads: int) -> int:
        """Thread blocks that fit: registers are given to warps, 256 at a time."""
        of_warp = -(-registers * 32 // 256) * 256
        warps = self.warp_schedulers * (self.registers_of_scheduler // of_warp)
        return min(warps // -(-threads // 32), self.threads // threads, self.blocks)


MULTIPROCESSORS = {
    80: Multiprocessor(threads=2048, blocks=32, shared_of_block=163),
    90: Multiprocessor(threads=2048, blocks=32, shared_of_block=227),
    100: Multiprocessor(threads=2048, blocks=32, shared_of_block=227),
    120: Multiprocessor(threads=1536, blocks=24, shared_of_block=99),
}
