"""Tables and pictures that carry the bf16 rival, from made-up records of benchmarks."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsr_kernels.bench.rivals import verdict

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
KINDS = ("sparse conv", "dense conv", "batch norm", "ReLU, add", "rest")
STEP = {
    "dense NCHW": 900.0,
    "dense channels_last": 800.0,
    "dense channels_last, compiled": 700.0,
    "dense bf16 channels_last": 300.0,
    "dense bf16 channels_last, compiled": 280.0,
    "ours": 350.0,
    "ours, fused": 140.0,
    "ours bf16": 400.0,
}
XEON = {"cpu": "Xeon", "instructions": ["AVX-512", "AMX tiles", "AMX bf16"], "dense bf16 by": "AMX"}
EPYC = {"cpu": "EPYC", "instructions": ["AVX-512", "AVX512-BF16"], "dense bf16 by": "AVX512-BF16"}
OLD = {"cpu": "Old", "instructions": ["AVX2"], "dense bf16 by": None}


def record(ms: dict[str, float], batch: int = 128, model: str = "WRN-28-2") -> dict:
    taken = {name: {"min": each, "median": each} for name, each in ms.items()}
    common = {"model": model, "batch": batch, "sparsity": 0.9, "ms": taken}
    return {**common, **verdict(taken), "left out": {}, "rounds": 9}


def kept(machine: dict, ms: dict[str, float] = STEP) -> dict:
    """A kept JSON of measure_models.py."""
    kinds = dict.fromkeys(KINDS, 2.0)
    step = record(ms) | {
        "ms by kind": {name: kinds for name in ("ours", "dense", "ours bf16", "dense bf16")},
        "share outside convolutions": {"ours": 0.52, "dense": 0.3, "ours bf16": 0.19},
        "held bytes": {"ours": 10, "dense": 100},
    }
    if not any("bf16" in name for name in ms):
        step["ms by kind"] = {name: kinds for name in ("ours", "dense")}
        del step["share outside convolutions"]["ours bf16"]
    memory = {
        **{"model": "WRN-28-2", "batch": 128, "sparsity": 0.9, "allocator": "glibc's default"},
        "peak bytes": {"ours": 60, "dense": 100},
        "process peak bytes": {
            **{"dense NCHW": 1000 << 20, "dense channels_last": 900 << 20, "ours": 1242 << 20},
            **{"dense bf16 NCHW": 800 << 20, "ours bf16": 500 << 20, "ours bf16, fused": 440 << 20},
        },
        "of dense": {"fp32": 1.38, "bf16": 0.55},
    }
    return {
        "machine": {"threads": 2, "torch": "9.9", "isa": "avx512", **machine},
        "datetime": "2020-01-01",
        "layers": [],
        "training": [step],
        "inference": [record({"dense NCHW, folded": 3.0, "ours": 4.0}, batch=1)],
        "memory": [memory],
        "other": [{"what": "tiny layer", "over dense": 1.4}],
    }


def script(name: str, *paths: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tables(tmp_path: Path):
    """tables(kept, ...): what model_tables.py writes into a page."""

    def make(*every: dict) -> list[str]:
        paths = [tmp_path / f"{index}.json" for index in range(len(every))]
        for path, each in zip(paths, every, strict=True):
            path.write_text(json.dumps(each))
        page = tmp_path / "page.md"
        begin = "<!-- whole models: made by `make model-tables` -->"
        page.write_text(f"before\n{begin}\n<!-- end of whole models -->\nafter\n")
        script("model_tables.py", *paths, page)
        lines = page.read_text().splitlines()
        assert (lines[0], lines[1], lines[-1]) == ("before", begin, "after")
        return lines[2:-2]

    return make


def test_the_targets_beside_what_a_machine_with_amx_measured(tables) -> None:
    lines = tables(kept(XEON))
    where = "Xeon, 2 threads, AMX, torch 9.9"
    step, inference = "WRN-28-2 step, ours", "WRN-28-2 inference, batch"
    peak, share = "peak memory of a training process, of dense's", "the step's share outside"
    assert lines[2:12] == [
        f"| {step} bf16 over the best dense bf16, on AMX | 2.0x | *0.70x* | {where} |",
        f"| {step} fp32 over the best dense fp32 | 4.5x | 5.0x | {where} |",
        f"| ResNet-50 step, ours fp32 over the best dense fp32 | 2.5x | not measured | {where} |",
        f"| {inference} 1, ours fp32 over the best dense fp32, folded | 2.5x | *0.75x* | {where} |",
        f"| {inference} 64, ours fp32 over the best dense fp32, folded | 2.5x | not measured | "
        f"{where} |",
        f"| {peak}, fp32 | at most 60 % | *138 %* | {where} |",
        f"| {peak}, bf16 | at most 60 % | 55 % | {where} |",
        f"| {share} convolutions, fp32 | at most 20 % | 52 % | {where} |",
        f"| {share} convolutions, bf16 | at most 20 % | 19 % | {where} |",
        "| forward and backward of a tiny layer, nn.Conv2d's times | at most 1.5x | *1.4x* | "
        f"{where} |",
    ]


def test_the_best_dense_is_named_and_ours_against_it(tables) -> None:
    lines = tables(kept(XEON))
    assert (
        "| WRN-28-2 step, N=128, 90 % | 700 ms (fp32 channels_last, compiled) | 140 ms (fp32 fused)"
        " | 5.0x | 280 ms (bf16 channels_last, compiled) | 400 ms (bf16) | *0.70x* | "
        "bf16 channels_last, compiled on AMX | 2.0x | Xeon, 2 threads, AMX, torch 9.9 |"
    ) in lines
    (inference,) = (line for line in lines if line.startswith("| WRN-28-2 inference, N=1,"))
    assert "| fp32 NCHW, folded | *0.75x* |" in inference and "| not measured |" in inference


def test_peaks_of_processes_are_of_the_lowest_variants(tables) -> None:
    assert tables(kept(XEON))[-1] == (
        "| WRN-28-2, N=128, 90 % | 900 (fp32 channels_last) | 1242 (fp32) | *138 %* | "
        "800 (bf16 NCHW) | 440 (bf16, fused) | 55 % | Xeon, 2 threads, AMX, torch 9.9 |"
    )


def test_bf16_of_a_machine_without_amx_stands_in_a_row_of_its_own(tables) -> None:
    lines = tables(kept(EPYC))
    where = "EPYC, 2 threads, no AMX, torch 9.9"
    step = "WRN-28-2 step, ours bf16 over the best dense bf16"
    assert lines[2:4] == [
        f"| {step}, on AMX | 2.0x | not measured: no AMX here | {where} |",
        f"| {step}, by AVX512-BF16 |  | *0.70x* | {where} |",
    ]
    assert not any("on AMX |" in line and "0.70x" in line for line in lines)


def test_a_machine_without_any_bf16_has_no_number_of_it(tables) -> None:
    plain = {name: ms for name, ms in STEP.items() if "bf16" not in name}
    lines = tables(kept(OLD, plain))
    rows = [line for line in lines if "best dense bf16, " in line]
    assert len(rows) == 1 and "| not measured: no AMX here |" in rows[0]
    shares = [line for line in lines if line.startswith("| the step's share") and "bf16" in line]
    assert len(shares) == 1 and "| not measured |" in shares[0]


def test_several_machines_stand_below_each_other(tables) -> None:
    lines = tables(kept(EPYC), kept(XEON))
    rows = [line for line in lines if "ours fp32 over the best dense fp32 |" in line]
    assert [row.split("| ")[4].split(",")[0] for row in rows[:2]] == ["EPYC", "Xeon"]


def test_without_a_json_nothing_was_measured(tables) -> None:
    lines = tables()
    assert len(lines) == 2 + 10
    assert all("| not measured |" in line for line in lines[2:])


def test_runs_that_were_left_out_are_named(tables) -> None:
    without = kept(XEON)
    without["training"][0]["left out"] = {"dense NCHW, compiled": "InvalidCxxCompiler: none"}
    lines = tables(without)
    assert "Left out: dense NCHW, compiled (InvalidCxxCompiler: none)." in lines


# --- the other tables and pictures, from records with and without bf16 ----------------------------


@pytest.fixture(scope="module")
def cpu() -> dict:
    """A JSON in the form of those kept before dense ran in bf16, with ratios made up."""
    old = json.loads((RESULTS / "xeon-avx512-2cores.json").read_text())
    for each in (*old["layers"], *old["training"]):
        each["speed-up"] = 3.2 if each.get("family") == "WRN 3x3 stride 2" else 4.5
        each.pop("over best dense", None)
    return old


def with_rival(cpu: dict) -> dict:
    """The same where dense in bf16 is four times as fast as in fp32, in layers."""
    new = copy.deepcopy(cpu)
    for each in new["layers"]:
        each["over best dense"] = each["speed-up"] / 4
    for each in new["training"]:
        each["over best dense"] = 1.25
    return new


def table_of(tmp_path: Path, name: str, marks: tuple[str, str], *results: dict | Path) -> list[str]:
    paths = []
    for index, each in enumerate(results):
        paths.append(each if isinstance(each, Path) else tmp_path / f"{index}.json")
        if not isinstance(each, Path):
            paths[-1].write_text(json.dumps(each))
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks) + "\n")
    script(name, *paths, page)
    return page.read_text().splitlines()[1:-1]


README = "<!-- measured: made by `make readme-table` -->", "<!-- end of measured -->"


def test_the_readme_s_table_carries_the_rival_once_it_was_measured(tmp_path, cpu) -> None:
    old = table_of(tmp_path, "readme_table.py", README, cpu, RESULTS / "h200.json")
    assert "| CPU, fp32 | H200" in old[0]
    new = table_of(tmp_path, "readme_table.py", README, with_rival(cpu), RESULTS / "h200.json")
    assert "| CPU, fp32 against dense fp32 | CPU, against its best dense | H200, fp32 |" in new[0]
    before = [line.split(" | ") for line in old[2:]]
    after = [line.split(" | ") for line in new[2:]]
    assert [[*row[:2], *row[3:]] for row in after] == before
    # Losing cases stand in italics, in the same table.
    assert after[0][2] == "1.1" and after[1][2] == "*0.80*" and after[5][2] == "1.2"


def test_steps_come_from_the_json_of_whole_models(tmp_path, cpu) -> None:
    results = with_rival(cpu), RESULTS / "h200.json", kept(XEON)
    lines = table_of(tmp_path, "readme_table.py", README, *results)
    (step,) = (line for line in lines if line.startswith("| WRN-28-2, training step |"))
    assert step.startswith("| WRN-28-2, training step | 5.0 | 2.0 | ")
    (resnet,) = (line for line in lines if line.startswith("| ResNet-50, training step |"))
    assert resnet.startswith("| ResNet-50, training step | not measured | not measured | ")


def test_the_cpu_s_table_gains_a_column(tmp_path, cpu) -> None:
    marks = "<!-- measured on a CPU: made by `make cpu-tables` -->", "<!-- end of CPU -->"
    avx2 = RESULTS / "xeon-avx512-2cores-avx2.json"
    old = table_of(tmp_path, "cpu_tables.py", marks, cpu, avx2)
    new = table_of(tmp_path, "cpu_tables.py", marks, with_rival(cpu), avx2)
    assert new[0] == old[0] + " 90 %, over the best dense of the machine |"
    assert all(after.startswith(before) for before, after in zip(old[2:], new[2:], strict=True))
    strided = [line for line in new if line.startswith("| 32→64 3x3 @32x32 /2,")]
    assert new[2].endswith("| 1.1x |") and strided[0].endswith("| *0.80x* |")
    assert new[-1].endswith("|  |  | 1.2x |")


def test_pictures_have_bars_in_bf16_and_panels_for_batches(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "kept.json").write_text(json.dumps(kept(XEON)))
    script("plots.py", tmp_path / "kept.json", tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names >= {"training_step.png", "inference.png", "memory.png"}
    drawn = (tmp_path / "plots/training_step.svg").read_text()
    plain = kept(OLD, {name: ms for name, ms in STEP.items() if "bf16" not in name})
    (tmp_path / "kept.json").write_text(json.dumps(plain))
    script("plots.py", tmp_path / "kept.json", tmp_path / "plots")
    assert len((tmp_path / "plots/training_step.svg").read_text()) < len(drawn)  # fewer bars
