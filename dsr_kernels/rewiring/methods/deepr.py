"""Deep rewiring (Bellec et al., ICLR 2018)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from dsr_kernels.rewiring.layers import KeptPattern, Slot, SparseLayer
from dsr_kernels.rewiring.move import Move
from dsr_kernels.rewiring.names import match_names, under_names
from dsr_kernels.rewiring.optimizers import OneOrMore
from dsr_kernels.rewiring.plan import RewirePlan
from dsr_kernels.rewiring.recipe_keys import STOP_EPOCH, Arguments, Key, MethodRecipe
from dsr_kernels.rewiring.report import RewireReport
from dsr_kernels.rewiring.rewirer import Rewirer, State
from dsr_kernels.rewiring.schedule import Anneal, as_int, as_number


class DeepR(Rewirer):
    """A weight keeps its sign; one that changes it is pruned, and another grows in its layer.

    After every iteration each weight w of sign s moves by -eta * l1 * s + sqrt(2 eta T) * noise
    (standard normal), beside the optimizer's own step. Weights with w * s < 0 are then pruned. As
    many grow at random positions of the same layer, with random signs and value 0. Where a layer
    has no capacity left, or no other weight, they stay and become 0.

    Args:
        model: holds the sparse modules. Frozen ones (`weight_values.requires_grad`
            False) are left alone.
        optimizer: holds their values; its state (momentum, moments) moves with the survivors. A
            list of several, too, see `Rewirer`.
        l1: pull towards 0 (the paper's alpha).
        eta: learning rate of pull and noise, apart from the optimizer's.
        temperature: T at the start; it falls exponentially to `final_temperature`.
        length: iterations over which it falls; default: `stop`, or what `total` makes it.
        report_every: iterations that one report of `step` sums up. `step` also reports at `stop`,
            and `take_report` gives the rest.
        total, stop: see `Rewirer`.
        seed: of noise, positions and signs. On another kind of device noise and signs differ.

    Signs take one byte per non-zero. Raises ValueError for arguments out of range, a model without
    trainable sparse modules, and an optimizer that does not hold their values.
    """

    RECIPE: ClassVar[tuple[Key, ...]] = (
        STOP_EPOCH,  # the end of the temperature's schedule, too; 0: the end of training
        Key("temperature", float, 1e-5, low=0.0),
        Key("final_temperature", float, 1e-15, low=0.0),
        Key("eta", float, 0.01, low=0.0),
        Key("l1", float, 1e-5, low=0.0),
    )
    REPORT_EVERY = 100
    BLOCKS = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: OneOrMore,
        *,
        l1: float = 1e-5,
        eta: float = 0.01,
        temperature: float = 1e-5,
        final_temperature: float = 1e-15,
        length: int | None = None,
        report_every: int = REPORT_EVERY,
        total: int | None = None,
        stop: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, every=1, total=total, stop=stop, seed=seed)
        self._check_trains()
        for layer in self._layers:
            if layer.block > 1:
                raise ValueError(
                    f"layer {layer.name!r}: DeepR prunes a weight that changes its sign, and the "
                    f"{layer.block} weights of a block have signs of their own; use block_size=1 "
                    "or another method"
                )
        self.l1, self.eta = as_number(l1, "l1", 0), as_number(eta, "eta", 0)
        temperature = as_number(temperature, "temperature", 0)
        final_temperature = as_number(final_temperature, "final_temperature", 0)
        length = self.schedule.stop if length is None else as_int(length, "length", 1)
        if length is None:
            raise ValueError(
                "length: expected the iterations over which T falls, or `stop`, or `total`"
            )
        if temperature and not 0 < final_temperature <= temperature:
            raise ValueError(
                f"final_temperature: expected a number in (0, {temperature}], for T falls "
                f"exponentially, got {final_temperature!r}"
            )
        kind = "exponential" if temperature else "constant"
        self.temperature = Anneal(kind, temperature, final_temperature, 0, length or 1)
        self.report_every = as_int(report_every, "report_every", 1)
        self.signs: dict[str, Tensor] = {}  # [nnz] int8 by layer: 1, -1
        self._known: dict[str, tuple[KeptPattern, int]] = {}  # whose signs: see `_remember`
        self._generators: dict[torch.device, torch.Generator] = {}
        self._sum: RewireReport | None = None  # of the iterations since the last report
        for layer in self._layers:
            self._learn_signs(layer)
        self._optimizers.tell(self)

    def step(self) -> RewireReport | None:
        """Counts a finished iteration (call it after `optimizer.step()`, unless the rewirer is
        attached), moves the weights and replaces those that changed sign. Returns a report every
        `report_every` iterations and at `stop`, None where nothing has happened since.
        """
        self._check_caller()
        self._optimizers.tell(self)
        if not self._compared:
            self._compare_settings()
        report = None
        if self.due(self.iteration + 1):
            layers = self._live_layers()
            with self._agree_ahead(layers):  # one process might find no weight to replace
                report = self._move(layers)
        if report is None:
            self.iteration += 1
        else:
            self._sum = report if self._sum is None else self._sum.then(report)
        ended = self.schedule.stop is not None and self.iteration >= self.schedule.stop
        return None if self.iteration % self.report_every and not ended else self.take_report()

    def take_report(self) -> RewireReport | None:
        """One report of all since the last one; None where nothing has happened."""
        report, self._sum = self._sum, None
        return report and dataclasses.replace(report, step=self.iteration)

    def _move(self, layers: list[SparseLayer]) -> RewireReport | None:
        """Moves the weights, and rewires where one has changed its sign. Changes nothing where that
        raises.
        """
        before = [layer.weight_values.detach().clone() for layer in layers]
        try:
            self._perturb(layers)
            return super().step() if self._flipped(layers) else None
        except BaseException:
            for layer, values in zip(layers, before, strict=True):
                layer.weight_values.detach().copy_(values)
            raise

    @torch.no_grad()
    def _perturb(self, layers: list[SparseLayer]) -> None:
        scale = math.sqrt(2 * self.eta * self.temperature.at(self.iteration))
        for layer in layers:
            signs = self._signs_of(layer)
            values = layer.weight_values.detach()
            generator = self._generator(values.device, layer.index)
            if self.l1 * self.eta:
                values.sub_(signs, alpha=self.l1 * self.eta)
            if scale:
                noise = torch.empty_like(values).normal_(generator=generator)
                values.add_(noise, alpha=scale)

    def _flipped(self, layers: list[SparseLayer]) -> bool:
        """Whether a weight has the wrong sign, or is NaN."""
        right = [(self._signed(layer) >= 0).all() for layer in layers]
        # Waits for a GPU once, not once for each layer.
        return bool(right) and not torch.stack([r.to(right[0].device) for r in right]).all()

    # ---- the engine's hooks -------------------------------------------------------------------

    def _scores(self, layers: list[SparseLayer]) -> list[Tensor]:
        """0 for a weight of the wrong sign, 1 for any other."""
        right = [(self._signed(layer) >= 0).flatten() for layer in layers]
        return [r.to(layer.weight_values.dtype) for r, layer in zip(right, layers, strict=True)]

    def _prune(self, plan: RewirePlan, layers: list[SparseLayer]) -> tuple[float, float]:
        for layer in layers:
            if not layer.weight_values.detach().isfinite().all():
                raise ValueError(f"layer {layer.name!r}: a weight is not finite")
        plan.prune_below(0.5)
        limited = [min(pair) for pair in zip(plan.below_each, plan.capacity, strict=True)]
        if limited != plan.pruned:  # a layer without the capacity keeps some
            plan.prune_smallest_each(limited)
        return 0.0, 0.0

    def _grow(self, plan: RewirePlan, layers: list[SparseLayer]) -> None:
        plan.grow(plan.pruned)

    def _entry_state(self, layer: SparseLayer) -> list[Slot]:
        return [(self.signs, layer.name)]

    def _deciding_state(self, layer: SparseLayer) -> list[Tensor]:
        return [self._signs_of(layer)]

    def _commit(self, moves: list[Move]) -> None:
        try:
            super()._commit(moves)
        except BaseException:
            for move in moves:
                self._remember(move.layer)  # taking changes back has given it its weights anew
            raise

    def _rewired(self, layers: list[SparseLayer]) -> None:
        for layer in layers:
            signs = self.signs[layer.name]
            new = signs == 0  # the engine starts grown entries at 0
            generator = self._generator(signs.device, layer.index + len(self._layers))
            drawn = torch.empty_like(signs).random_(0, 2, generator=generator)
            signs.copy_(torch.where(new, 2 * drawn - 1, signs))
            values = layer.weight_values.detach()
            values.masked_fill_(values * signs < 0, 0)  # those that could not be pruned
            self._remember(layer)

    # ---- state and recipes --------------------------------------------------------------------

    @classmethod
    def recipe_arguments(cls, recipe: MethodRecipe, epoch_length: int) -> Arguments:
        arguments = super().recipe_arguments(recipe, epoch_length)
        return arguments | {"length": arguments.get("stop", recipe.epochs * epoch_length)}

    def _policy_state(self) -> State:
        summed = self._sum and dataclasses.asdict(dataclasses.replace(self._sum, seconds=0.0))
        signs = {layer.name: self._signs_of(layer).clone() for layer in self._layers}
        return {"signs": signs, "sum": summed}

    def _load_policy_state(self, state: State) -> None:
        renamed = match_names(self.signs, state["signs"]) or {}
        signs = under_names(self.signs, state["signs"])
        for layer in self._layers:
            found = signs.get(layer.name)
            if isinstance(found, Tensor) and not (found.abs() == 1).all():
                raise ValueError(f"signs: expected 1 and -1 for layer {layer.name!r}")
            if not isinstance(found, Tensor) or found.shape != layer.weight_values.shape:
                raise ValueError(
                    f"signs: expected {tuple(layer.weight_values.shape)} for layer {layer.name!r}, "
                    f"got {'none' if found is None else tuple(found.shape)}; load the model first"
                )
        summed = state["sum"]
        if summed is not None:
            names = {theirs: name for name, theirs in renamed.items()}
            summed = RewireReport.from_dict(summed, names)
        self._sum = summed
        for layer in self._layers:
            device = layer.weight_values.device
            self.signs[layer.name] = signs[layer.name].to(device, torch.int8, copy=True)
            self._remember(layer)

    # ---- details ------------------------------------------------------------------------------

    def _learn_signs(self, layer: SparseLayer, before: Tensor | None = None) -> None:
        """before: the signs until now, for weights of 0; None: these are positive."""
        values = layer.weight_values.detach()
        signs = torch.where(values < 0, -1, 1).to(torch.int8)
        if before is not None:
            signs = torch.where(values == 0, before.to(signs.device), signs)
        self.signs[layer.name] = signs
        self._remember(layer)

    def _remember(self, layer: SparseLayer) -> None:
        self._known[layer.name] = KeptPattern(layer.module), layer.module.times_given

    def _signs_of(self, layer: SparseLayer) -> Tensor:
        """The layer's signs. They are learned anew after the model was loaded, but for weights of 0
        of the same pattern, and follow it to another device.
        """
        signs, device = self.signs[layer.name], layer.weight_values.device
        pattern, times_given = self._known[layer.name]
        if not pattern.is_of(layer.module):
            self._learn_signs(layer)
        elif layer.module.times_given != times_given:
            self._learn_signs(layer, signs)
        elif signs.device != device:
            self.signs[layer.name] = signs.to(device)
        return self.signs[layer.name]

    def weights_given(self) -> None:
        """Learns signs of weights that were loaded, before the optimizer's step may flip them."""
        for layer in self._layers:
            self._signs_of(layer)

    def _signed(self, layer: SparseLayer) -> Tensor:
        """[nnz, 1], w * s of a layer: below 0 where a weight has the wrong sign."""
        return layer.weight_values.detach() * self._signs_of(layer)

    def _generator(self, device: torch.device, stream: int) -> torch.Generator:
        """A generator for this iteration and stream: there is no state to save."""
        generator = self._generators.setdefault(device, torch.Generator(device))
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.iteration) * 0xD1342543DE82EF95 + stream
        return generator.manual_seed(mixed % 2**63)
