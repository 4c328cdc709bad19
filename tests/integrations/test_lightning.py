"""Lightning's Trainer: a rewirer attached in configure_optimizers, and the callback."""

from __future__ import annotations

import pytest
from helpers.frameworks import BATCH, EPOCHS, METHODS, STEPS, Net, assert_alike, loader, make, plain
from helpers.frameworks import sgd as make_sgd

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
RewirerCallback = pytest.importorskip("dsr_kernels.integrations.lightning").RewirerCallback


class Module(pl.LightningModule):
    def __init__(self, method: str = "") -> None:
        super().__init__()
        self.model, self.method, self.reports = Net(), method, []

    def training_step(self, batch):
        return self.model(*batch)["loss"]

    def configure_optimizers(self):
        optimizer = make_sgd(self)
        if self.method:
            rewirer = make(self.method)(self, optimizer, self.trainer.estimated_stepping_batches)
            rewirer.attach(on_rewire=self.reports.append)
        return optimizer


def fit(module, tmp_path, callbacks=(), batch=BATCH, ckpt_path=None, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": EPOCHS, "accelerator": "cpu", "default_root_dir": tmp_path}
    trainer = pl.Trainer(callbacks=list(callbacks), **settings | quiet | options)
    trainer.fit(module, loader(batch), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("way", ["attach", "callback"])
@pytest.mark.parametrize("method", METHODS)
def test_a_fit_is_the_plain_loop_also_when_it_is_resumed(method, way, tmp_path):
    expected, rewirer = plain(method)
    seen = []

    def parts():
        if way == "attach":
            return Module(method), []
        return Module(), [RewirerCallback(make(method), on_rewire=seen.append)]

    module, callbacks = parts()
    fit(module, tmp_path, callbacks, enable_checkpointing=False)
    assert_alike(module.model, expected)
    reports = seen if way == "callback" else module.reports
    assert method == "deepr" or len(reports) == rewirer.rewires
    module, callbacks = parts()
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit(module, tmp_path, [*callbacks, saver])
    assert trainer.global_step == STEPS
    resumed, callbacks = parts()
    path = tmp_path / "epoch=0.ckpt"
    fit(resumed, tmp_path, callbacks, ckpt_path=path, enable_checkpointing=False)
    assert_alike(resumed.model, expected)
    if way == "callback":
        assert callbacks[0].rewirer.rewires == rewirer.rewires
        assert callbacks[0].state_dict()["iteration"] == STEPS  # in the next checkpoint


def test_accumulated_batches_are_one_iteration(tmp_path):
    expected, rewirer = plain(accumulate=2)
    callback = RewirerCallback(make())
    module = Module()
    fit(
        module,
        tmp_path,
        [callback],
        batch=BATCH // 2,
        accumulate_grad_batches=2,
        enable_checkpointing=False,
    )
    assert callback.rewirer.iteration == STEPS == rewirer.iteration
    assert_alike(module.model, expected)


def test_a_second_fit_goes_on(tmp_path):
    module, callback = Module(), RewirerCallback(make())
    trainer = fit(module, tmp_path, [callback], enable_checkpointing=False, max_epochs=1)
    first = callback.rewirer
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(module, loader())
    assert callback.rewirer is not first and callback.rewirer.iteration == STEPS
    assert first.schedule.stop * 2 == callback.rewirer.schedule.stop


class Apart(Module):
    """Each layer has an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [make_sgd(self.model.first), make_sgd(self.model.second)]

    def training_step(self, batch):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.model(*batch)["loss"])
        for optimizer in self.optimizers():
            optimizer.step()


def test_of_several_optimizers_after_names_the_one_that_counts(tmp_path):
    with pytest.raises(ValueError, match="after: expected the optimizer that steps last"):
        fit(Apart(), tmp_path, [RewirerCallback(make())], enable_checkpointing=False)

    def made(model, optimizers, total):
        return make()(model, optimizers, STEPS)  # Lightning counts the steps of both

    callback = RewirerCallback(made, after=lambda optimizers: optimizers[1])
    module, (expected, _) = Apart(), plain()
    fit(module, tmp_path, [callback], enable_checkpointing=False)
    assert callback.rewirer.iteration == STEPS
    assert_alike(module.model, expected)


def test_with_another_trainer_the_callback_starts_anew(tmp_path):
    expected, _ = plain()
    callback = RewirerCallback(make())
    fit(Module(), tmp_path, [callback], enable_checkpointing=False, max_epochs=1)
    module = Module()
    fit(module, tmp_path, [callback], enable_checkpointing=False)
    assert callback.rewirer.iteration == STEPS
    assert_alike(module.model, expected)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(Module(), tmp_path, [saver], max_epochs=1)
    with pytest.raises(ValueError, match="expected a checkpoint with this callback's state"):
        fit(Module(), tmp_path, [callback], ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(Module(), tmp_path, [saver], max_epochs=1)
    path = tmp_path / "epoch=0.ckpt"
    message = "training goes on after step 8, expected a checkpoint with this callback's state"
    with pytest.raises(ValueError, match=message):
        fit(Module(), tmp_path, [RewirerCallback(make())], ckpt_path=path)
    with pytest.raises(ValueError, match="under 'dsr_kernels'"):
        fit(Module("dsr"), tmp_path, ckpt_path=path)


def test_an_error_in_training_detaches(tmp_path):
    class Broken(Module):
        def training_step(self, batch):
            raise ZeroDivisionError

    callback = RewirerCallback(make())
    with pytest.raises(ZeroDivisionError):
        fit(Broken(), tmp_path, [callback])
    callback.rewirer.step()  # is allowed again
