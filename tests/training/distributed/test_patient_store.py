"""A store that may not answer."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from dsr_kernels.training.patient_store import PatientStore


def test_what_the_store_answers():
    store = PatientStore(dist.HashStore(), 10)
    store.set("key", "word")
    assert store.get("key") == b"word" and store.check(["key"]) and not store.check(["other"])
    assert (store.add("count", 2), store.add("count", 0)) == (2, 2)
    assert store.compare_set("key", "", "late") == b"word"


class Silent:
    def __init__(self, answers: threading.Event) -> None:
        self.answers = answers

    def check(self, keys):
        self.answers.wait()

    def get(self, key):
        raise RuntimeError("reset by peer")


def test_a_silent_store_is_given_up_and_errors_are_its_own():
    answers = threading.Event()
    store = PatientStore(Silent(answers), 0.05)
    with pytest.raises(OSError, match=r"torchrun's store has not answered for 0\.05 s"):
        store.check(["key"])
    with pytest.raises(RuntimeError, match="reset by peer"):
        store.get("key")
    answers.set()
