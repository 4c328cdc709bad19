"""The timing core and `dsr bench`: structure and correctness, never speed."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.small_runs import refused

from dsr_kernels.bench import command, rivals, timing
from dsr_kernels.bench.command import parse_layer
from dsr_kernels.bench.problem import DENSE, OPERATIONS, Layer, Problem
from dsr_kernels.cli import main

ROOT = Path(__file__).parents[2]
LAYERS = [
    Layer(6, 5, (3, 3), (9, 8), 1, (1, 1), 10),
    Layer(6, 5, (3, 3), (9, 8), 2, (1, 1), 3),
    Layer(6, 5, (1, 1), (4, 4), 1, (0, 0), 2),
    Layer(12, 20, batch=9),
]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_record_for_each_sparsity(layer, operation):
    records = timing.compare(Problem(layer, (0.5, 0.9)), operation, 2, 100.0)
    dense = {"dense NCHW", "dense + mask"} | (set() if layer.linear else {"dense channels_last"})
    for record, sparsity in zip(records, (0.5, 0.9), strict=True):
        assert record["sparsity"] == sparsity and record["layer"] == str(layer)
        assert set(record["ms"]) == dense | {"ours"}
        assert all(0 < each["min"] <= each["median"] for each in record["ms"].values())
        assert record["max error"] < 1e-5 and record["nnz"] > 0
        for name in ("speed-up", "GF/s", "GB/s", "share of peak", "flops", "bytes", "peak bytes"):
            assert record[name] > 0, name
    assert json.loads(json.dumps(records)) == records
    assert records[0]["ms"]["dense NCHW"] == records[1]["ms"]["dense NCHW"]  # one alternation


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_dense_runs_compute_what_ours_do_with_the_same_weight(layer):
    problem = Problem(layer, [0.6])
    values, crow, col = problem.sparse[0.6]
    from dsr_kernels.ops.reference import to_dense

    problem.weight = to_dense(values, crow, col, layer.weight_shape)
    problem.mask = (problem.weight != 0).float()
    kept = problem.mask.bool()
    for operation in OPERATIONS:
        ours = problem.ours(operation, 0.6)()
        for name in ("dense NCHW", "dense channels_last"):
            theirs = problem.masked_run(operation, name)()
            pairs = zip(ours, theirs, strict=True) if operation == "module" else [(ours, theirs)]
            for mine, other in pairs:
                if mine.shape in ((values.numel(),), (values.numel(), 1)):  # of the non-zeros
                    other = other.reshape(layer.weight_shape)[kept]
                torch.testing.assert_close(mine, other.reshape(mine.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_bfloat16_is_timed_beside_float32(layer, operation):
    problem = Problem(layer, (0.5, 0.9))
    low = problem.in_bfloat16()
    records = timing.compare(problem, operation, 1, 100.0, low=low)
    formats = DENSE[:1] if layer.linear else DENSE
    low_formats = {name.replace("dense", "dense bf16") for name in formats}
    for record in records:
        assert set(record["ms"]) == {*formats, *low_formats, "dense + mask", "ours", "ours bf16"}
        assert set(record["speed-up by precision"]) == {"fp32", "bf16"}
        assert record["best dense"] in {*formats, *low_formats}
        assert record["speed-up"] == record["speed-up by precision"]["fp32"]


def test_bfloat16_has_the_same_numbers_and_patterns():
    problem = Problem(LAYERS[0], (0.5, 0.9), seed=3)
    low = problem.in_bfloat16()
    for name in ("x", "grad", "weight"):
        assert torch.equal(getattr(low, name), getattr(problem, name).bfloat16()), name
    for sparsity, tensors in problem.sparse.items():
        assert all(map(torch.equal, tensors, low.sparse[sparsity]))


def test_a_wrong_result_in_bfloat16_is_an_error():
    problem = Problem(LAYERS[0], [0.5])
    low = problem.in_bfloat16()
    low.error = lambda *_: 2**-7
    with pytest.raises(AssertionError, match=r"bfloat16: error 7\.8e-03"):
        timing.compare(problem, "forward", 1, 100.0, low=low)


def test_a_wrong_result_is_an_error():
    problem = Problem(LAYERS[0], [0.5])
    problem.error = lambda *_: 1.0
    with pytest.raises(AssertionError, match="error 1"):
        timing.compare(problem, "forward", 1, 100.0)


def test_runs_alternate_and_peers_and_the_caller_s_loop_are_used():
    seen = []
    alternation = timing.Alternation({name: lambda n=name: seen.append(n) for name in "ab"})
    alternation.round()
    assert seen == list("abab") and len(alternation.times["a"]) == 1
    loops = []
    problem = Problem(LAYERS[0], [0.5, 0.9])
    records = timing.compare(
        *(problem, "forward", 3, 100.0),
        repeat=lambda run, rounds: loops.extend([rounds, run()]),
        peers={"peer": {0.9: lambda: None}},
    )
    assert loops == [3, None]
    assert ["peer" in record["ms"] for record in records] == [False, True]


def test_the_command_prints_a_table_and_writes_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(rivals, "dense_bf16_by", lambda: None)
    out = tmp_path / "bench.json"
    args = ["bench", "--layer", "6x5x3x3@9x8", "--batch", "3", "--rounds", "1", "--threads", "1"]
    assert main([*args, "--sparsity", ".8", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5->6 3x3 @9x8, batch 3, 54 non-zeros (80 % zeros), ")
    assert [line.split()[0] for line in lines[2:-2]] == list(OPERATIONS)
    assert lines[-2].startswith("best dense of this machine: fp32 ")
    assert lines[-1].startswith("dense bf16 was not measured: ")
    kept = json.loads(out.read_text())
    assert set(kept["machine"]) == {"cpu", "instructions", "dense bf16 by"}
    assert [r["operation"] for r in kept["records"]] == list(OPERATIONS) and kept["rounds"] == 1


def test_the_command_measures_blocks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(rivals, "dense_bf16_by", lambda: None)
    out = tmp_path / "bench.json"
    args = ["bench", "--layer", "8x5x3x3@9x8", "--batch", "3", "--rounds", "1", "--threads", "1"]
    assert main([*args, "--sparsity", ".8", "--block-size", "4", "--json", str(out)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "72 non-zeros (80 % zeros, blocks of 4 output channels)" in first
    records = json.loads(out.read_text())["records"]
    assert {record["block_size"] for record in records} == {4}
    assert all("by 4 channels" in r["variant"] for r in records if r["operation"] == "forward")


def test_the_table_names_the_best_dense_and_ours_against_it(monkeypatch):
    """Ours wins in float32 and loses to dense in bfloat16: both stand there."""
    monkeypatch.setattr(rivals, "dense_bf16_by", lambda: "AMX")
    times = {
        "dense NCHW": 9.0,
        "dense channels_last": 8.0,
        "dense + mask": 1.0,
        "ours": 4.0,
        "dense bf16 NCHW": 3.0,
        "dense bf16 channels_last": 2.0,
        "ours bf16": 2.5,
    }
    ms = {name: {"min": each, "median": each} for name, each in times.items()}
    record = timing.record(Problem(LAYERS[0], [0.5]), "forward", 0.5, ms, 100.0)
    lines = command.table([record], 100.0).splitlines()
    plain, low = (re.split(r"  +", line.strip()) for line in lines[2:4])
    assert plain[:6] == ["forward", "fp32 channels_last", "8.000", "4.000", "2.00x", "0.50x"]
    assert low == ["bf16 channels_last", "2.000", "2.500", "0.80x", "0.80x"]
    assert lines[4:] == [
        "best dense of this machine: bf16 channels_last (forward)",
        "dense bf16 runs on this processor's matrix units (AMX)",
    ]


def test_layers_are_read():
    assert parse_layer("64x32x3x3@16", 2, None, 8) == Layer(64, 32, (3, 3), (16, 16), 2, (1, 1), 8)
    assert parse_layer("4x3x1x7@8x32", 1, 0, 2) == Layer(4, 3, (1, 7), (8, 32), 1, (0, 0), 2)
    assert parse_layer("10x20", 1, None, 5).linear


@pytest.mark.parametrize(
    "args, words",
    [
        (["--layer", "64x64@16"], "--layer: expected OxCxKHxKW@H"),
        (["--layer", "64x0x3x3@16"], "--layer: expected sizes of at least 1"),
        (["--layer", "4x4x9x9@3", "--padding", "0"], "--layer: a 9x9 kernel does not fit"),
        (["--layer", "4x4", "--sparsity", "1"], "--sparsity: expected 0 <= sparsity < 1, got 1"),
        (["--layer", "4x4", "--sparsity", "nan"], "--sparsity: expected 0 <= sparsity < 1"),
        (["--layer", "4x4", "--rounds", "0"], "--rounds: expected at least 1"),
        (["--layer", "4x4", "--batch", "0"], "--batch: expected at least 1"),
        (["--layer", "4x4", "--stride", "0"], "--stride: expected at least 1"),
        (["--layer", "4x4", "--threads", "0"], "--threads: expected at least 1"),
        (["--layer", "4x4x3x3@4", "--padding", "-1"], "--padding: expected at least 0"),
        (["--layer", "4x4", "--json", "/nowhere/x.json"], "--json: the folder of"),
        (["--layer", "4x4", "--block-size", "3"], "--block-size: expected one of (1, 2, 4,"),
        (["--layer", "6x4", "--block-size", "4"], "--block-size: expected a divisor of the 6 "),
    ],
)
def test_wrong_options_are_one_sentence(capsys, args, words):
    assert words in refused(capsys, "bench", *args)
