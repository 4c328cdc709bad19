"""Whole models beside every dense rival: what is compared and how, on tiny batches. No speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsr_kernels.bench import rivals
from dsr_kernels.fusing.classes import is_fused

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from whole_models import comparison, memory, overhead, training, variants
    from whole_models.variants import WRN, Variant
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


def test_a_tiny_layer_is_measured_beside_torchs() -> None:
    record = overhead.overhead_record(rounds=1)
    assert record["over dense"] == pytest.approx(
        record["us"]["ours"]["min"] / record["us"]["dense"]["min"], abs=1e-3
    )
    assert set(record["us"]) == {"ours", "dense"}


TINY = WRN._replace(batch=2, size=8)


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch):
    """bf16(by) has oneDNN take bfloat16 in this way."""
    return lambda by: monkeypatch.setattr(rivals, "dense_bf16_by", lambda: by)


def test_the_rivals_are_every_precision_and_format_eager_and_compiled(bf16) -> None:
    bf16("AMX")
    names = [variant.name for variant in variants.dense(compiled=True)]
    assert sorted(names) == sorted(
        f"dense{precision} {layout}{how}"
        for precision in ("", " bf16")
        for layout in ("NCHW", "channels_last")
        for how in ("", ", compiled")
    )
    assert len([*variants.dense(compiled=False)]) == 4
    bf16(None)
    assert len([*variants.dense(compiled=True)]) == 4


def test_ours_is_fused_and_not(bf16) -> None:
    bf16("AMX")
    names = [variant.name for variant in variants.ours()]
    assert names == ["ours", "ours, fused", "ours bf16", "ours bf16, fused"]
    names = [variant.name for variant in variants.ours(compiled=True)]
    assert names[:4] == ["ours", "ours, compiled", "ours, fused", "ours, compiled, fused"]
    assert len(names) == 8


@pytest.mark.parametrize("fused", [True, False])
def test_only_a_fused_variant_runs_fused(fused) -> None:
    model = Variant("ours", fused=fused).model(TINY, 0.9, training=False)
    assert not model.training
    assert any(is_fused(module) for module in model.modules()) is fused


def test_every_name_is_one_that_the_verdict_reads(bf16) -> None:
    bf16("fp32")
    every = [*variants.dense(True), *variants.dense(True, folded=True), *variants.ours()]
    assert len({variant.name for variant in every}) == len(every) == 20
    for variant in every:
        assert rivals.side_of(variant.name) == variant.side
        assert rivals.precision_of(variant.name) == ("bf16" if variant.bf16 else "fp32")


def test_folding_changes_nothing_but_the_batch_norms() -> None:
    torch.manual_seed(0)
    plain = Variant("dense", last=True).model(TINY, 0, training=False)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    case = TINY._replace(make=lambda sparse: plain)
    folded = Variant("dense", last=True, folded=True).model(case, 0, training=False)
    norms = [
        sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        for model in (plain, folded)
    ]
    assert norms == [25, 12]
    images = TINY.images()
    with torch.no_grad():
        torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-4)


def test_a_step_s_record(monkeypatch, bf16) -> None:
    bf16("AVX512-BF16")
    monkeypatch.setattr(training, "PROFILED", 1)
    case = TINY._replace(sparsities=(0.8, 0.9))
    records = comparison.training_records(case, 2, compiled=False)
    assert [record["sparsity"] for record in records] == [0.8, 0.9]
    for record in records:
        assert (record["model"], record["batch"], record["rounds"]) == ("WRN-28-2", 2, 2)
        assert set(record["ms"]) == {
            *("dense NCHW", "dense channels_last", "dense bf16 NCHW", "dense bf16 channels_last"),
            *("ours", "ours, fused", "ours bf16", "ours bf16, fused"),
        }
        assert set(record["speed-up by precision"]) == {"fp32", "bf16"}
        kinds = record["ms by kind"]
        assert set(kinds) == {"ours", "dense", "ours bf16", "dense bf16"}
        assert kinds["dense"]["sparse conv"] == 0 < kinds["ours"]["sparse conv"]
        for key, share in record["share outside convolutions"].items():
            assert share == training.share_outside(kinds[key])
        assert record["held bytes"]["ours"] < record["held bytes"]["dense"]
    assert json.loads(json.dumps(records)) == records


def test_an_inference_record(bf16) -> None:
    bf16("AMX")
    record = comparison.inference_record(TINY, 1, compiled=False)
    formats = [f"{p} {layout}" for p in ("", " bf16") for layout in ("NCHW", "channels_last")]
    dense = {f"dense{each}{how}" for each in formats for how in ("", ", folded")}
    assert set(record["ms"]) == dense | {
        f"ours{p}{how}" for p in ("", " bf16") for how in ("", ", fused")
    }
    assert record["left out"] == {} and record["batch"] == 2


def test_what_cannot_be_compiled_is_left_out_and_says_why(monkeypatch, bf16) -> None:
    """As on a machine without a C++ compiler. The eager runs go on."""
    bf16(None)

    def broken(model, fullgraph):
        assert fullgraph

        def call(*_):
            raise RuntimeError("\nno working C++ compiler\nmore of it")

        wrapped = torch.nn.Module()
        wrapped.inner, wrapped.forward = model, call
        return wrapped

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(training, "PROFILED", 1)
    (record,) = comparison.training_records(TINY, 1)
    assert set(record["ms"]) == {"dense NCHW", "dense channels_last", "ours", "ours, fused"}
    reason = "RuntimeError: no working C++ compiler"
    assert record["left out"] == dict.fromkeys(
        ("dense NCHW, compiled", "dense channels_last, compiled"), reason
    )
    record = comparison.inference_record(TINY, 1)
    assert record["left out"]["ours, compiled"] == reason and "ours" in record["ms"]


def test_an_eager_run_that_fails_is_an_error() -> None:
    def fails() -> None:
        raise RuntimeError("no")

    able, left_out = comparison.warmed_up({"ours": fails, "dense NCHW, compiled": fails})
    assert [*able] == ["ours"] and [*left_out] == ["dense NCHW, compiled"]
    with pytest.raises(RuntimeError, match="no"):
        able["ours"]()


def test_dense_and_ours_take_turns() -> None:
    names = ["dense NCHW", "dense bf16 NCHW", "dense channels_last", ("ours", 0.8), ("ours", 0.9)]
    assert [*comparison.in_turn(dict.fromkeys(names, print))] == [
        *("dense NCHW", ("ours", 0.8), "dense bf16 NCHW", ("ours", 0.9), "dense channels_last"),
    ]
    names = [
        "dense NCHW",
        "dense bf16 NCHW",
        "thin dense NCHW",
        "thin dense bf16 NCHW",
        "ours",
        "ours bf16",
    ]
    assert [*comparison.in_turn(dict.fromkeys(names, print))] == [
        *("dense NCHW", "thin dense NCHW", "ours"),
        *("dense bf16 NCHW", "thin dense bf16 NCHW", "ours bf16"),
    ]


@pytest.mark.parametrize(
    "op, kind",
    [
        ("SparseConv", "sparse conv"),
        ("autograd::engine::evaluate_function: SparseConvFusedBackward", "sparse conv"),
        ("dsr_kernels::sparse_conv2d_fused_grad_input", "sparse conv"),
        ("dsr_kernels::channel_affine", "batch norm"),
        ("aten::mkldnn_convolution", "dense conv"),
        ("aten::native_batch_norm", "batch norm"),
        ("autograd::engine::evaluate_function: ReluBackward0", "ReLU, add"),
        ("aten::add_", "ReLU, add"),
        ("aten::mean", "rest"),
    ],
)
def test_the_kind_of_an_op(op, kind) -> None:
    assert training.kind_of(op) == kind


def test_the_share_outside_convolutions() -> None:
    kinds = dict(zip(training.KINDS, (30.0, 10.0, 35.0, 20.0, 5.0), strict=True))
    assert training.share_outside(kinds) == 0.6


def test_memory_compares_the_lowest_of_a_precision() -> None:
    peaks = {"dense NCHW": 100, "dense channels_last": 80, "ours": 60, "ours, fused": 40}
    assert memory.of_dense(peaks) == {"fp32": 0.5}
    peaks |= {"dense bf16 NCHW": 50, "ours bf16": 60}
    assert memory.of_dense(peaks) == {"fp32": 0.5, "bf16": 1.2}


def test_a_memory_record(monkeypatch, bf16) -> None:
    bf16("AMX")
    monkeypatch.setattr(
        *(memory, "in_a_process"),
        lambda case, variant, allocator: {
            "process": 100 + 10 * variant.last + 50 * (variant.side == "dense"),
            "growth": 10 + variant.bf16,
        },
    )
    record = memory.memory_record(TINY)
    assert record["allocator"] == memory.DEFAULT and len(record["process peak bytes"]) == 8
    assert record["peak bytes"] == {"dense": 10, "ours": 10}
    assert record["of dense"] == {"fp32": 0.6667, "bf16": 0.6667}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_fresh_process_with_the_default_allocator(monkeypatch) -> None:
    run, seen = subprocess.run, []

    def noted(command, **options):
        seen.append(options["env"])
        return run(command, **options)

    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=noted))
    peak = memory.in_a_process(TINY, Variant("ours"), memory.DEFAULT)
    assert not [name for name in seen[0] if name.startswith("MALLOC_")]
    assert peak["process"] > peak["growth"] > 0
