"""One layer as a problem for benchmarks: its tensors, and runs of every implementation on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.distribution import budget
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops import library
from dsr_kernels.ops.passes import Pass, passes
from dsr_kernels.ops.reference import to_dense
from dsr_kernels.topology import Topology

OPERATIONS = ("forward", "grad_input", "grad_weight", "module")
DENSE = ("dense NCHW", "dense channels_last")
LAST = {"memory_format": torch.channels_last}
IMAGES = 2  # that are computed again in float64


def float32_as(precision: str) -> None:
    """Has torch multiply and convolve float32 on GPUs as it is, "ieee", or rounded to "tf32"."""
    backends = torch.backends
    if hasattr(backends.cudnn, "conv"):  # torch 2.9
        cudnn = backends.cudnn
        for setting in (backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn):
            setting.fp32_precision = precision
    # The older names too: torch refuses to read them where the two disagree.
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = precision == "tf32"


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer: 1x1 on images of 1x1."""

    out_channels: int
    in_channels: int
    kernel: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (1, 1)  # of the input
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    batch: int = 128

    @property
    def linear(self) -> bool:
        return self.kernel == self.size == (1, 1)

    @property
    def out_size(self) -> tuple[int, int]:
        sizes = zip(self.size, self.kernel, self.padding, strict=True)
        height, width = ((s + 2 * p - k) // self.stride + 1 for s, k, p in sizes)
        return height, width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels, *self.kernel

    @property
    def shape(self) -> ConvShape:
        """As the ops take it."""
        top, left = self.padding
        stride = self.stride, self.stride
        return ConvShape(self.weight_shape, stride, (top, top, left, left), (1, 1), 1)

    def __str__(self) -> str:
        name = f"{self.in_channels}->{self.out_channels}"
        if self.linear:
            return f"{name} linear"
        name += " {}x{} @{}x{}".format(*self.kernel, *self.size)
        return name + (f" /{self.stride}" if self.stride > 1 else "")


class Problem:
    """A layer's tensors: input, output gradient, dense weight, and a sparse weight per sparsity.

    Activations and the dense weight are of `dtype`, the sparse values float32.
    """

    def __init__(
        self,
        layer: Layer,
        sparsities: Sequence[float],
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        block_size: int = 1,
    ) -> None:
        self.layer, self.device, self.dtype, self.seed = layer, torch.device(device), dtype, seed
        self.block_size = block_size
        self.generator = torch.Generator(self.device).manual_seed(seed)
        n = layer.batch
        self.x = self._randn(n, layer.in_channels, *layer.size).to(dtype)
        self.grad = self._randn(n, layer.out_channels, *layer.out_size).to(dtype)
        self.weight = self._randn(*layer.weight_shape).to(dtype)
        drawn = torch.rand(layer.weight_shape, generator=self.generator, device=self.device)
        self.mask = (drawn < 0.1).to(dtype)
        self.sparse = {sparsity: self._sparse(sparsity) for sparsity in sparsities}
        self._errors: dict[tuple[str, float], float] = {}

    def in_bfloat16(self) -> Problem:
        """The same numbers and patterns, activations and the dense weight rounded to bfloat16."""
        rest = self.seed, self.device, torch.bfloat16, self.block_size
        return Problem(self.layer, [*self.sparse], *rest)

    def _randn(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, device=self.device)

    def _sparse(self, sparsity: float) -> tuple[Tensor, Tensor, Tensor]:
        nnz = budget(self.weight.numel(), sparsity, self.block_size)
        options = {"generator": self.generator, "device": self.device}
        drawn = Topology.random(self.layer.weight_shape, nnz, block_size=self.block_size, **options)
        return self._randn(nnz), drawn.crow_indices, drawn.col_indices

    # --- runs -------------------------------------------------------------------------------------

    def ours(
        self, operation: str, sparsity: float, last: bool = False
    ) -> Callable[[], Tensor | tuple]:
        values, crow, col = self.sparse[sparsity]
        x, grad, shape = self.x, self.grad, self.layer.shape
        if last:
            x, grad = x.to(**LAST), grad.to(**LAST)
        if operation == "forward":
            return lambda: library.sparse_conv2d(x, values, None, crow, col, shape)
        if operation == "grad_input":
            size = tuple(x.shape[1:])
            return lambda: library.sparse_conv2d_grad_input(
                grad, values, crow, col, size, shape, last
            )
        if operation == "grad_weight":
            return lambda: library.sparse_conv2d_grad_weight(
                x, grad, crow, col, shape, values.dtype
            )
        module = self._sparse_module(values, crow, col)
        return _through_autograd(module, self._flat(x), module.weight_values, self._flat(grad))

    def _sparse_module(self, values: Tensor, crow: Tensor, col: Tensor) -> SparseModule:
        layer = self.layer
        options = {"bias": False, "nnz": values.numel(), "device": self.device}
        options["block_size"] = self.block_size
        if layer.linear:
            module = SparseLinear(layer.in_channels, layer.out_channels, **options)
        else:
            sizes = layer.in_channels, layer.out_channels, layer.kernel
            module = SparseConv2d(*sizes, layer.stride, layer.padding, **options)
        module.replace_topology(crow, col, values.clone())
        return module

    def _flat(self, x: Tensor) -> Tensor:
        """[N, C] of a linear layer's [N, C, 1, 1]."""
        return x.flatten(1) if self.layer.linear else x

    def dense(self, operation: str, masked: bool = False, last: bool = False) -> Callable:
        """The same with a dense weight, which `masked` multiplies with a mask in each call."""
        tensors = tuple(map(self._flat, (self.x, self.grad, self.weight, self.mask)))
        if last and not self.layer.linear:
            tensors = tuple(t.to(**LAST) for t in tensors)
        x, grad, weight, mask = tensors
        masked_weight = (lambda w: w * mask) if masked else (lambda w: w)
        forward, backward = self._dense_linear() if self.layer.linear else self._dense_conv()
        if operation == "forward":
            return lambda: forward(x, masked_weight(weight))
        if operation == "grad_input":
            return lambda: backward(grad, x, masked_weight(weight), True, False)[0]
        if operation == "grad_weight":
            return lambda: masked_weight(backward(grad, x, weight, False, True)[1])
        module = self._dense_module(weight)
        if masked:  # as mask-based libraries do: the layer runs on a product made for each call
            call = functools.partial(self._masked_call, module, forward, mask)
            return _through_autograd(call, x, module.weight, grad)
        return _through_autograd(module, x, module.weight, grad)

    @staticmethod
    def _masked_call(module: nn.Module, forward: Callable, mask: Tensor, x: Tensor) -> Tensor:
        return forward(x, module.weight * mask)

    def _dense_module(self, weight: Tensor) -> nn.Module:
        layer, options = self.layer, {"bias": False, "device": self.device, "dtype": self.dtype}
        if layer.linear:
            module = nn.Linear(layer.in_channels, layer.out_channels, **options)
        else:
            sizes = layer.in_channels, layer.out_channels, layer.kernel
            module = nn.Conv2d(*sizes, layer.stride, layer.padding, **options)
        module.weight = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        return module

    def _dense_conv(self) -> tuple[Callable, Callable]:
        stride, padding = [self.layer.stride] * 2, list(self.layer.padding)
        forward = functools.partial(F.conv2d, stride=stride, padding=padding)

        def backward(
            grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
        ) -> tuple[Tensor | None, ...]:
            return torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                None,
                stride,
                padding,
                [1, 1],
                False,
                [0, 0],
                1,
                [wants_x, wants_weight, False],
            )

        return forward, backward

    def _dense_linear(self) -> tuple[Callable, Callable]:
        def backward(
            grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
        ) -> tuple[Tensor | None, ...]:
            return grad @ weight if wants_x else None, grad.t() @ x if wants_weight else None

        return F.linear, backward

    def dense_runs(self, operation: str) -> dict[str, Callable]:
        """The dense implementations by name, without a mask; a linear layer has one."""
        formats = DENSE[:1] if self.layer.linear else DENSE
        return {name: self.dense(operation, last=name == DENSE[1]) for name in formats}

    def masked_run(self, operation: str, like: str) -> Callable:
        """Dense with the mask multiplied in at each call, in the memory format of run `like`."""
        return self.dense(operation, masked=True, last=like == DENSE[1])

    # --- what a result is worth -------------------------------------------------------------------

    def work(self, operation: str, sparsity: float) -> tuple[int, int]:
        """(flops of the multiply-adds at the non-zeros, bytes of the compulsory traffic).

        The traffic: activations read and written, values and indices, once for each operation.
        """
        values, crow, col = self.sparse[sparsity]
        operations = 3 if operation == "module" else 1
        flops = 2 * values.numel() * self.grad.numel() // self.layer.out_channels
        moved = sum(t.nbytes for t in (self.x, self.grad, values, crow, col))
        return operations * flops, operations * moved

    def error(self, operation: str, sparsity: float) -> float:
        """Largest error of a slice against float64, relative to the result's largest element."""
        if operation == "module":
            return max(self.error(each, sparsity) for each in OPERATIONS[:3])
        key = operation, sparsity
        if key not in self._errors:
            ours, exact = self._ours_and_exact(operation, sparsity)
            scale = exact.abs().amax().clamp_min(1e-30)
            self._errors[key] = float((ours - exact).abs().amax() / scale)
        return self._errors[key]

    def _ours_and_exact(self, operation: str, sparsity: float) -> tuple[Tensor, Tensor]:
        """The first images' results (grad-weight: the first row that has non-zeros)."""
        values, crow, col = self.sparse[sparsity]
        weight = to_dense(values.double(), crow, col, self.layer.weight_shape)
        ours, (forward, backward) = self.ours(operation, sparsity)(), self._dense_conv()
        if operation == "forward":
            return ours[:IMAGES], forward(self.x[:IMAGES].double(), weight)
        if operation == "grad_input":
            x, grad = self.x[:IMAGES].double(), self.grad[:IMAGES].double()
            return ours[:IMAGES], backward(grad, x, weight, True, False)[0]
        block_row = int((crow[1:] > crow[:-1]).nonzero()[0])
        row = block_row * self.block_size
        grad, kept = self.grad[:, row : row + 1].double().contiguous(), weight[row : row + 1]
        exact = backward(grad, self.x.double(), kept, False, True)[1].flatten()
        begin, end = int(crow[block_row]), int(crow[block_row + 1])
        return ours.view(-1, self.block_size)[begin:end, 0], exact[col[begin:end].long()]

    def passes(self, sparsity: float) -> dict[str, Pass]:
        values, crow, col = self.sparse[sparsity]
        return passes(self.x, self.grad, values, crow, col, self.layer.shape)


def _through_autograd(forward: Callable, x: Tensor, leaf: Tensor, grad: Tensor) -> Callable:
    """Forward and both gradients, as a training step asks for them."""

    def run() -> tuple[Tensor, ...]:
        images = x.detach().requires_grad_()
        return torch.autograd.grad(forward(images), (images, leaf), grad)

    return run
