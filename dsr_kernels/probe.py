"""Running a model once to see what its forward does: nothing is computed, and nothing changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_map

from dsr_kernels.kept import Kept
from dsr_kernels.nn.module import SparseModule


class Inputs(NamedTuple):
    """What a forward pass is called with, and what the caller's argument is called."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    argument: str
    words: str

    @classmethod
    def of_example(cls, example: Any) -> Inputs:
        """Of a tensor, of a tuple or list of arguments, or of a mapping of keyword arguments.

        Raises TypeError for anything else, and where there is no tensor in it.
        """
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(example, Tensor):
            args = (example,)
        elif isinstance(example, Mapping):
            kwargs = dict(example)
        elif isinstance(example, tuple | list):
            args = tuple(example)
        shapes: list[str] = []
        tree_map(lambda t: shapes.append(_shape(t)) if isinstance(t, Tensor) else t, (args, kwargs))
        if not shapes:
            raise TypeError(
                "example_input: expected what the model is called with, a tensor, a tuple of "
                f"arguments or a dict of keyword arguments, got {example!r:.200}"
            )
        return cls(args, kwargs, "example_input", ", ".join(shapes))

    @classmethod
    def of_shape(cls, shape: Sequence[int], model: nn.Module) -> Inputs:
        """One tensor of that shape, on meta until the model runs; its type is the model's."""
        floats = (t for t in model.parameters() if t.is_floating_point())
        like = next(floats)  # a sparse layer has at least its values
        size = tuple(shape)
        x = torch.empty(size, dtype=like.dtype, device="meta")
        return cls((x,), {}, "input_shape", str(size))


def run(
    model: nn.Module,
    inputs: Inputs,
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """Runs the forward pass of `model` once, within a context that is made anew for each try.

    It runs without gradients on fake tensors, which have a shape and no memory. A model that this
    does not work for, such as one whose way depends on numbers, runs on the numbers themselves, or
    on zeros where only a shape was given. Parameters, buffers, attributes of modules, the lists,
    dicts, sets and tensors in these and torch's random numbers stay as they are. What a forward
    does to other objects, such as files or a counter of a class of its own, is done.

    Raises ValueError, naming the argument, where the model does not run on these inputs.
    """
    fake = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with contextlib.suppress(Exception):
        _try(model, inputs, within, fake)
        return
    try:
        _try(model, inputs, within, None)
    except Exception as error:
        raise ValueError(
            f"{inputs.argument}: the model does not run on {inputs.words}: {error}"
        ) from error


def _try(
    model: nn.Module,
    inputs: Inputs,
    within: Callable[[], contextlib.AbstractContextManager[object]],
    fake: fake_tensor.FakeTensorMode | None,
) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with _unchanged(model, fake is None) as buffers, fake or contextlib.nullcontext():
        args, kwargs = tree_map(lambda t: _stand_in(t, device, fake), inputs[:2])
        with within():
            torch.func.functional_call(model, buffers, args, kwargs, tie_weights=False)


def readers(model: nn.Module, layers: Iterable[nn.Module], inputs: Inputs) -> set[nn.Module]:
    """Those of the dense `layers` whose weight the model's own code reads, in either mode.

    Their own forward may read it. A sparse layer has no dense weight to read.
    """
    read: set[nn.Module] = set()
    layers = list(layers)
    with _watched(layers, read):
        run_in_both_modes(model, inputs)
    return read


def run_in_both_modes(
    model: nn.Module,
    inputs: Inputs,
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """`run` in the mode that the model is in and in the other, as if its layers were sparse.

    In the other mode it need not run: a batch of one may be too small to train on.
    """
    with _without_fast_path():
        run(model, inputs, within)
        with _other_mode(model), contextlib.suppress(ValueError):
            run(model, inputs, within)


@contextlib.contextmanager
def _watched(layers: Sequence[nn.Module], read: set[nn.Module]) -> Iterator[None]:
    """Layers note in `read` that something else than their own forward asked for their weight."""
    inside: set[nn.Module] = set()
    kinds = {layer: type(layer) for layer in layers}
    watching = {kind: _watching(kind, inside, read) for kind in set(kinds.values())}
    try:
        for layer, kind in kinds.items():
            layer.__class__ = watching[kind]
        yield
    finally:
        for layer, kind in kinds.items():
            layer.__class__ = kind


def _watching(
    kind: type[nn.Module], inside: set[nn.Module], read: set[nn.Module]
) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inside.add(self)
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            inside.discard(self)

    def weight(self: nn.Module) -> Any:
        if self not in inside:
            read.add(self)
        return self._parameters["weight"]

    names = {"forward": forward, "weight": property(weight)}
    return type(kind.__name__, (kind,), names)


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Transformer encoders of torch read weights on their fast path, which sparsify turns off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _other_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, or in training mode where the model was in eval mode."""
    modes = {module: module.training for module in model.modules()}
    to = not model.training
    try:
        for module in modes:
            module.training = to
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _unchanged(model: nn.Module, computes: bool) -> Iterator[dict[str, Tensor]]:
    """Gradients off, random numbers kept, and all that modules hold put back as it was, which a
    forward may give fake tensors; gives copies for the buffers that may change.

    computes: whether numbers are computed, so that parameters may be written to. The patterns of
    sparse layers are not copied: nothing writes them in a forward.
    """
    sparse = [m for m in model.modules() if isinstance(m, SparseModule)]
    own = {id(b) for m in sparse for b in (m.crow_indices, m.col_indices)}
    fixed = own if computes else own | set(map(id, model.parameters()))
    kept = Kept([vars(module) for module in model.modules()], fixed)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield {name: b.clone() for name, b in model.named_buffers() if id(b) not in own}
    finally:
        kept.put_back()


def _stand_in(value: Any, device: torch.device, fake: fake_tensor.FakeTensorMode | None) -> Any:
    """What the model gets in place of an input: nothing of the caller's is written to."""
    if not isinstance(value, Tensor):
        return value
    if device.type == "meta":  # the model has no numbers either
        return value.detach().to("meta")
    if value.is_meta:
        sizes = value.shape, value.stride()
        return torch.empty_strided(*sizes, dtype=value.dtype, device=device).zero_()
    return value.detach().clone() if fake is None else fake.from_tensor(value.detach())


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}"
