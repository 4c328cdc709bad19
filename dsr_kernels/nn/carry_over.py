"""What hangs on a layer when it is exchanged for its dense or sparse twin: one rule both ways.

Data is carried over. Code is refused.

- The twin gets the layer's mode, and all that is not of the layer's class: attributes, further
  parameters, buffers and submodules (the same objects), and the attributes of its weight and bias,
  such as `_no_weight_decay`.
- Code was written for the very layer: it reads a weight that the twin lacks, and its handle could
  not remove it from the twin. So nothing is converted that has hooks of any kind (the layer's, its
  weight's or its bias's), a forward of its own (of the instance or of a subclass) or a weight that
  something else computes or stands for: a parametrization, torch's pruning, a tensor subclass.
- Gradients stay behind, as in copy.deepcopy: what a dense weight's gradient is outside the pattern,
  a sparse layer does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

# sparsify notes in it, on a layer, why it leaves that dense: for `summary` of the model and of its
# copies, pickles and files. It is of the dense layer alone, so it is no part of what hangs on it.
WHY_DENSE = "_why_dense"
CONTAINERS = ("__dict__", "_parameters", "_buffers", "_modules")


def same(value: Any) -> Any:
    return value


def weight_name(layer: nn.Module) -> str:
    """The name of the parameter that holds a layer's weight."""
    return "weight_values" if "weight_values" in layer._parameters else "weight"


def why_code(layer: nn.Module, kind: type[nn.Module], name: str) -> str | None:
    """What code hangs on `layer`, which should be a plain `kind`; None if there is none.

    `kind` is the class with this layer's twin, and `name` the parameter that holds its weight.
    """
    parameters = layer._parameters
    if nn.utils.parametrize.is_parametrized(layer) or name not in parameters:
        return f"its {name} is parametrized, normalized or pruned; make that permanent first"
    if "bias" not in parameters:
        return "its bias is parametrized or pruned; make that permanent first"
    if isinstance(parameters[name], nn.UninitializedParameter):
        return "it is lazy and has no weight yet; run a forward pass first"
    if type(layer) is not kind:
        spoken = f"nn.{kind.__name__}" if kind.__module__.startswith("torch") else kind.__name__
        return f"{type(layer).__name__} is a subclass of {spoken} and may compute something else"
    if any(value for hooks, value in vars(layer).items() if "hooks" in hooks):
        return "it has hooks, which would be lost; remove them first"
    replaced = [key for key in vars(layer) if callable(getattr(type(layer), key, None))]
    if replaced:
        return f"its {replaced[0]} is replaced on the instance; delete that first"
    if vars(layer).get("_compiled_call_impl") is not None:
        return "it is compiled; convert first, compile then"
    for own in (name, "bias"):
        parameter = parameters[own]
        if parameter is None:
            continue
        if type(parameter) is not nn.Parameter:
            return f"its {own} is a {type(parameter).__name__}, not a plain nn.Parameter"
        if has_hooks(parameter):
            return f"its {own} has hooks, which would be lost; remove them first"
    return None


def why_shape(layer: nn.Module, plain: nn.Module, twin: nn.Module) -> str | None:
    """Where `layer` is not what its arguments say, or has names that its twin needs for itself.

    `plain` and `twin` were made from its arguments, `plain` being of its own class.
    """
    own, made = (vars(module) for module in (layer, plain))
    for name in ("weight", "bias"):
        parameter, expected = layer._parameters.get(name), plain._parameters.get(name)
        if parameter is not None and expected is not None and parameter.shape != expected.shape:
            shapes = f"{tuple(parameter.shape)}, its arguments say {tuple(expected.shape)}"
            return f"its {name} is of shape {shapes}"
    for name in ("output_padding", "transposed", "_reversed_padding_repeated_twice", "_sides"):
        if own.get(name) != made.get(name):
            return f"its {name} is {own.get(name)}, its arguments say {made.get(name)}"
    for container, name in additions(layer, plain):
        if hasattr(twin, name):
            kind = "attribute" if container == "__dict__" else container.strip("_").rstrip("s")
            return f"its {kind} {name} has a name that {type(twin).__name__} needs; rename it"
    return None


def additions(layer: nn.Module, plain: nn.Module) -> Iterator[tuple[str, str]]:
    """(container, name) of what `layer` has and `plain`, a new one of its class, has not."""
    for container in CONTAINERS:
        own, made = getattr(layer, container), getattr(plain, container)
        known = {*made, WHY_DENSE}
        names = (name for name in own if name not in known and not hasattr(type(layer), name))
        yield from ((container, name) for name in names)


def carry_over(
    source: nn.Module, plain: nn.Module, twin: nn.Module, take: Callable[[Any], Any] = same
) -> None:
    """Gives `twin` what hangs on `source` and not on `plain`, a new layer of its class.

    `take` makes the twin's of each thing: the same object, or a copy.
    """
    for container, name in additions(source, plain):
        getattr(twin, container)[name] = take(getattr(source, container)[name])
    twin._non_persistent_buffers_set |= source._non_persistent_buffers_set
    twin.training = source.training
    old, new = (layer._parameters[weight_name(layer)] for layer in (source, twin))
    assert old is not None
    assert new is not None
    vars(new).update(take(vars(old)))


def has_hooks(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def copy_hangings(
    parameter: nn.Parameter, copied: nn.Parameter, take: Callable[[Any], Any]
) -> None:
    """Gives a copy of a parameter the attributes and hooks that copy.deepcopy leaves behind."""
    vars(copied).update(take(vars(parameter)))
    for hook in (parameter._backward_hooks or {}).values():
        copied.register_hook(take(hook))
    for hook in (parameter._post_accumulate_grad_hooks or {}).values():
        copied.register_post_accumulate_grad_hook(take(hook))
