"""Some cases of tests/fuzz/calls.py; continuous integration runs it for two minutes under ASan."""

from __future__ import annotations

from collections import Counter

from fuzz import calls


def test_random_calls_are_answered_rightly_or_refused() -> None:
    counts = Counter(calls.one(seed) for seed in range(160))
    assert set(counts) == {"right", "answered", "refused"}
    assert counts["refused"] > 20 < counts["right"]
