"""Training under autocast: the activations are low, the weights are not, and a resume is exact."""

import pytest
import torch
from helpers.small_runs import QUIET, artefacts, interrupt_at, rows, small, train

from dsr_kernels.cli import main
from dsr_kernels.training import loop, parts
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.folder import Run

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_learns_in_low_precision_and_keeps_its_weights_in_float32(
    precision, tmp_path, monkeypatch
):
    seen = set()
    real = parts.build_model

    def watched(*args):
        model = real(*args)
        model.fc3.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        return model

    monkeypatch.setattr(parts, "build_model", watched)
    run = tmp_path / "run"
    change = f"training.precision={precision}"
    assert train(run, change, "training.epochs=6", "rewiring.stop_epoch=5") == 0
    assert seen == {PRECISIONS[precision]}
    assert float(rows(run, "metrics")[-1]["validation_accuracy"]) > 0.9
    weights, state = Checkpoints(run / "checkpoints").load_latest()
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}
    assert bool(state["scaler"]) == (precision == "float16")


@pytest.mark.parametrize(
    "precision,kind,iteration",
    [("bfloat16", "lenet", 17), ("bfloat16", "wrn", 5), ("float16", "lenet", 17)],
)
def test_a_resume_is_exact(precision, kind, iteration, tmp_path):
    change = f"training.precision={precision}"
    assert train(tmp_path / "whole", change, kind=kind) == 0
    run = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, iteration)
        assert train(run, change, kind=kind) == 130
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == artefacts(tmp_path / "whole")


def test_a_step_that_overflows_is_left_out_and_halves_the_scale(tmp_path, monkeypatch):
    real, began = loop.Trainer.start, {}

    def overflowing(self):
        real(self)
        weight = self.model.fc3.weight_values
        weight.register_hook(lambda gradient: gradient * float("inf"))
        began["fc3"] = weight.detach().clone()

    monkeypatch.setattr(loop.Trainer, "start", overflowing)
    interrupt_at(monkeypatch, 3)
    assert train(tmp_path / "run", "training.precision=float16", "method=static") == 130
    weights, state = Checkpoints(tmp_path / "run/checkpoints").load_latest()
    assert torch.equal(weights["fc3.weight_values"], began["fc3"])
    assert state["scaler"]["scale"] == 2.0**13


def test_a_checkpoint_from_before_there_were_precisions_is_taken(tmp_path):
    recipe = small()
    run = Run.create(tmp_path / "run", recipe)
    text = recipes.dump(recipe)
    older = text.replace('precision = "float32"\n', "")
    assert older != text
    run.check_state({"recipe": older, "data": "digits"}, recipe, "digits")
