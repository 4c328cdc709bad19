"""The training loop. Equal seeds give equal bits, and a run resumes exactly from any iteration."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from dsr_kernels.cuda.replayer import Replayer
from dsr_kernels.errors import Interrupted
from dsr_kernels.training import placement
from dsr_kernels.training.data.sets import Split, eval_batches, train_batches
from dsr_kernels.training.finite import first_non_finite
from dsr_kernels.training.measures import Tally, hits, named
from dsr_kernels.training.networks import logits
from dsr_kernels.training.parts import Parts
from dsr_kernels.training.progress import Progress
from dsr_kernels.training.queue import Queue
from dsr_kernels.training.recipe.schema import at
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.run.folder import resume_command
from dsr_kernels.training.setup import sparse_layers
from dsr_kernels.training.signals import StopRequest


class Trainer(Parts):
    """Trains a run, from where its parts stand to the end."""

    queue: Queue | None  # of a device that runs ahead
    step: Callable[..., tuple[torch.Tensor, ...]]  # of a batch there: see `_step`

    def train(self) -> Json:
        """Trains to the end and returns the results. Raises Interrupted or TrainingStopped."""
        epochs = self.recipe.training.epochs
        self.total = epochs * self.epoch_length
        quiet = self.quiet if self.world.is_first else True
        self.progress = Progress(self.total, self.position.iteration, epochs, quiet)
        self.queue = None
        if self.world.size == 1 and placement.runs_ahead(self.device):
            self.queue = Queue(self.device)
            self.step = self._step
            if self.recipe.training.cuda_graph:
                parts = self.model, self.optimizer, self.scaler
                self.step = Replayer(self._step, *parts, say=self.progress.say)
        try:
            doing = "saving a checkpoint" if self.world.size == 1 else "at the next iteration"
            with StopRequest(doing, self.world.is_first) as self.stop:
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
            self.data, recipe.data, size, seed, now.epoch, now.batch, self.device, self.world.share
        )
        with contextlib.closing(batches):
            batch = next(batches, None)
            while batch is not None:
                images, labels = batch
                if self.queue is None:
                    loss, correct = self._iteration(images, labels)
                else:
                    self._queue_iteration(self.queue, images, labels)
                batch = next(batches, None)  # while a GPU is still busy with this one
                if self.queue is None:
                    now.measured(loss, int(correct), size)  # waits for the device
                elif self.queue.is_full or batch is None:
                    self._read_queue()
                now.advance(time.perf_counter() - started)
                self.progress.iteration(now.epoch, now.means(), now.batch * size / now.seconds)
                self._safe_point()
                started = time.perf_counter()

    def _forward(
        self, images: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, output [B, classes]), both still on the device."""
        with placement.autocast(self.device, self.recipe.training.precision):
            model = self.parallel if self.model.training else self.model
            output = model(images.contiguous(memory_format=self.format))
            output = logits(output, len(labels), self.data.classes, self.recipe.model.name)
            loss = F.cross_entropy(output, labels, reduction=reduction)
        return loss, output

    def _iteration(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Trains on this process's share of a batch; returns the mean loss of the whole batch, and
        how many of its images it got right.
        """
        self._set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss, output = self._forward(images, labels)
        value, correct = loss.item(), hits(output, labels)
        if self.world.size > 1:
            value, correct = self._sums(value / self.world.size, int(correct))
        if not math.isfinite(value):
            self._stop_training(f"the loss became {value}")
        self._descend(loss)
        self._rewire()
        return value, correct

    def _queue_iteration(self, queue: Queue, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Trains on a batch, and leaves its numbers on the device: nothing waits for that."""
        self._set_rate()
        queue.put(self.position.iteration + 1, *self.step(images, labels))
        self._rewire()

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(the batch's loss, how many of its images it got right), from zero_grad to the
        optimizer's step. Looks at no number, so that a graph can have it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, output = self._forward(images, labels)
        correct = hits(output, labels)
        self._descend(loss)
        return loss.detach(), correct

    def _set_rate(self) -> None:
        now = self.position
        rate = at(self.recipe.optimizer.lr, now.epoch + now.batch / self.epoch_length)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _descend(self, loss: torch.Tensor) -> None:
        """Backward, and the optimizer's step."""
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if l1 := self.recipe.optimizer.l1:
            # The gradient of l1 * sum |w|. It is 0 at weights just grown, which are 0.
            for weight in self.penalized:
                if weight.grad is None:  # of a layer that this model has and does not use
                    continue
                weight.grad.add_(weight.detach().sign(), alpha=l1)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _read_queue(self) -> None:
        """Adds up what iterations have left on the device. Raises TrainingStopped for the first
        whose loss is not finite: so many iterations late as the queue is long, at most, and before
        anything is saved.
        """
        for number, loss, correct in () if self.queue is None else self.queue.take():
            if not math.isfinite(loss):
                self._stop_training(f"the loss became {loss}", number)
            self.position.measured(loss, correct, self.recipe.training.batch_size)

    def save(self) -> None:
        self._read_queue()
        super().save()

    def _rewire(self) -> None:
        if self.rewirer is None:
            return
        try:
            report = self.rewirer.step()
        except (RuntimeError, ValueError) as error:
            self._read_queue()  # a loss may have been the first to be nan
            several = self.world.size > 1
            # Running statistics differ between processes, which must decide alike.
            if found := first_non_finite(self.model, buffers=not several):
                self._stop_training(f"a {found.kind} is not finite at a rewire")
            if several and str(error).startswith("rewire: "):  # raised in all of them
                self._stop_disagreement(str(error))
            raise RuntimeError(
                f"rewiring failed at iteration {self.position.iteration + 1}"
            ) from error
        if self.exploration is not None:
            self.exploration.update()
        if report is not None:
            now = self.position
            epoch = now.epoch + (now.batch + 1) / self.epoch_length
            self._record_rewire(report, now.iteration + 1, epoch)

    def _safe_point(self) -> None:
        """Between iterations: stops if a signal asked for it, saves if a checkpoint is due."""
        if self.world.size == 1:
            self._sums()
        late, *asked = self.wishes
        settings, now = self.recipe.checkpoint, self.position
        if any(asked):
            self.save()
            self.world.wait()  # torchrun ends the first process as soon as another has ended
            stopped = Interrupted(
                f"stopped after iteration {now.iteration} of {self.total}; "
                f"continue with: {resume_command(self.run.folder)}",
                StopRequest.code_of(asked),
            )
            raise self.world.everywhere(stopped)
        by_count = settings.every_iterations and now.iteration % settings.every_iterations == 0
        if late or by_count:
            self.save()

    def _sums(self, *numbers: float) -> list[float]:
        """Each number summed over all processes. These learn by the way what any of them wishes to
        do at the next safe point: save, stop.
        """
        often = self.recipe.checkpoint.every_seconds
        late = often and time.monotonic() - self.saved_time >= often
        wishes = [float(bool(late) and self.world.is_first), *self.stop.asked()]
        sums = self.world.sums(*numbers, *wishes)
        self.wishes = sums[len(numbers) :]
        return sums[: len(numbers)]

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
        if self.records is not None:
            self.records.epoch(row, timing)
            self.progress.epoch(row, timing["images_per_second"])
        self.position = now.next_epoch()

    @torch.no_grad()
    def evaluate(self, split: Split) -> dict[str, float]:
        """All `measures` of a whole split, with the model in evaluation mode."""
        self.world.share_buffers(self.model)
        self.model.eval()
        tally = Tally(self.measures)
        size, share = self.recipe.training.eval_batch_size, self.world.share
        batches = eval_batches(self.data, split, size, self.device, share)
        with contextlib.closing(batches):
            for images, labels in batches:
                if len(labels):  # the last batch may be smaller than the number of processes
                    tally.add(*self._forward(images, labels, "sum"), labels)
                if self.world.size > 1:
                    self._sums()
                self._safe_point()
        self.model.train()
        return tally.means(len(split), self._sums)

    def _results(self) -> Json:
        """What the test set says, once, at the very end."""
        return {**named("test", self.evaluate(self.data.test)), "test_images": len(self.data.test)}
