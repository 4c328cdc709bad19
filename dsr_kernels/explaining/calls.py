"""The calls that a model's sparse layers get, and how the CPU's kernels run each of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsr_kernels.backends.conv_shape import ConvShape, conv_shape
from dsr_kernels.explaining.explanation import ALONE, LayerPass
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops.passes import passes


class Call(NamedTuple):
    """Tensors are on meta: sizes and strides."""

    layer: SparseModule
    given: Tensor  # what the layer was called with
    x: Tensor  # what the kernel gets
    y: Tensor
    shape: ConvShape


class Recorder(TorchDispatchMode):
    """Notes every sparse convolution with the layer that called it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sparse = [m for m in model.modules() if isinstance(m, SparseModule)]
        self.calls: list[Call] = []
        self.layer: SparseModule | None = None
        self.given: Tensor | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Begins anew, and takes its hooks off again."""
        self.calls.clear()
        enter = self._enter
        handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in self.sparse]
        handles += [m.register_forward_hook(self._leave) for m in self.sparse]
        try:
            with self:
                yield
        finally:
            self.layer = self.given = None
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(module, SparseModule)
        self.layer = module
        self.given = given_to(args, named)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self.layer = self.given = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.dsr_kernels.sparse_conv2d.default and self.layer is not None:
            x, _values, _bias, _crow, _col, *fields = args
            given = x if self.given is None else self.given
            sizes = meta(given), meta(x), meta(out)
            self.calls.append(Call(self.layer, *sizes, conv_shape(*fields)))
        return out


def given_to(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a layer is called with, by position or by name."""
    return next((v for v in (*args, *named.values()) if isinstance(v, Tensor)), None)


def distinct(calls: list[Call], names: Mapping[nn.Module, str]) -> list[tuple[str, Call]]:
    """The calls by the names of their layers, once for each layer and shape of its input."""
    found: dict[tuple[str, torch.Size], Call] = {}
    for call in calls:
        found.setdefault((names[call.layer] or ALONE, call.x.shape), call)
    return [(name, call) for (name, _), call in found.items()]


def rows(name: str, call: Call, threads: int, peak: float) -> Iterator[LayerPass]:
    """The passes of a call; `peak` is that of float32, in GF/s."""
    module = call.layer
    pattern = module.crow_indices, module.col_indices
    n, peak = call.x.shape[0], peak * 4 / module.weight_values.element_size()
    values, density = module.weight_values, module.nnz / math.prod(module.weight_shape)
    for operation, run in passes(call.x, call.y, values, *pattern, call.shape).items():
        shared = ["grad_weight"] if operation == "forward" else []
        needed = [run.workspace_bytes(op, n, threads) for op in (operation, *shared)]
        yield LayerPass(
            layer=name,
            operation=operation,
            input_shape=tuple(call.x.shape),
            nnz=module.nnz,
            sparsity=module.sparsity,
            lanes=run.lanes,
            tile=run.tile,
            channel_blocks=run.blocks,
            variant=run.variant,
            reason=run.reason,
            expected_gflops=peak * run.speed,
            over_dense=run.speed / density if min(run.speed, density) > 0 else math.inf,
            values_bytes=module.weight_values.nbytes,
            index_bytes=sum(index.nbytes for index in pattern),
            plan_bytes=run.bytes,
            workspace_bytes=max(needed),
        )


def meta(x: Tensor) -> Tensor:
    """A tensor of the same sizes and strides, without memory."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
