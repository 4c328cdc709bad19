"""Which run is the best dense one, and what is said of it."""

from __future__ import annotations

import pytest

from dsr_kernels.bench import rivals

ALL = {
    "dense NCHW": 9.0,
    "dense channels_last": 8.0,
    "dense channels_last, compiled": 7.0,
    "dense bf16 NCHW": 6.0,
    "dense bf16 channels_last, folded, compiled": 3.0,
    "dense + mask": 1.0,
    "sparseprop": 1.0,
    "ours": 3.5,
    "ours, fused": 2.0,
    "ours bf16": 4.0,
}


def taken(times: dict[str, float]) -> dict[str, dict[str, float]]:
    """Fastest rounds; medians say the contrary, and must not count."""
    return {name: {"min": ms, "median": 100 - ms} for name, ms in times.items()}


def test_names_say_side_and_precision() -> None:
    sides = [rivals.side_of(name) for name in ALL]
    assert sides == ["dense"] * 5 + [None] * 2 + ["ours"] * 3
    assert [rivals.precision_of(name) for name in ALL].count("bf16") == 3
    for name in ("dense bf17 NCHW", "denser", "ours ", "dense NCHW, pruned", "theirs"):
        assert rivals.side_of(name) is None, name


def test_the_verdict_sets_ours_against_the_best_of_the_same_precision_and_of_all() -> None:
    assert rivals.verdict(taken(ALL)) == {
        "speed-up": 3.5,
        "speed-up by precision": {"fp32": 3.5, "bf16": 0.75},
        "best dense": "dense bf16 channels_last, folded, compiled",
        "best ours": "ours, fused",
        "over best dense": 1.5,
    }


def test_what_was_not_timed_is_absent() -> None:
    found = rivals.verdict(taken({"dense NCHW": 2.0, "ours": 4.0, "ours bf16": 1.0}))
    assert found["speed-up by precision"] == {"fp32": 0.5}
    assert (found["best ours"], found["over best dense"]) == ("ours bf16", 2.0)
    assert rivals.fastest(taken({"ours": 1.0}), "dense") is None


@pytest.mark.parametrize(
    "name, words",
    [
        ("dense NCHW", "fp32 NCHW"),
        ("dense bf16 channels_last, folded, compiled", "bf16 channels_last, folded, compiled"),
        ("ours", "fp32"),
        ("ours, fused", "fp32 fused"),
        ("ours bf16, fused", "bf16, fused"),
    ],
)
def test_words_for_tables(name, words) -> None:
    assert rivals.words(name) == words


@pytest.mark.parametrize(
    "by, amx, said",
    [
        ("AMX", True, "matrix units (AMX)"),
        ("AVX512-BF16", False, "by AVX512-BF16: this processor has no AMX"),
        ("AVX512-BF16", True, "by AVX512-BF16: AMX is there, and oneDNN may not use it"),
        ("fp32", False, "widened to fp32: this processor has no AMX"),
        (None, False, "was not measured: oneDNN does not take it"),
    ],
)
def test_the_reader_is_told_by_what_dense_bf16_runs(monkeypatch, by, amx, said) -> None:
    monkeypatch.setattr(rivals, "dense_bf16_by", lambda: by)
    monkeypatch.setattr(rivals, "has_amx", lambda: amx)
    assert said in rivals.rival_sentence()
    assert rivals.bf16_here() == (by is not None)
