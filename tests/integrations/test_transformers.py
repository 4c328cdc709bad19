"""transformers' Trainer: the callback, and an attached rewirer beside an optimizer of one's own."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.frameworks import (
    BATCH,
    EPOCHS,
    METHODS,
    STEPS,
    Net,
    assert_alike,
    data,
    make,
    plain,
    sgd,
)
from helpers.method_training import assert_same

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
RewirerCallback = pytest.importorskip("dsr_kernels.integrations.transformers").RewirerCallback


class Ordered(transformers.Trainer):
    """Batches come in the order of the data, as in the plain loop."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(model, folder, callbacks=(), optimizer=None, accumulate=1, **options):
    settings = {
        "per_device_train_batch_size": BATCH // accumulate,
        "gradient_accumulation_steps": accumulate,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_steps": 5,
        "logging_strategy": "no",
    }
    arguments = transformers.TrainingArguments(str(folder), **settings | options)
    rows = [{"x": x, "labels": y} for x, y in data()]
    return Ordered(
        model,
        arguments,
        train_dataset=rows,
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )


def adamw(model):
    """What the Trainer makes, but for its weight decay of nothing."""
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("way", ["attach", "callback"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_is_the_plain_loop_also_when_it_is_resumed(method, way, tmp_path):
    expected, rewirer = plain(method, make_optimizer=sgd if way == "attach" else adamw)
    seen = []

    def built():
        model = Net()
        if way == "callback":
            callback = RewirerCallback(make(method), on_rewire=seen.append)
            return callback, trainer(model, tmp_path, [callback], optim="adamw_torch")
        optimizer = sgd(model)
        own = make(method)(model, optimizer, STEPS)
        own.attach(on_rewire=seen.append)
        return own, trainer(model, tmp_path, optimizer=optimizer)

    _, whole = built()
    whole.train()
    assert_alike(whole.model, expected)
    assert method == "deepr" or len(seen) == rewirer.rewires
    holder, resumed = built()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_alike(resumed.model, expected)
    final = holder.rewirer if way == "callback" else holder
    assert_same(final.state_dict(), rewirer.state_dict())


def test_accumulated_batches_are_one_iteration(tmp_path):
    callback = RewirerCallback(make())
    whole = trainer(Net(), tmp_path, [callback], accumulate=2, optim="adamw_torch")
    whole.train()
    assert callback.rewirer.iteration == STEPS
    assert callback.rewirer.schedule.stop == STEPS * 3 // 4


class Around(torch.optim.Optimizer):
    """Around another, with a step that calls no hooks, as timm's Lookahead."""

    def __init__(self, inner) -> None:
        self.inner, self.defaults, self.state = inner, inner.defaults, inner.state
        self.param_groups = inner.param_groups
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict
        self.zero_grad = inner.zero_grad

    def step(self, closure=None):
        return self.inner.step(closure)


def test_after_names_the_optimizer_that_counts(tmp_path):
    model, (expected, _) = Net(), plain()
    inner = sgd(model)
    refused = trainer(model, tmp_path, [RewirerCallback(make())], Around(inner))
    with pytest.raises(ValueError, match="pass the SGD as `after`"):
        refused.train()
    for found in (False, True):
        model = Net()
        inner = sgd(model)
        after = (lambda given: given.optimizer.inner) if found else inner
        callback = RewirerCallback(make(), after=after)
        trainer(model, tmp_path, [callback], Around(inner), save_strategy="no").train()
        assert callback.rewirer.iteration == STEPS
        assert_alike(model, expected)


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    trainer(Net(), tmp_path, optim="adamw_torch").train()
    path = str(tmp_path / "checkpoint-5")
    again = trainer(Net(), tmp_path, [RewirerCallback(make())], optim="adamw_torch")
    with pytest.raises(ValueError, match="training goes on after step 5, expected a checkpoint wi"):
        again.train(resume_from_checkpoint=path)
    state = json.loads((tmp_path / "checkpoint-5/trainer_state.json").read_text())
    assert "RewirerCallback" not in state["stateful_callbacks"]


def test_callbacks_that_are_built_anew_are_refused(tmp_path):
    def built(**more):
        callback = RewirerCallback(make())
        return trainer(Net(), tmp_path, [callback], optim="adamw_torch", **more)

    built().train()
    again = built(restore_callback_states_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"make: .*Leave it at False"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
