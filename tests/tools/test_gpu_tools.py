"""What surrounds the GPU tests and benchmarks, as far as it runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def python(*args: object, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_tests_are_skipped_with_one_reason():
    done = python("-m", "pytest", "tests/gpu", "-m", "gpu", "-q", DSR_TEST_DEVICE="cuda")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(lines) == 1 and "tests/gpu: no CUDA device that torch" in lines[0]


def test_the_gpu_tests_run_on_the_cpu():
    args = ("-m", "pytest", "tests/gpu", "-m", "gpu and sanitizer", "-q", "-k", "depthwise")
    done = python(*args, DSR_TEST_DEVICE="cpu")
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout
    done = python("-m", "pytest", "tests/gpu/test_page.py", "-q", DSR_TEST_DEVICE="cpu")
    assert done.returncode == 0 and "1 passed, 1 skipped" in done.stdout, done.stdout


SANITIZER = """#!/bin/sh
tool=$2
while [ "${1##*python*}" ]; do shift; done
echo "$@" | grep -q 'gpu and sanitizer' && echo '3 passed in 1.00s'
echo '========= ERROR SUMMARY: 0 errors'
case $tool in racecheck) exit 86;; synccheck) sleep 60;; esac
"""


def test_the_sanitizer_s_findings_and_timeouts_are_counted(tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = python("tests/gpu/sanitize.py", "--seconds", "2", PATH=path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stdout.splitlines() if "; ERROR SUMMARY: 0 errors; 3" in line]
    verdicts = [line.split(";")[0].split(maxsplit=1) for line in lines]
    assert verdicts == [
        ["memcheck", "ok"],
        ["racecheck", "FAILED: exit status 86"],
        ["synccheck", "FAILED: not finished after 2 s"],
        ["initcheck", "ok"],
    ]


def test_without_a_sanitizer_a_sentence_says_so(tmp_path):
    done = python("tests/gpu/sanitize.py", PATH=str(tmp_path), CUDA_HOME=str(tmp_path))
    assert done.returncode == 2 and "compute-sanitizer" in done.stdout


def test_the_gpu_benchmark_measures_a_cpu_and_prints_tables(tmp_path):
    script, small = "benchmarks/measure_gpu.py", ("--device", "cpu", "--rounds", "2", "--quick")
    done = python(script, tmp_path / "one.json", *small, "-k", "@32x32 forward")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "one.json").read_text())
    assert kept["machine"]["copy GB/s"] > 0 and kept["training"] == kept["left out"] == []
    assert [(r["dtype"], r["sparsity"]) for r in kept["layers"]] == [
        ("fp32", 0.9),
        ("fp32", 0.98),
        ("bf16", 0.9),
        ("bf16", 0.98),
    ]
    dense = {f"dense {p} {f}" for p in ("fp32", "tf32", "bf16") for f in ("NCHW", "channels_last")}
    for record in kept["layers"]:
        assert dense | {"ours"} <= set(record["ms"])
        assert set(record["speed-up"]) == {"fp32", "tf32", "bf16"}
        assert record["share of roofline"] > 0 and record["nnz"] > 0
    assert "| WRN 3x3 | ours bf16 over dense bf16 | " in done.stdout
    assert "| 32->32 3x3 @32x32 | forward | " in done.stdout

    done = python(script, tmp_path / "two.json", *small, "-k", "WRN-28-2 ours fp32")
    assert done.returncode == 0, done.stdout + done.stderr
    (first, second) = json.loads((tmp_path / "two.json").read_text())["training"]
    assert (first["sparsity"], second["sparsity"]) == (0.9, 0.95)
    assert first["ms"]["median"] > 0 and second["held bytes"] < first["held bytes"]
    assert "| WRN-28-2, batch 16 | ours fp32 | 90 % |" in done.stdout


def test_what_the_budget_leaves_no_time_for_is_named(tmp_path):
    done = python(
        "benchmarks/measure_gpu.py", tmp_path / "none.json", "--device", "cpu", "--seconds", "0"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "none.json").read_text())
    assert kept["layers"] == kept["training"] == kept["other"] == []
    assert "rewires" in kept["left out"] and "1024->1024 linear" in kept["left out"]
    assert "Left out for want of time: rewires, 32->32 3x3 @32x32, " in done.stdout


def test_the_documentation_has_the_cost_model_s_table(tmp_path):
    page = ROOT / "docs/cuda.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split("<!-- modelled")
    table, after = rest.split("<!-- end of modelled -->")
    assert table.count("\n| ") == 16  # a header and every layer of benchmarks/layers.py
    emptied = tmp_path / "cuda.md"
    marks = "<!-- modelled: made by `make cuda-model` --><!-- end of modelled -->"
    emptied.write_text(before + marks + after, encoding="utf-8")
    path = os.pathsep.join(str(ROOT / room) for room in (".", "benchmarks", "tests"))
    done = python("-m", "on_gpu.model", emptied, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert emptied.read_text(encoding="utf-8") == text, "make cuda-model renews it"


def test_the_documentation_has_the_model_of_windows(tmp_path):
    page, emptied = ROOT / "docs/cuda.md", tmp_path / "cuda.md"
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- windows: made by `make cuda-model` -->", "<!-- end of windows -->"
    before, rest = text.split(begin)
    table, after = rest.split(end)
    assert table.count("\n| ") == 32  # two headers and every layer of benchmarks/layers.py twice
    emptied.write_text(before + begin + end + after, encoding="utf-8")
    kept = ROOT / "benchmarks/results/h200.json"
    path = os.pathsep.join(str(ROOT / room) for room in (".", "benchmarks", "tests"))
    done = python("-m", "on_gpu.windows", kept, emptied, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert emptied.read_text(encoding="utf-8") == text, "make cuda-model renews it"


def test_the_documentation_has_what_was_measured(tmp_path):
    begin, end = "<!-- measured: made by `make gpu-tables` -->", "<!-- end of measured -->"
    rows = {
        "docs/measured.md": "\n| WRN-28-2 training step, 90 / 95 % | ",
        "docs/cuda.md": "\n| WRN-28-2, batch 128 | ours fp32 | 90 % | ",
    }
    emptied = []
    for name, row in rows.items():
        before, rest = (ROOT / name).read_text(encoding="utf-8").split(begin)
        table, after = rest.split(end)
        assert row in table
        emptied.append(tmp_path / Path(name).name)
        emptied[-1].write_text(before + begin + end + after, encoding="utf-8")
    kept = ROOT / "benchmarks/results/h200.json"
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = python("-m", "on_gpu.measured", kept, *emptied, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    for name, page in zip(rows, emptied, strict=True):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert page.read_text(encoding="utf-8") == text, "make gpu-tables renews it"
