"""What is said of the processor, by made-up ones: /proc/cpuinfo, torch, and oneDNN's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsr_kernels.backends import processor
from dsr_kernels.cli import main

SKYLAKE = "fpu avx2 avx512f avx512bw"
COOPER = f"{SKYLAKE} avx512_bf16"
SAPPHIRE = f"{COOPER} avx512_fp16 amx_bf16 amx_tile amx_int8"


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """made_up(flags) makes this processor one of these flags; oneDNN takes bfloat16 or not."""
    for name in processor.ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)

    def choose(flags: str, onednn: bool = True) -> None:
        path = tmp_path / "cpuinfo"
        # The second core has more; the first one counts.
        path.write_text(f"model name\t: Made-up 3000\nflags\t\t: {flags}\n\nflags\t: {SAPPHIRE}\n")
        monkeypatch.setattr(processor, "CPUINFO", path)
        monkeypatch.setattr(processor, "_onednn_takes_bf16", lambda: onednn)

    return choose


def test_instructions_are_the_flags_of_the_first_processor(made_up) -> None:
    made_up(COOPER)
    found = processor.instructions()
    assert [words for words, there in found.items() if there] == [
        *("AVX2", "AVX-512", "AVX512-BF16"),
    ]
    assert processor.cpu_name() == "Made-up 3000" and not processor.has_amx()
    made_up(SAPPHIRE)
    assert processor.has_amx()
    assert [words for words, there in processor.instructions().items() if not there] == ["AMX fp16"]
    made_up("amx_tile amx_int8")  # matrix units, but not for bfloat16
    assert not processor.has_amx()


@pytest.mark.parametrize(
    "flags, onednn, limit, by",
    [
        (SAPPHIRE, True, "", "AMX"),
        (SAPPHIRE, True, "all", "AMX"),
        (SAPPHIRE, True, "AVX512_CORE_AMX", "AMX"),
        (SAPPHIRE, True, "AVX512_CORE_BF16", "AVX512-BF16"),
        (SAPPHIRE, True, "AVX10_1_512", "AVX512-BF16"),
        (SAPPHIRE, True, "AVX512_CORE", "fp32"),
        (SAPPHIRE, False, "AVX2", None),
        (COOPER, True, "", "AVX512-BF16"),
        (SKYLAKE, True, "", "fp32"),
        ("avx2", False, "", None),
    ],
)
@pytest.mark.parametrize("name", processor.ISA_LIMITS)
def test_by_what_dense_bfloat16_runs(monkeypatch, made_up, name, flags, onednn, limit, by) -> None:
    made_up(flags, onednn)
    monkeypatch.setenv(name, limit)
    assert processor.dense_bf16_by() == by


def test_a_torch_without_onednn_or_without_its_operation(monkeypatch, made_up) -> None:
    asked = processor._onednn_takes_bf16
    made_up(SKYLAKE)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not asked()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert asked()
    made_up("avx2")
    assert not asked()


def test_without_cpuinfo_torch_is_asked(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    capable = {"avx2": True, "avx512_f": True, "amx_tile": True, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable, raising=False)
    found = processor.instructions()
    assert [words for words, there in found.items() if there] == ["AVX2", "AVX-512", "AMX tiles"]
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert not any(processor.instructions().values())
    assert processor.cpu_name()


@pytest.mark.parametrize(
    "flags, onednn, limit, lines",
    [
        (
            *(COOPER, True, ""),
            [
                "processor    Made-up 3000: AVX2, AVX-512, AVX512-BF16; "
                "no AVX512-FP16, AMX tiles, AMX bf16, AMX int8, AMX fp16",
                "dense bf16   oneDNN multiplies it by AVX512-BF16 (no AMX)",
            ],
        ),
        (
            *(SAPPHIRE + " amx_fp16", True, ""),
            [
                "processor    Made-up 3000: AVX2, AVX-512, AVX512-BF16, AVX512-FP16, "
                "AMX tiles, AMX bf16, AMX int8, AMX fp16",
                "dense bf16   oneDNN multiplies it by AMX",
            ],
        ),
        (
            *(SAPPHIRE, True, "avx512_core"),
            ["dense bf16   oneDNN widens it to float32 (limited to AVX512_CORE)"],
        ),
        (
            *("fpu", False, ""),
            [
                "processor    Made-up 3000: none we look for; no AVX2, AVX-512, AVX512-BF16, "
                "AVX512-FP16, AMX tiles, AMX bf16, AMX int8, AMX fp16",
                "dense bf16   oneDNN does not take it here: a dense model is faster in float32",
            ],
        ),
    ],
)
def test_info_says_it(monkeypatch, capsys, made_up, flags, onednn, limit, lines) -> None:
    made_up(flags, onednn)
    monkeypatch.setenv(processor.ISA_LIMITS[0], limit)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert set(lines) <= set(printed)


def test_records_name_the_processor(made_up) -> None:
    made_up(COOPER)
    assert processor.processor_facts() == {
        "cpu": "Made-up 3000",
        "instructions": ["AVX2", "AVX-512", "AVX512-BF16"],
        "dense bf16 by": "AVX512-BF16",
    }
