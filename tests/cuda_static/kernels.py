"""What the compiled GPU kernels are made of, read from the module with the toolkit's cuobjdump."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SYSTEM_SHARED = 1024  # bytes of a block's static shared memory that are the system's, from sm_90 on


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture, as ptxas left it."""

    architecture: int  # 90 for sm_90
    symbol: str
    name: str  # gather_kernel
    types: str  # the template arguments, such as "float, 8, 2"; "" where there are none
    registers: int
    stack: int  # bytes: spilled registers and arrays that did not fit into registers
    local: int
    shared: int  # bytes, static
    threads: int | None  # of a block, from __launch_bounds__
    spills: int  # instructions that spill or refill

    def __str__(self) -> str:
        types = f"<{self.types}>" if self.types else ""
        return f"{self.name}{types} for sm_{self.architecture}"


def find_module() -> Path | None:
    """The built `dsr_kernels._cuda`; None where there is none, or only the emulated one."""
    spec = importlib.util.find_spec("dsr_kernels._cuda")
    if spec is None or b".nv_fatbin" not in Path(spec.origin).read_bytes():
        return None
    return Path(spec.origin)


def find_cuobjdump() -> str | None:
    """The toolkit's, or the one inside the Triton wheel."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None:
        shipped = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(shipped) if shipped.is_file() else None
    return found


def _dump(binary: Path, *options: str) -> str:
    tool = find_cuobjdump()
    # cuobjdump calls the nvdisasm that lies beside it.
    environment = {**os.environ, "PATH": f"{Path(tool).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [tool, *options, binary], env=environment, capture_output=True, text=True, check=True
    ).stdout


@functools.lru_cache(maxsize=4)
def read(binary: Path) -> list[Kernel]:
    """All kernels in `binary`, of every architecture."""
    threads, spills = _launch_bounds_and_spills(binary)
    found = []
    for architecture, text in _by_architecture(_dump(binary, "-res-usage")):
        usage = re.compile(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
        )
        for symbol, *numbers in usage.findall(text):
            registers, stack, shared, local = map(int, numbers)
            shared -= SYSTEM_SHARED if shared and architecture >= 90 else 0
            key = architecture, symbol
            found.append((key, registers, stack, local, shared, threads.get(key), spills[key]))
    names = _demangle([symbol for (_, symbol), *_ in found])
    return [Kernel(*key, *names[key[1]], *rest) for key, *rest in found]


def _by_architecture(text: str) -> list[tuple[int, str]]:
    """(architecture, what cuobjdump says of one file of it)."""
    parts = re.split(r"^arch = sm_(\d+)\w?$", text, flags=re.MULTILINE)
    return [(int(number), part) for number, part in zip(parts[1::2], parts[2::2], strict=True)]


def _launch_bounds_and_spills(
    binary: Path,
) -> tuple[dict[tuple[int, str], int], Counter[tuple[int, str]]]:
    threads, spills = {}, Counter()
    for architecture, text in _by_architecture(_dump(binary, "-elf")):
        sections = re.split(r"^\.nv\.info\.(\S+)$", text, flags=re.MULTILINE)
        for symbol, section in zip(sections[1::2], sections[2::2], strict=True):
            own = section.split("\n.", 1)[0]
            bound = re.search(r"EIATTR_MAX_THREADS\s.*\n.*Value:\s*(\w+) (\w+) (\w+)", own)
            if bound:
                x, y, z = (int(number, 16) for number in bound.groups())
                threads[architecture, symbol] = x * y * z
            spills[architecture, symbol] = own.count("SpillRefill")
    return threads, spills


def _demangle(symbols: list[str]) -> dict[str, tuple[str, str]]:
    """{symbol: (name, template arguments)}"""
    printed = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pattern = re.compile(r"(?:void )?(?:\w+::|\(anonymous namespace\)::)*(\w+)(?:<(.*)>)?\(")
    return {
        symbol: (match[1], re.sub("__(nv_)?", "", match[2] or ""))
        for symbol, text in zip(symbols, printed, strict=True)
        if (match := pattern.match(text))
    }


@functools.lru_cache(maxsize=4)
def instructions(binary: Path, architecture: int) -> dict[str, Counter[str]]:
    """{symbol: how often each instruction stands in its code}"""
    text = _dump(binary, "-sass", "-arch", f"sm_{architecture}")
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)
    opcode = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)")
    return {
        symbol: Counter(opcode.findall(code))
        for symbol, code in zip(parts[1::2], parts[2::2], strict=True)
    }
