"""The timing core and `dsr bench`: structure and correctness, never speed."""

import json
from pathlib import Path

import pytest
import torch
from helpers.small_runs import refused

from dsr_kernels.bench import timing
from dsr_kernels.bench.command import parse_layer
from dsr_kernels.bench.problem import OPERATIONS, Layer, Problem
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


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    out = tmp_path / "bench.json"
    args = ["bench", "--layer", "6x5x3x3@9x8", "--batch", "3", "--rounds", "1", "--threads", "1"]
    assert main([*args, "--sparsity", ".8", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5->6 3x3 @9x8, batch 3, 54 non-zeros (80 % zeros), ")
    assert [line.split()[0] for line in lines[2:]] == list(OPERATIONS)
    kept = json.loads(out.read_text())
    assert [r["operation"] for r in kept["records"]] == list(OPERATIONS) and kept["rounds"] == 1


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
    ],
)
def test_wrong_options_are_one_sentence(capsys, args, words):
    assert words in refused(capsys, "bench", *args)
