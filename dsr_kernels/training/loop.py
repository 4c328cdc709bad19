"""The training loop. Equal seeds give equal bits, and a run resumes exactly from any iteration."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import torch
from torch.nn import functional as F

from dsr_kernels.errors import Interrupted, TrainingStopped, UsageError
from dsr_kernels.models.layers import weight_tensors
from dsr_kernels.rewiring import RewireReport
from dsr_kernels.rewiring.exploration import Exploration
from dsr_kernels.training import placement, take_over
from dsr_kernels.training.data.sets import DataSet, Split, eval_batches, train_batches
from dsr_kernels.training.finite import first_non_finite, in_words
from dsr_kernels.training.measures import Tally, hits, measures, named
from dsr_kernels.training.progress import Progress
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import build_rewirer
from dsr_kernels.training.recipe.schema import Recipe, at
from dsr_kernels.training.run.checkpoint import Checkpoints, State
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.run.folder import Run, resume_command
from dsr_kernels.training.run.position import Position
from dsr_kernels.training.run.records import Records
from dsr_kernels.training.setup import FORMATS, build_model, build_optimizer, sparse_layers
from dsr_kernels.training.signals import StopRequest


@dataclass
class Trainer:
    """All parts of a run while it runs; `start` makes them new or as the checkpoint has them."""

    run: Run
    recipe: Recipe
    data: DataSet
    quiet: bool | None = None
    device: torch.device = placement.CPU
    position: Position = field(default_factory=Position)
    records: Records | None = None  # before `start`

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.epoch_length = len(self.data.train) // recipe.training.batch_size
        if self.epoch_length == 0:
            raise UsageError(
                f"recipe: training.batch_size: {recipe.training.batch_size} is more than the "
                f"{len(self.data.train)} training images"
            )
        self.checkpoints = Checkpoints(self.run.folder / "checkpoints", recipe.checkpoint.keep)
        self.measures = measures(self.data.classes)
        self.format = FORMATS[recipe.model.memory_format]
        self.model = build_model(recipe, self.data).to(self.device)

    def start(self) -> None:
        """Loads the newest checkpoint, or begins anew where there is none."""
        torch.manual_seed(self.recipe.seed)
        self.recipe_text = (self.run.folder / "recipe.toml").read_bytes()
        # The pattern comes first: optimizer state belongs to the checkpoint's non-zeros.
        state = self.load_weights()
        self.origin = None if state else take_over.take_over(self.recipe, self.model, self.data)
        self.penalized = [weight for _, _, weight in weight_tensors(self.model)]
        self.optimizer = build_optimizer(self.recipe, self.model)
        self.scaler = placement.loss_scaler(self.device, self.recipe.training.precision)
        self.rewirer = build_rewirer(self.recipe, self.model, self.optimizer, self.epoch_length)
        layers = list(sparse_layers(self.model))
        wanted = self.recipe.rewiring.record_exploration and bool(layers)
        self.exploration = Exploration(self.model) if wanted else None
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:  # the checkpoint may be another device's
                group["fused"] = self.optimizer.defaults["fused"]
            self.scaler.load_state_dict(state.get("scaler", {}))
            if self.rewirer is not None:
                try:
                    self.rewirer.load_state_dict(state["rewirer"])
                except ValueError as error:
                    raise self._does_not_fit(error) from None
            placement.restore_random(self.device, state)
            if wanted:
                self.exploration.load_state_dict(state["exploration"])
            self.position = Position(**state["position"])
        now = self.position
        options = {"exploration": wanted, "top5": "top5" in self.measures}
        self.records = Records(self.run.folder, layers, state, now.iteration, **options)
        if "rewires" in self.records.begun:
            self._record_rewire(None, now.iteration, now.epoch + now.batch / self.epoch_length)
        self.saved_at = None if state is None else self._moment()
        self.saved_time = time.monotonic()

    def load_weights(self) -> State | None:
        """Loads the newest checkpoint's weights; returns its state, None where there is none."""
        weights, state = self.checkpoints.load_latest() or ({}, None)
        if state is None:
            return None
        self.run.check_state(state, self.recipe, self.data.fingerprint())
        try:
            self.model.load_state_dict(weights)
        except (RuntimeError, ValueError) as error:
            raise self._does_not_fit(error) from None
        return state

    def _does_not_fit(self, error: Exception) -> UsageError:
        return UsageError(f"{self.run.folder}: the checkpoint does not fit: {error}")

    def train(self) -> Json:
        """Trains to the end and returns the results. Raises Interrupted or TrainingStopped."""
        epochs = self.recipe.training.epochs
        self.total = epochs * self.epoch_length
        self.progress = Progress(self.total, self.position.iteration, epochs, self.quiet)
        try:
            with StopRequest() as self.stop:
                if self.saved_at is None:
                    self.save()
                while self.position.epoch < epochs:
                    self._train_epoch()
                    self._finish_epoch()
                if self.rewirer is not None and (left := self.rewirer.take_report()):
                    self._record_rewire(left, self.position.iteration, epochs)
                self.save()
                return self._results()
        finally:
            self.progress.close()

    def _train_epoch(self) -> None:
        now, recipe = self.position, self.recipe
        self.model.train()
        started = time.perf_counter()
        size, seed = recipe.training.batch_size, recipe.seed
        batches = train_batches(
            self.data, recipe.data, size, seed, now.epoch, now.batch, self.device
        )
        with contextlib.closing(batches):
            batch = next(batches, None)
            while batch is not None:
                images, labels = batch
                loss, correct = self._iteration(images, labels)
                batch = next(batches, None)  # while a GPU is still busy with this one
                correct = int(correct)  # waits for the device
                now.add(loss, correct, len(labels), time.perf_counter() - started)
                means = now.loss / now.seen, now.correct / now.seen
                self.progress.iteration(now.epoch, *means, now.seen / now.seconds)
                self._safe_point()
                started = time.perf_counter()

    def _forward(
        self, images: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, output [B, classes]), both still on the device."""
        with placement.autocast(self.device, self.recipe.training.precision):
            output = self.model(images.contiguous(memory_format=self.format))
            loss = F.cross_entropy(output, labels, reduction=reduction)
        return loss, output

    def _iteration(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Trains on one batch; returns its mean loss and the number of images it got right."""
        now, settings = self.position, self.recipe.optimizer
        rate = at(settings.lr, now.epoch + now.batch / self.epoch_length)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, output = self._forward(images, labels)
        value = loss.item()
        if not math.isfinite(value):
            self._stop_training(f"the loss became {value}")
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if settings.l1:
            # The gradient of l1 * sum |w|. It is 0 at weights just grown, which are 0.
            for weight in self.penalized:
                weight.grad.add_(weight.detach().sign(), alpha=settings.l1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._rewire()
        return value, hits(output, labels)

    def _rewire(self) -> None:
        if self.rewirer is None:
            return
        try:
            report = self.rewirer.step()
        except (RuntimeError, ValueError) as error:
            if found := first_non_finite(self.model):
                self._stop_training(f"a {found.kind} is not finite at a rewire")
            raise RuntimeError(
                f"rewiring failed at iteration {self.position.iteration + 1}"
            ) from error
        if self.exploration is not None:
            self.exploration.update()
        if report is not None:
            now = self.position
            epoch = now.epoch + (now.batch + 1) / self.epoch_length
            self._record_rewire(report, now.iteration + 1, epoch)

    def _record_rewire(self, report: RewireReport | None, iteration: int, epoch: float) -> None:
        rate = self.exploration and self.exploration.rate
        self.records.rewire(iteration, epoch, report, sparse_layers(self.model), rate)

    def _safe_point(self) -> None:
        """Between iterations: stops if a signal asked for it, saves if a checkpoint is due."""
        settings, now = self.recipe.checkpoint, self.position
        if self.stop.signum is not None:
            self.save()
            raise Interrupted(
                f"stopped after iteration {now.iteration} of {self.total}; "
                f"continue with: {resume_command(self.run.folder)}",
                self.stop.exit_code,
            )
        elapsed = time.monotonic() - self.saved_time
        by_time = settings.every_seconds and elapsed >= settings.every_seconds
        by_count = settings.every_iterations and now.iteration % settings.every_iterations == 0
        if by_time or by_count:
            self.save()

    def _finish_epoch(self) -> None:
        """Evaluates, records one row and goes to the next epoch.

        A stop during the evaluation discards it.
        """
        now, recipe = self.position, self.recipe
        row: dict[str, Any] = {
            "epoch": now.epoch + 1,
            "iteration": now.iteration,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": now.loss / now.seen,
            "train_accuracy": now.correct / now.seen,
            "nonzeros": sum(sparse_layers(self.model).values()) or None,
        }
        if self.data.validation is not None:
            row |= named("validation", self.evaluate(self.data.validation))
        every = recipe.training.eval_test_every
        if every and (now.epoch + 1) % every == 0:
            row |= named("test", self.evaluate(self.data.test))
        timing = now.timing()
        self.records.epoch(row, timing)
        self.progress.epoch(row, timing["images_per_second"])
        self.position = now.next_epoch()

    @torch.no_grad()
    def evaluate(self, split: Split) -> dict[str, float]:
        """All `measures` of a whole split, with the model in evaluation mode."""
        self.model.eval()
        tally = Tally(self.measures)
        size = self.recipe.training.eval_batch_size
        with contextlib.closing(eval_batches(self.data, split, size, self.device)) as batches:
            for images, labels in batches:
                tally.add(*self._forward(images, labels, "sum"), labels)
                self._safe_point()
        self.model.train()
        return tally.means(len(split))

    def save(self) -> None:
        """Saves a checkpoint of this moment, unless there is one.

        Raises TrainingStopped instead where a weight is not finite.
        """
        now = self.position
        if self.saved_at == self._moment():
            return
        if found := first_non_finite(self.model):
            self._stop_training(f"a {found.kind} is not finite")
        state: State = {
            "recipe": recipes.dump(self.recipe),
            "position": asdict(now),
            "optimizer": self.optimizer.state_dict(),
            "rewirer": None if self.rewirer is None else self.rewirer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **placement.random_state(self.device),
            "exploration": self.exploration and self.exploration.state_dict(),
            "lengths": self.records.lengths(),
            "sums": self.records.sums(),
            "data": self.data.fingerprint(),
        }
        self.checkpoints.save(now.iteration, self.model.state_dict(), state, self.recipe_text)
        self.saved_at, self.saved_time = self._moment(), time.monotonic()

    def _moment(self) -> tuple[int, int]:
        return self.position.epoch, self.position.iteration

    def _stop_training(self, what: str) -> NoReturn:
        """Raises TrainingStopped, which says where and what the last good checkpoint is."""
        now = self.position
        where = in_words(first_non_finite(self.model))
        kept = self.checkpoints.steps()
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise TrainingStopped(
            f"{what} at iteration {now.iteration + 1} (epoch {now.epoch + 1}); {where}; {last}"
        )

    def _results(self) -> Json:
        """What the test set says, once, at the very end."""
        return {**named("test", self.evaluate(self.data.test)), "test_images": len(self.data.test)}
