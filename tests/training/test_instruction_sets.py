"""A run that goes on with another instruction set says that its bits will differ."""

from __future__ import annotations

import pytest
import torch

from dsr_kernels import environment
from dsr_kernels.training import announce


@pytest.mark.parametrize("began", ["avx2", "sse9"])
def test_another_instruction_set_is_said(
    began: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(announce, "isa", lambda: "avx2")
    machine = {**environment.machine(torch.device("cpu")), "isa": began}
    announce.say_rounding(machine, None)
    said = capsys.readouterr().out
    assert ("began with the instruction set sse9" in said) == (began == "sse9")
    assert said.count("bit-identical") == (began == "sse9")


def test_another_number_of_threads_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    machine = environment.machine(torch.device("cpu"))
    announce.say_rounding(machine, machine["threads"])
    announce.say_rounding({"threads": 3}, None)  # as older versions wrote it
    assert not capsys.readouterr().out
    announce.say_rounding(machine, machine["threads"] + 1)
    assert "layers round differently" in capsys.readouterr().out
