"""The parts of a run: made new or as a checkpoint has them, and saved into checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import torch

from dsr_kernels.errors import TrainingStopped, UsageError
from dsr_kernels.models.layers import weight_tensors
from dsr_kernels.rewiring import RewireReport
from dsr_kernels.rewiring.exploration import Exploration
from dsr_kernels.training import placement, random_numbers, take_over
from dsr_kernels.training.data.sets import DataSet
from dsr_kernels.training.finite import first_non_finite, in_words
from dsr_kernels.training.measures import measures
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import build_rewirer
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.checkpoint import STATE, Checkpoints, State
from dsr_kernels.training.run.folder import Run, resume_command
from dsr_kernels.training.run.position import Position
from dsr_kernels.training.run.records import Records
from dsr_kernels.training.run.stored_state import (
    MISFITS,
    WrongState,
    check_keys,
    check_optimizer,
    check_position,
    check_presence,
    check_weights,
)
from dsr_kernels.training.run.trackers import open_trackers
from dsr_kernels.training.setup import FORMATS, build_model, build_optimizer, sparse_layers
from dsr_kernels.training.world import ALONE, World


@dataclass
class Parts:
    """All parts of a run while it runs; `start` makes them new or as the checkpoint has them."""

    run: Run
    recipe: Recipe
    data: DataSet
    quiet: bool | None = None
    device: torch.device = placement.CPU
    world: World = ALONE
    position: Position = field(default_factory=Position)
    records: Records | None = None  # before `start`, and in all processes but the first

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
        model = build_model(recipe, self.data)
        self.model = self.world.prepare(model, recipe.distributed).to(self.device)

    def start(self) -> None:
        """Loads the newest checkpoint, or begins anew where there is none."""
        random_numbers.seed(self.world, self.recipe.seed)
        # The pattern comes first: optimizer state belongs to the checkpoint's non-zeros.
        state = self.load_weights()
        newest = state and self.checkpoints.steps()[-1].name
        self.world.check_same({f"newest checkpoint in {self.run.folder}": newest})
        self.origin = None if state else take_over.take_over(self.recipe, self.model, self.data)
        self.parallel = self.world.wrap(self.model, self.recipe.distributed)
        self.penalized = [weight for _, _, weight in weight_tensors(self.model)]
        self.optimizer = build_optimizer(self.recipe, self.model)
        self.scaler = placement.loss_scaler(self.device, self.recipe.training.precision)
        self.rewirer = build_rewirer(self.recipe, self.parallel, self.optimizer, self.epoch_length)
        layers = list(sparse_layers(self.model))
        wanted = self.recipe.rewiring.record_exploration and bool(layers)
        self.exploration = Exploration(self.model) if wanted and self.world.is_first else None
        if state is not None:
            self._take(state)
        now = self.position
        options: dict[str, Any] = {"exploration": wanted, "top5": "top5" in self.measures}
        if self.world.is_first:
            self.recipe_text = (self.run.folder / "recipe.toml").read_bytes()
            with contextlib.ExitStack() as opened:
                trackers = open_trackers(self.run.folder, self.recipe)
                for tracker in trackers:
                    opened.callback(tracker.close, failed=True)
                options["trackers"] = trackers
                self.records = Records(self.run.folder, layers, state, now.iteration, **options)
                opened.pop_all()  # the records close them
            if "rewires" in self.records.begun:
                self._record_rewire(None, now.iteration, now.epoch + now.batch / self.epoch_length)
        self.saved_at = None if state is None else self._moment()
        self.saved_time = time.monotonic()

    def _take(self, state: State) -> None:
        """Goes on with all that the newest checkpoint holds beside the weights."""
        with self._stored("optimizer"):
            check_optimizer(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # the checkpoint may be another device's
            group["fused"] = self.optimizer.defaults["fused"]
        with self._stored("scaler"):
            self.scaler.load_state_dict(state.get("scaler", {}))
        with self._stored("rewirer"):
            check_presence(state["rewirer"], self.rewirer is not None)
            if self.rewirer is not None and state["rewirer"] is not None:
                self.rewirer.load_state_dict(state["rewirer"])
        with self._stored("random"):
            random_numbers.restore(self.world, self.device, state)
        if self.world.is_first:
            with self._stored("exploration"):
                check_presence(state["exploration"], self.exploration is not None)
                if self.exploration is not None and state["exploration"] is not None:
                    self.exploration.load_state_dict(state["exploration"])
        with self._stored("position"):
            self.position = Position(**state["position"])
            check_position(self.position, self.epoch_length)

    @contextlib.contextmanager
    def _stored(self, key: str) -> Iterator[None]:
        """Raises UsageError where this part of state.pt is not what the run can go on with."""
        try:
            yield
        except MISFITS as error:
            first = (str(error).splitlines() or [""])[0]
            what = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
            raise self._does_not_fit(f"{STATE}: {key}: {what}") from None

    def load_weights(self) -> State | None:
        """Loads the newest checkpoint's weights; returns its state, None where there is none."""
        weights, state = self.checkpoints.load_latest() or ({}, None)
        if state is None:
            return None
        try:
            check_keys(state)
        except WrongState as error:
            raise self._does_not_fit(f"{STATE}: {error}") from None
        self.run.check_state(state, self.recipe, self.data.fingerprint())
        try:
            check_weights(weights, self.model.state_dict())
            self.model.load_state_dict(weights)
        except (RuntimeError, ValueError) as error:
            raise self._does_not_fit(error) from None
        return state

    def _does_not_fit(self, error: Exception | str) -> UsageError:
        return UsageError(f"{self.run.folder}: the checkpoint does not fit: {error}")

    def _record_rewire(self, report: RewireReport | None, iteration: int, epoch: float) -> None:
        if self.records is None:
            return
        rate = self.exploration and self.exploration.rate
        self.records.rewire(iteration, epoch, report, sparse_layers(self.model), rate)

    def save(self) -> None:
        """Saves a checkpoint of this moment, unless there is one.

        Raises TrainingStopped instead where a weight is not finite.
        """
        if self.saved_at == self._moment():
            return
        self.world.share_buffers(self.model)
        if found := first_non_finite(self.model):
            self._stop_training(f"a {found.kind} is not finite")
        random = random_numbers.collect(self.world, self.device)
        if self.records is not None:
            self._write_checkpoint(self.records, random)
        self.saved_at, self.saved_time = self._moment(), time.monotonic()

    def _write_checkpoint(self, records: Records, random: dict[str, Any]) -> None:
        now = self.position
        state: State = {
            "recipe": recipes.dump(self.recipe),
            "position": asdict(now),
            "optimizer": self.optimizer.state_dict(),
            "rewirer": None if self.rewirer is None else self.rewirer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **random,
            "exploration": self.exploration and self.exploration.state_dict(),
            "lengths": records.lengths(),
            "sums": records.sums(),
            "data": self.data.fingerprint(),
        }
        self.checkpoints.save(now.iteration, self.model.state_dict(), state, self.recipe_text)

    def _moment(self) -> tuple[int, int]:
        return self.position.epoch, self.position.iteration

    def _stop_training(self, what: str, iteration: int | None = None) -> NoReturn:
        """Raises TrainingStopped, which says where and what the last good checkpoint is.

        iteration: of this epoch, where it was; None: the present one.
        """
        now = self.position
        at = now.iteration + 1 if iteration is None else iteration
        where = in_words(first_non_finite(self.model))
        stopped = TrainingStopped(
            f"{what} at iteration {at} (epoch {now.epoch + 1}); {where}; {self._last_good()}"
        )
        raise self.world.everywhere(stopped)

    def _stop_disagreement(self, what: str) -> NoReturn:
        """Raises TrainingStopped for processes whose models are no longer the same."""
        now = self.position
        stopped = TrainingStopped(
            f"iteration {now.iteration + 1} (epoch {now.epoch + 1}): {what}; {self._last_good()}; "
            f"go on from it with: {resume_command(self.run.folder)}"
        )
        raise self.world.everywhere(stopped)

    def _last_good(self) -> str:
        kept = self.checkpoints.steps()
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
