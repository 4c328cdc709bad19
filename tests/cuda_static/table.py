"""Writes the table of kernels in docs/cuda.md from the built module: `make cuda-table`."""

from __future__ import annotations

import sys
from pathlib import Path

from cuda_static.budgets import BUDGETS, MULTIPROCESSORS
from cuda_static.kernels import Kernel, find_cuobjdump, find_module, read

from dsr_kernels.text_table import markdown

BEGIN, END = "<!-- kernels: made by `make cuda-table` -->", "<!-- end of kernels -->"
SHOWN = 90  # what blocks, occupancy and shared memory are of
HEAD = (
    "kernel",
    "registers on sm_80 / 90 / 100 / 120",
    "threads",
    "static shared",
    "dynamic shared",
    "blocks by registers",
    "occupancy",
)


def rows(kernels: list[Kernel]) -> list[tuple[str, ...]]:
    """The cells under HEAD for each kernel instance."""
    multiprocessor = MULTIPROCESSORS[SHOWN]
    registers: dict[tuple[str, str], dict[int, int]] = {}
    for kernel in kernels:
        registers.setdefault((kernel.name, kernel.types), {})[kernel.architecture] = (
            kernel.registers
        )
    made = []
    for kernel in sorted(kernels, key=lambda k: (k.name, k.types)):
        if kernel.architecture != SHOWN:
            continue
        own = registers[kernel.name, kernel.types]
        blocks = multiprocessor.blocks_by_registers(kernel.registers, kernel.threads)
        budget = BUDGETS[kernel.name]
        slab = budget.slab or budget.matrices
        cells = (
            f"`{kernel.name}<{kernel.types}>`" if kernel.types else f"`{kernel.name}`",
            " / ".join(str(own[architecture]) for architecture in sorted(own)),
            str(kernel.threads),
            f"{kernel.shared:,} B" if kernel.shared else "",
            f"the plan's slab, up to {multiprocessor.shared_of_block} KiB" if slab else "",
            str(blocks),
            f"{blocks * kernel.threads / multiprocessor.threads:.0%}",
        )
        made.append(cells)
    return made


def section(kernels: list[Kernel], toolkit: str) -> str:
    """What stands between the two marks."""
    text = (
        f"Compiled with CUDA {toolkit}; threads, shared memory, thread blocks on a multiprocessor "
        f"as far as\nregisters allow, and the occupancy they make are those of sm_{SHOWN}."
    )
    return "\n".join([BEGIN, text, "", markdown(HEAD, rows(kernels)), END])


def toolkit_of(module: Path) -> str:
    """Version of the toolkit that built `module`, such as 13.0."""
    from dsr_kernels import _cuda

    return f"{_cuda.toolkit_version // 1000}.{_cuda.toolkit_version % 1000 // 10}"


def main(path: Path) -> None:
    module = find_module()
    if module is None or find_cuobjdump() is None:
        sys.exit("there are no compiled GPU kernels (DSR_CUDA=ON), or no cuobjdump to read them")
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(before + section(read(module), toolkit_of(module)) + after, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
