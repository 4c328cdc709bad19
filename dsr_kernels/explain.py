"""explain(model, input_shape): how each sparse layer's passes will run, why, and how fast."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsr_kernels import text_table
from dsr_kernels.backends.conv_shape import ConvShape, conv_shape
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.processor import dense_bf16_by
from dsr_kernels.nn.layers import named_sparse_modules
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops.passes import passes

HEADER = (
    *("layer", "pass", "input", "nnz", "sparsity", "variant"),
    *("GF/s", "held", "plan", "workspace", "why"),
)
NEEDS_NUMBERS = (  # what fake tensors cannot answer
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)


@dataclass(frozen=True)
class LayerPass:
    """One pass of one sparse layer. Sizes in bytes; the workspace is freed after each call."""

    layer: str
    operation: str  # "forward" (grad-weight shares its plan) or "grad_input"
    input_shape: tuple[int, ...]  # [N, C, H, W]; a sequence's H is 1, a linear layer's H and W are
    nnz: int
    sparsity: float
    lanes: str  # what fills a vector: "plane", "row" or "batch"; "none": the bias alone
    tile: tuple[int, int]  # rows x columns of vectors
    channel_blocks: int
    variant: str
    reason: str
    expected_gflops: float  # useful ones, by the cost model
    over_dense: float  # expected times as fast as dense float32 at the peak; inf: nothing to do
    values_bytes: int
    index_bytes: int
    plan_bytes: int
    workspace_bytes: int  # of "forward": the larger of forward's and grad-weight's


@dataclass(frozen=True)
class Explanation:
    """The passes of a model's sparse layers in the order they run; print it for a table."""

    rows: list[LayerPass]
    unused: list[str]  # sparse layers that the model did not call
    isa: str
    threads: int
    peak_gflops: float  # measured: float32 multiply-adds from registers

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [HEADER]
        table += [_cells(row) for row in self.rows]
        lines = text_table.columns(table, left=(0, 1, 2, 5, 10), rules=(1,))
        lines += [f"{name}: not called" for name in self.unused]
        lines.append(
            f"{self.isa}, {self.threads} threads, peak {self.peak_gflops:.0f} GF/s; GF/s are the "
            "cost model's, of multiply-adds at non-zeros; grad-weight runs on forward's plan"
        )
        return "\n".join([*lines, *self._about_dense()])

    def _about_dense(self) -> Iterator[str]:
        """Where dense would probably be faster: known for float32, a warning for bfloat16.

        A dense pass rarely reaches the peak, so in float32 this errs on the side of dense.
        """
        slower = [f"{row.layer} ({row.operation})" for row in self.rows if row.over_dense < 1]
        named = ", ".join(slower) or "no pass"
        yield f"dense float32, if it reached that peak, would be faster in: {named}"
        by = dense_bf16_by()
        if by in ("AMX", "AVX512-BF16"):
            yield (
                f"dense under bfloat16 autocast runs by {by} here, which that peak does not count, "
                "and may be faster in more passes; `dsr bench` times a layer against both"
            )


def _cells(row: LayerPass) -> tuple[str, ...]:
    held = row.values_bytes + row.index_bytes
    return (
        row.layer,
        row.operation,
        "x".join(map(str, row.input_shape)),
        f"{row.nnz:,}",
        f"{row.sparsity:.3f}",
        row.variant,
        f"{row.expected_gflops:.0f}",
        *(f"{size / 1024:,.0f} KiB" for size in (held, row.plan_bytes, row.workspace_bytes)),
        row.reason,
    )


def explain(model: nn.Module, input_shape: Sequence[int]) -> Explanation:
    """How each sparse layer of `model` runs on inputs of `input_shape`, batch included, and why.

    The model runs once without gradients, on fake tensors, which have a shape and no memory, so
    nothing is computed; a model whose way depends on numbers runs on zeros. Parameters, buffers,
    mode, gradients and torch's random numbers stay as they are. Takes 0.1 s for the peak.

    Raises TypeError if `model` or `input_shape` is of the wrong type, ValueError if a size is below
    1, if `model` has no sparse layer, is on a GPU or on meta, or does not accept the shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    shape = _checked(input_shape)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    layers = {module: name for name, module in named_sparse_modules(model)}
    if not layers:
        raise ValueError("model: expected at least one sparse layer, got none; see sparsify()")
    for module, name in layers.items():
        if module.crow_indices.is_cuda:
            raise ValueError(
                "model: expected a model on the CPU, whose kernels this is about, but layer "
                f"{name!r} is on {module.crow_indices.device}; explain copy.deepcopy(model).cpu()"
            )
        module.pattern()  # raises where there is none, as on meta
    threads, peak = torch.get_num_threads(), _C.peak_gflops(torch.get_num_threads())
    rows: list[LayerPass] = []
    called = set()
    for module, call in _calls(model, shape):
        name = layers[module] or "(model)"
        seen = (name, call.x.shape)
        if seen not in called:  # a layer in a loop explains itself once
            rows += _rows(name, module, call, threads, peak)
        called.add(seen)
    names = {name for name, _ in called}
    unused = [name for name in layers.values() if (name or "(model)") not in names]
    return Explanation(rows, unused, _C.isa(), threads, peak)


def _checked(input_shape: Sequence[int]) -> tuple[int, ...]:
    got = repr(input_shape)
    if isinstance(input_shape, Tensor):
        got = f"a tensor, whose sizes are {tuple(input_shape.shape)}"
    wrong = f"input_shape: expected sizes such as (128, 3, 32, 32), got {got}"
    if isinstance(input_shape, str) or not isinstance(input_shape, Sequence):
        raise TypeError(wrong)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in input_shape):
        raise TypeError(wrong)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(wrong + ": all of them must be at least 1")
    return tuple(input_shape)


class _Call(NamedTuple):
    x: Tensor  # fake, or on the meta device: sizes and strides
    y: Tensor
    shape: ConvShape


class _Recorder(TorchDispatchMode):
    """Notes every sparse convolution with the layer that called it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[SparseModule, _Call]] = []
        self.layer: SparseModule | None = None

    def enter(self, module: nn.Module, args: object) -> None:
        assert isinstance(module, SparseModule)
        self.layer = module

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        self.layer = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.dsr_kernels.sparse_conv2d.default and self.layer is not None:
            x, _values, _bias, _crow, _col, *fields = args
            self.calls.append((self.layer, _Call(_meta(x), _meta(out), conv_shape(*fields))))
        return out


def _meta(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _calls(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[SparseModule, _Call]]:
    try:
        return _run(model, shape, fake_tensor.FakeTensorMode(allow_non_fake_inputs=True))
    except NEEDS_NUMBERS:
        return _run(model, shape, contextlib.nullcontext())


def _run(
    model: nn.Module, shape: tuple[int, ...], tensors: contextlib.AbstractContextManager[object]
) -> list[tuple[SparseModule, _Call]]:
    floats = (t for t in model.parameters() if t.is_floating_point())
    like = next(floats)  # a sparse layer has at least its values
    recorder = _Recorder()
    with _unchanged(model, recorder) as buffers, tensors:
        x = torch.zeros(shape, dtype=like.dtype, device=like.device)
        try:
            with recorder:
                torch.func.functional_call(model, buffers, (x,), tie_weights=False)
        except (*NEEDS_NUMBERS, NotImplementedError):
            raise
        except (ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"input_shape: the model does not run on {shape}: {error}") from error
    return recorder.calls


@contextlib.contextmanager
def _unchanged(model: nn.Module, recorder: _Recorder) -> Iterator[dict[str, Tensor]]:
    """Hooks on, gradients off, random numbers kept; gives copies for the buffers that may change.

    The patterns of sparse layers are not copied: nothing writes them in a forward.
    """
    sparse = [m for m in model.modules() if isinstance(m, SparseModule)]
    own = {id(b) for m in sparse for b in (m.crow_indices, m.col_indices)}
    copies = {name: b.clone() for name, b in model.named_buffers() if id(b) not in own}
    handles = [m.register_forward_pre_hook(recorder.enter) for m in sparse]
    handles += [m.register_forward_hook(recorder.leave) for m in sparse]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield copies
    finally:
        for handle in handles:
            handle.remove()


def _rows(
    name: str, module: SparseModule, call: _Call, threads: int, peak: float
) -> Iterator[LayerPass]:
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
