"""Whether a module does just what its class says, so that other code may compute it."""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
from torch import nn, overrides
from torch.nn.modules import module as torch_module
from torch.utils._device import DeviceContext

M = TypeVar("M", bound=nn.Module)


def plain_class(kind: type) -> Any:
    """The class that was fused, of a fused class; else the class itself."""
    return vars(kind).get("plain_class", kind)


def is_plain(module: Any, kind: type[M]) -> TypeGuard[M]:
    """Whether `module` is of that very class, and has neither hooks nor a forward of its own."""
    return type(module) is kind and is_unhooked(module)


def is_unhooked(module: nn.Module) -> bool:
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def is_as_written(module: Any, kind: type) -> bool:
    """Whether a module that was traced through still is of that class, fused or not."""
    return module is not None and plain_class(type(module)) is kind and is_unhooked(module)


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch's own class: others may mean other things by an addition."""
    return type(value) is torch.Tensor or type(value) is nn.Parameter


def hooks_on_all_modules() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def others_look_on() -> bool:
    """Whether anything watches single operations, or gives tensors another meaning."""
    if torch.compiler.is_compiling():
        return hooks_on_all_modules()
    return (
        hooks_on_all_modules()
        or torch.utils._python_dispatch.is_in_torch_dispatch_mode()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or not all(
            isinstance(mode, DeviceContext) for mode in overrides._get_current_function_mode_stack()
        )
    )
