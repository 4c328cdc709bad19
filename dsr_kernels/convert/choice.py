"""Which layers of a model become sparse, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from dsr_kernels.convert.globs import check_globs, fits
from dsr_kernels.convert.presets import kept_dense
from dsr_kernels.nn import SparseModule
from dsr_kernels.nn.carry_over import WHY_DENSE
from dsr_kernels.nn.from_dense import DenseLayer, why_type
from dsr_kernels.nn.twins import KINDS, layer_names, obstacles, scripted, without_twin
from dsr_kernels.probe import Inputs


class Choice(NamedTuple):
    """By name: the layers to convert, and why others were left dense or have to stay so."""

    layers: dict[str, DenseLayer]
    asked: dict[str, str]  # as the caller said
    surprising: dict[str, str]

    def without(self, modules: Iterable[nn.Module], why: str, surprising: bool) -> Choice:
        """Leaves some of the layers to convert dense."""
        out = set(modules)
        names = {name: why for name, layer in self.layers.items() if layer in out}
        layers = {name: layer for name, layer in self.layers.items() if layer not in out}
        if surprising:
            return Choice(layers, self.asked, self.surprising | names)
        return Choice(layers, self.asked | names, self.surprising)

    def check_any(self, model: nn.Module) -> None:
        """Raises ValueError where there is nothing to convert in `model`."""
        if self.layers:
            return
        *others, last = (f"nn.{kind.__name__}" for kind in KINDS)
        why = in_words(self.surprising | self.asked)
        if any("preset=" in reason for reason in self.asked.values()):
            why += "; preset='all' leaves none dense"
        if types := _low_precision(model, self.surprising):
            raise ValueError(
                f"sparsify: the model's weights are {types}, and sparse values are float32 or "
                "float64: call model.float() first, and compute in lower precision under "
                "torch.autocast"
            )
        raise ValueError(
            f"sparsify: the model has no {', '.join(others)} or {last} to convert"
            + (why and f": {why}")
        )

    def remember(self, model: nn.Module) -> None:
        """Notes in a converted model why its layers are dense, for summary."""
        for name, why in (self.surprising | self.asked).items():
            vars(model.get_submodule(name))[WHY_DENSE] = why


def forget(model: nn.Module) -> None:
    """Takes the notes out of a model that is dense again."""
    for module in model.modules():
        vars(module).pop(WHY_DENSE, None)


def choose(
    model: nn.Module,
    exclude: list[str],
    overrides: Mapping[str, float],
    preset: str,
    inplace: bool,
    inputs: Inputs | None = None,
) -> Choice:
    """A layer that `overrides` names is converted whatever the preset. `inputs` are an example."""
    names = layer_names(model)
    others = without_twin(model)
    known = [name for group in names.values() for name in group]
    check_globs("exclude", exclude, [*known, *others])
    found = obstacles(model, names, not inplace)
    preset_dense = kept_dense(model, names, preset, inputs)
    chosen = Choice({}, {}, scripted(model, KINDS))
    for module, aliases in names.items():
        glob = next((g for g in exclude if any(fits(g, alias) for alias in aliases)), None)
        named = any(fits(g, aliases[0]) for g in overrides)
        if glob is not None:
            chosen.asked[aliases[0]] = f"excluded by {glob!r}"
        elif module in found:
            chosen.surprising[aliases[0]] = found[module]
        elif module in preset_dense and not named:
            chosen.asked[aliases[0]] = preset_dense[module]
        else:
            chosen.layers[aliases[0]] = module
    for name, why in others.items():
        glob = next((g for g in exclude if fits(g, name)), None)
        if glob is None:
            chosen.surprising[name] = why
        else:
            chosen.asked[name] = f"excluded by {glob!r}"
    chosen.check_any(model)
    return chosen


def why_dense(model: nn.Module) -> dict[nn.Module, str]:
    """Why each convolution or linear layer of `model` is dense.

    What the last sparsify has noted, else what the model shows.
    """
    names = layer_names(model)
    others = {model.get_submodule(name): why for name, why in without_twin(model).items()}
    partly_sparse = any(isinstance(module, SparseModule) for module in model.modules())
    unknown = dict.fromkeys(names, "left dense" if partly_sparse else "")
    noted = {m: vars(m)[WHY_DENSE] for m in (*names, *others) if WHY_DENSE in vars(m)}
    return unknown | obstacles(model, names) | others | noted


def in_words(reasons: Mapping[str, str]) -> str:
    """Each reason with the layers it is of; of many layers the first three are named."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name or "the model")
    return "; ".join(f"{_some(group)}: {reason}" for reason, group in names.items())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if more else names) + more


def _low_precision(model: nn.Module, reasons: Mapping[str, str]) -> str:
    """The types of the weights that are too narrow to be sparse values, if any are."""
    weights = {why: getattr(model.get_submodule(n), "weight", None) for n, why in reasons.items()}
    types = (f"{w.dtype}" for why, w in weights.items() if w is not None and why == why_type(w))
    return ", ".join(types)
