"""sparsify: a model whose convolutions and linear layers are sparse."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

import torch
from torch import nn

from dsr_kernels import probe
from dsr_kernels.backends.blocks import check_is_block_size
from dsr_kernels.choices import check_choice
from dsr_kernels.convert.budgets import Budget
from dsr_kernels.convert.choice import Choice, choose, in_words
from dsr_kernels.convert.exchange import exchange
from dsr_kernels.convert.faster import slower
from dsr_kernels.convert.initial import INIT, check_init, looks_trained, rescale_to_fan_in
from dsr_kernels.convert.presets import PRESETS, is_depthwise
from dsr_kernels.nn import SparseConv1d, SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.nn.from_dense import KEEP
from dsr_kernels.nn.twins import twin_class, without_weights

M = TypeVar("M", bound=nn.Module)
READ = "the model's own code reads its weight"
SLOWER = "it would be slower sparse, by the cost model: where='faster'"
LOST = (
    "{} is depthwise, and {} of its {} output channels have no weight left; preset='safe' leaves "
    "such layers dense"
)


# A layer becomes another class; a model stays of its own.
@overload
def sparsify(model: nn.Conv1d, *args: Any, **options: Any) -> SparseConv1d: ...
@overload
def sparsify(model: nn.Conv2d, *args: Any, **options: Any) -> SparseConv2d: ...
@overload
def sparsify(model: nn.Linear, *args: Any, **options: Any) -> SparseLinear: ...
@overload
def sparsify(
    model: M,
    sparsity: float = 0.9,
    distribution: str = "uniform",
    *,
    preset: str = "safe",
    exclude: Iterable[str] = (),
    overrides: Mapping[str, float] | None = None,
    over: str = "converted",
    keep: str | None = None,
    init: str = "dense",
    block_size: int = 1,
    example_input: Any = None,
    where: str = "everywhere",
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> M: ...


def sparsify(
    model: nn.Module,
    sparsity: float = 0.9,
    distribution: str = "uniform",
    *,
    preset: str = "safe",
    exclude: Iterable[str] = (),
    overrides: Mapping[str, float] | None = None,
    over: str = "converted",
    keep: str | None = None,
    init: str = "dense",
    block_size: int = 1,
    example_input: Any = None,
    where: str = "everywhere",
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A model whose nn.Conv1d, nn.Conv2d and nn.Linear layers are sparse.

    The given model stays as it was. `inplace=True` changes it; the result is what is returned,
    which is another object if the model is a layer itself.

    Together the converted layers keep exactly floor((1 - sparsity) * N) of their N weights.
    `distribution` ('uniform', 'er' or 'erk', see distribution.layer_nnz) shares them out. `keep`
    says which weights are kept: 'random' ones (the default, with a warning where the model looks
    trained), the largest by 'magnitude', or whole random 'kernels', as many as each share holds.
    They keep the dense layers' values, as in the paper, so outputs shrink with the density.
    init='fan_in' multiplies each output channel's by sqrt(inputs / non-zeros of it), which keeps
    the variance of random weights' outputs.

    `block_size` (1, 2, 4, 8, 16 or 32): so many consecutive output channels share their positions.
    A layer whose output channels (of each group) are no whole blocks takes the largest divisor;
    `summary` says which. Shares then are whole blocks, together no more than the budget, and
    'magnitude' is a block's mean. Layers whose sparsity that moves by more than 0.02 are named.

    Dense stay: by preset='safe' the stem, classifier heads and depthwise convolutions; by
    'paper' what the paper leaves dense, stem and 1x1 shortcuts, and depthwise ones; by 'all' none.
    `exclude` leaves more layers dense. `overrides` gives layers a sparsity of their own, outside
    that budget and whatever the preset. Both name layers by glob ('layer4.*', or a container for
    all that is in it). With over='model', N counts the layers that stay dense, too, and those
    without a sparse twin: nn.Conv3d, transposed convolutions, recurrent layers, nn.Bilinear and
    attention's projections. The converted layers make up for what stays dense or has a sparsity of
    its own.

    `example_input` is what the model is called with: a tensor, a tuple of arguments, or a dict of
    keyword arguments. The forward pass runs in both modes on fake tensors, or on numbers where its
    way depends on them, and what it changes in the model is put back. It shows the heads; how they
    are known without it, convert/heads.py says. Layers whose weight the model's own code reads stay
    dense with a warning; without it, the forward pass of the sparse model is what raises, by the
    layer's name. where='faster' (it needs `example_input`, and a model on a CPU) leaves those
    dense, too, that `explain` expects to be slower sparse.

    Data that hangs on a layer is carried over: attributes of the layer and of its parameters,
    further parameters, buffers and submodules. Code is not: a layer with hooks of its own, of its
    weight or of its bias, with a forward of its own, or held by a function, stays dense with a
    warning, as does every layer that cannot be converted. Gradients stay behind, as in
    copy.deepcopy. nn/carry_over.py has the whole rule. Attributes of modules, lists, tuples, dicts,
    sets and other objects that hold a layer hold its twin then. An optimizer must be built anew.

    On meta the layers are on meta and have no pattern yet, only their number of non-zeros: after
    `to_empty` a checkpoint brings the pattern, or reset_parameters draws it. So there `keep` must
    be 'random', and nothing is drawn from `generator`.

    Raises ValueError for a glob that fits no layer, for a sparsity out of reach, where there is
    nothing to convert, for a `keep` or `init` that needs weights on meta, and for an example that
    the model does not run on. Then nothing has changed.
    """
    _check_choices(preset, over, keep, init, where)
    check_is_block_size(block_size)
    if where == "faster" and example_input is None:
        raise ValueError("where: 'faster' needs example_input, what the model is called with")
    check_init(init, keep or "random", any(p.is_meta for p in model.parameters()))
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    inputs = None if example_input is None else probe.Inputs.of_example(example_input)
    choice = choose(model, exclude, overrides or {}, preset, inplace, inputs)
    budget = Budget(sparsity, distribution, overrides or {}, over, block_size)
    if inputs is not None:
        choice = _seen(model, choice, budget, inputs, where)
    counts = budget.counts(model, choice)
    found = list(_warnings(model, choice, budget, counts, keep))
    with torch.inference_mode(False):  # what is made is to be trained
        twins, lost = _twins(choice, counts, keep or "random", init, generator)
    for text in (*found, *lost):  # before anything changes: a warning may be an error
        warnings.warn(f"sparsify: {text}", stacklevel=2)
    with torch.inference_mode(False):
        sparse = exchange(model, twins, inplace)
    choice.remember(sparse)
    list(named_sparse_modules(sparse))  # each layer learns its name, for error messages
    return sparse


def _check_choices(preset: str, over: str, keep: str | None, init: str, where: str) -> None:
    check_choice(preset, "preset", PRESETS)
    check_choice(over, "over", ("converted", "model"))
    check_choice(keep or "random", "keep", KEEP)
    check_choice(init, "init", INIT)
    check_choice(where, "where", ("everywhere", "faster"))


def _seen(
    model: nn.Module, choice: Choice, budget: Budget, inputs: probe.Inputs, where: str
) -> Choice:
    """Leaves dense what a forward pass shows has to stay so, or should."""
    read = probe.readers(model, choice.layers.values(), inputs)
    choice = choice.without(read, READ, surprising=True)
    choice.check_any(model)
    if where == "faster":
        lost = slower(model, choice, budget.counts(model, choice), inputs)
        choice = choice.without(lost, SLOWER, surprising=False)
        choice.check_any(model)
    return choice


def _twins(
    choice: Choice,
    counts: list[tuple[int, int]],
    keep: str,
    init: str,
    generator: torch.Generator | None,
) -> tuple[dict[nn.Module, nn.Module], list[str]]:
    """The sparse twin of each layer, and a sentence for each depthwise one that loses outputs."""
    options: dict[str, Any] = {"keep": keep, "generator": generator}
    twins: dict[nn.Module, nn.Module] = {}
    lost = []
    for (name, module), (nnz, size) in zip(choice.layers.items(), counts, strict=True):
        try:
            twin = twin_class(module).from_dense(module, nnz=nnz, block_size=size, **options)
        except ValueError as error:
            raise ValueError(f"sparsify: layer {name or 'the model'!r}: {error}") from None
        if init == "fan_in":
            rescale_to_fan_in(twin)
        if is_depthwise(module) and (count := without_weights(twin)):
            lost.append(LOST.format(name or "the model", count, twin.weight_shape[0]))
        twins[module] = twin
    return twins, lost


def _warnings(
    model: nn.Module,
    choice: Choice,
    budget: Budget,
    counts: list[tuple[int, int]],
    keep: str | None,
) -> Iterator[str]:
    """What the caller should hear, before anything has changed."""
    if choice.surprising:
        yield f"these layers stay dense: {in_words(choice.surprising)}"
    pairs = zip(choice.layers.values(), counts, strict=True)
    loses = any(nnz < layer.weight.numel() for layer, (nnz, _) in pairs)
    trained = looks_trained(model) if keep is None and loses else None
    if trained is not None:
        yield (
            f"the model looks trained ({trained or 'it'} has learned), and random weights of it "
            "are kept: pass keep='magnitude' to keep the largest ones, or keep='random' if this "
            "is what you mean"
        )
    missed = budget.missed(model, choice, counts)
    if missed:
        moved = {name: f"{got:.3f}, not {wanted:.3f}" for name, (wanted, got) in missed.items()}
        yield f"whole blocks move the sparsity of layers: {in_words(moved)}"
