"""Where there can be no graph, steps are eager, each is made once, and one line says why."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from helpers.graph_stand_in import Device, Graph
from helpers.graphed_twins import Twins, batches, network, sgd
from torch import nn
from torch.nn import functional as F

from dsr_kernels.backends.patterns import patterns
from dsr_kernels.cuda import GraphedStep
from dsr_kernels.rewiring import DSR

dsr = partial(DSR, prune_fraction=0.2, every=5)


def fused(model: nn.Module) -> torch.optim.Optimizer:
    return sgd(model, fused=True)


class Reads(nn.Module):
    """Reads a number on the host."""

    def forward(self, x):
        return x if x.abs().max().item() > 0 else -x


class Rebinds(nn.Module):
    """Puts another tensor in the place of a buffer in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class CountsCalls(nn.Module):
    """Counts its calls on the host, and does something else in each second one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls % 2 else -x


class Counts(torch.optim.SGD):
    """Counts its steps on the host."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] = 0.1 / group["count"]
        return super().step(closure)


class CountsEach(torch.optim.SGD):
    """Counts the steps of each parameter on the host."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["seen"] = state.get("seen", 0) + 1
        return super().step(closure)


class Renews(torch.optim.SGD):
    """Puts another tensor in the place of its state in every step."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state, grad = self.state[parameter], parameter.grad
            state["mean"] = 0.9 * state.get("mean", torch.zeros_like(grad)) + grad
            parameter -= 0.01 * state["mean"]


def ends_eagerly(twins: Twins, reason: str) -> None:
    """Trains; asserts that there was one line, and all as in the plain loop."""
    with pytest.warns(UserWarning, match="no CUDA graph, steps are eager: ") as told:
        twins.train(batches(7))
    assert [str(one.message) for one in told if "no CUDA graph" in str(one.message)] == [
        f"no CUDA graph, steps are eager: {twins.step.why_eager}"
    ]
    assert reason in twins.step.why_eager
    assert Graph.replays == 0 and not twins.step.is_replaying
    assert Device.current is Device.default and Device.capturing is None
    assert not [graph for graph in Graph.living if graph.calls]


@pytest.mark.parametrize("module", [Reads, Rebinds, CountsCalls])
def test_a_model_that_cannot_be_captured(module: type[nn.Module]) -> None:
    reasons = {
        Reads: "RuntimeError: operation not permitted when stream is capturing",
        CountsCalls: "a step counts 'calls' on the host, or puts another tensor in its place",
        Rebinds: "a step counts 'mean' on the host, or puts another tensor in its place",
    }
    twins = Twins(nn.Sequential(*network(), module()), make_rewirer=dsr)
    ends_eagerly(twins, reasons[module])
    assert "\n" not in twins.step.why_eager
    if module is CountsCalls:
        assert twins.graphed.model[-1].calls == twins.plain.model[-1].calls == 7


@pytest.mark.parametrize(
    "kind,reason",
    [
        (Counts, "a step counts 'lr' on the host, or puts another tensor in its place"),
        (CountsEach, "a step counts 'seen' on the host, or puts another tensor in its place"),
        (Renews, "a step counts 'mean' on the host, or puts another tensor in its place"),
    ],
)
def test_an_optimizer_that_counts_on_the_host(kind: type, reason: str) -> None:
    make = lambda model: kind(model.parameters(), lr=0.05)  # noqa: E731
    ends_eagerly(Twins(make_optimizer=make), reason)


def test_an_error_between_backward_and_step_undoes_what_the_scaler_has_begun() -> None:
    twins = Twins(make_optimizer=fused, scaled=True, clip=1.0)
    clip = twins._clip_graphed

    def reads() -> None:
        clip()
        assert twins.graphed.model[9].weight.grad.abs().max().item() >= 0

    twins.step.before_step = reads
    ends_eagerly(twins, "operation not permitted")


def test_an_error_of_pythons_own_is_named_and_not_raised() -> None:
    twins = Twins()

    def picky() -> None:
        if Device.capturing is not None:
            raise ValueError("not now\nand more")

    twins.step.before_step = picky
    ends_eagerly(twins, "ValueError: not now")


def test_a_ctrl_c_within_a_capture_is_raised_and_nothing_is_left_behind() -> None:
    twins = Twins()
    twins.train(batches(1))

    def interrupted() -> None:
        if Device.capturing is not None:
            raise KeyboardInterrupt

    twins.step.before_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        twins.step(*next(batches(1)))
    assert Device.current is Device.default and Device.capturing is None
    twins.step.before_step = None
    twins.train(batches(4, seed=2))
    assert Graph.replays


def test_a_plan_that_is_made_within_a_capture_is_made_anew() -> None:
    class Crops(nn.Module):
        """Gives the layers after it another size within a capture, as no code should."""

        def forward(self, x):
            return x[..., 1:] if Device.capturing is not None else x

    model = network()
    model = nn.Sequential(Crops(), model[0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    twins = Twins(model)
    ends_eagerly(twins, "a sparse layer was used as in no step before")
    assert patterns.plans()


@pytest.mark.parametrize(
    "make,options,reason",
    [
        (sgd, {"scaled": True}, "GradScaler waits for the GPU in each step of SGD"),
        (fused, {"scaled": True, "attach": True, "make_rewirer": dsr}, "an attached rewirer"),
    ],
)
def test_scalers_that_ask_the_gpu(make, options: dict, reason: str) -> None:
    ends_eagerly(Twins(make_optimizer=make, **options), reason)


def test_hooks_of_others_on_the_optimizers_steps_run() -> None:
    twins, seen = Twins(), []
    twins.graphed.optimizer.register_step_post_hook(lambda *_: seen.append(1))
    ends_eagerly(twins, "SGD has hooks on its steps, which replays would not call")
    assert len(seen) == 7


def test_a_hook_that_comes_later() -> None:
    twins, seen = Twins(), []
    twins.train(batches(3))
    replays = Graph.replays
    twins.graphed.optimizer.register_step_post_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="SGD has hooks on its steps"):
        twins.train(batches(4, seed=2))
    assert len(seen) == 4 and Graph.replays == replays


def test_an_optimizer_around_another() -> None:
    class Around(torch.optim.SGD):
        def __init__(self, parameters, **options):
            super().__init__(parameters, **options)
            self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=0.01)

    make = lambda model: Around(model.parameters(), lr=0.05)  # noqa: E731
    ends_eagerly(Twins(make_optimizer=make), "Around is around another optimizer")


def test_a_parallel_model() -> None:
    class DistributedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    twins = Twins(DistributedDataParallel(network()))
    ends_eagerly(twins, "several processes or devices train the model")


def test_a_batch_that_wants_its_gradient() -> None:
    twins = Twins()
    twins.train(batches(3))
    replays = Graph.replays
    x, target = next(batches(1))
    x.requires_grad_()
    twins.step(x, target)
    assert x.grad is not None and Graph.replays == replays


def test_a_rewire_that_fails_raises_after_its_step() -> None:
    twins = Twins(make_rewirer=partial(dsr, every=3))
    twins.train(batches(2))
    for side in twins.sides:
        with torch.no_grad():
            side.model[4].weight_values[0] = float("nan")
    with pytest.raises(ValueError, match="is nan; nothing was rewired"):
        twins.step(*next(batches(1)))
    assert twins.graphed.rewirer.iteration == 2


def test_a_layer_whose_pattern_something_else_has_written_to_is_refused() -> None:
    twins = Twins()
    twins.train(batches(3))
    twins.graphed.model[4].col_indices[0] += 1
    with pytest.raises(RuntimeError, match="something else than the layer has written"):
        twins.step(*next(batches(1)))


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got list"):
        GraphedStep(network(), F.cross_entropy, [])  # type: ignore[arg-type]


def test_after_a_failure_the_model_can_be_copied_and_trained_by_hand() -> None:
    twins = Twins(nn.Sequential(*network(), Reads()))
    ends_eagerly(twins, "operation not permitted")
    model = copy.deepcopy(twins.graphed.model)
    optimizer = sgd(model)
    for x, target in batches(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
