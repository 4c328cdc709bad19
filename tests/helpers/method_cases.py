"""Small models whose every gradient is known exactly, and what one rewire did to them."""

from __future__ import annotations

import numpy as np
import torch
from helpers.method_oracles import dense_gradient
from hypothesis import strategies as st
from torch import Tensor, nn

from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.topology import Topology

OPTIMIZERS = {  # a rate of 0: weights stay on their grid, while the state fills
    "momentum": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.0),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.0, weight_decay=0.0),
}
Entries = dict[int, tuple[float, ...]]  # position: (value, optimizer state ...)


class Bundle(nn.Module):
    """Unconnected sparse layers, each with small whole numbers as input and output gradient."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def backward(self, seed: int) -> list[np.ndarray]:
        """Fills the gradients; returns what each layer's dense weight gradient would be."""
        generator = torch.Generator().manual_seed(seed)
        loss, gradients = 0, []
        for layer in self.layers:
            conv = isinstance(layer, SparseConv2d)
            size = (layer.in_channels, 6, 7) if conv else (layer.in_features,)
            x = whole_numbers((2, *size), generator)
            y = layer(x)
            grad = whole_numbers(y.shape, generator)
            loss = loss + (y * grad).sum()
            gradients.append(gradient_of(layer, x, grad))
        loss.backward()
        return gradients

    def live(self) -> list[int]:
        return [i for i, layer in enumerate(self.layers) if layer.weight_values.requires_grad]


def whole_numbers(size, generator: torch.Generator) -> Tensor:
    return torch.randint(-2, 3, tuple(size), generator=generator).float()


def gradient_of(layer, x: Tensor, grad: Tensor) -> np.ndarray:
    x, grad = x.numpy(), grad.numpy()
    if isinstance(layer, SparseLinear):
        return grad.T @ x
    geometry = layer.stride, layer._padding_sides(), layer.dilation, layer.groups
    return dense_gradient(x, grad, layer.weight_shape, *geometry)


@st.composite
def sparse_layers(draw):
    """A convolution of any geometry or a linear layer, from nearly empty to full."""
    nnz = draw(st.sampled_from(["0", "1", "few", "half", "all but one", "all"]))
    if draw(st.booleans()):
        layer, sizes = SparseLinear, draw(st.tuples(st.integers(1, 9), st.integers(1, 7)))
        geometry = {}
        numel = sizes[0] * sizes[1]
    else:
        groups = draw(st.sampled_from([1, 1, 2, 3]))
        sizes = [groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))]
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        layer, numel = SparseConv2d, sizes[0] * sizes[1] // groups * kernel[0] * kernel[1]
        geometry = {"kernel_size": kernel, "groups": groups, "bias": draw(st.booleans())}
        geometry["dilation"] = draw(st.sampled_from([1, (1, 2)]))
        if draw(st.booleans()):
            geometry["padding"] = "same"
        else:
            geometry["padding"] = draw(st.sampled_from([0, 1, (0, 2)]))
            geometry["stride"] = draw(st.sampled_from([1, 2, (2, 3)]))
    counts = {"0": 0, "1": 1, "few": numel // 8, "half": numel // 2, "all but one": numel - 1}
    return layer(*sizes, **geometry, nnz=counts.get(nnz, numel))


@st.composite
def bundles(draw, layers=None, freeze=True) -> Bundle:
    """With weights on a coarse grid (many ties), and at least one layer that can train."""
    grid = draw(st.sampled_from([1, 3, 1000]))
    random = draw(st.randoms(use_true_random=False))
    bundle = Bundle(draw(st.lists(layers or sparse_layers(), min_size=1, max_size=4)))
    for layer in bundle.layers:
        numel, nnz = layer.numel, layer.nnz
        positions = torch.tensor(sorted(random.sample(range(numel), nnz)), dtype=torch.int64)
        values = torch.tensor([random.randint(-grid, grid) / grid for _ in range(nnz)])
        place(layer, positions, values)
        layer.weight_values.requires_grad_(
            not (freeze and draw(st.sampled_from([False, False, True])))
        )
    trainable = [layer for layer in bundle.layers if layer.nnz]
    if not trainable:
        layer = SparseLinear(3, 2, nnz=3)
        bundle.layers.append(layer)
        trainable = [layer]
    if not any(layer.weight_values.requires_grad for layer in trainable):
        trainable[0].weight_values.requires_grad_(True)
    return bundle


def place(layer, positions: Tensor, values: Tensor) -> None:
    pattern = Topology.from_positions(layer.weight_shape, positions)
    layer.replace_topology(pattern.crow_indices, pattern.col_indices, values)


def entries(layer, optimizer: torch.optim.Optimizer | None = None) -> Entries:
    state = optimizer.state.get(layer.weight_values, {}) if optimizer else {}
    arrays = [layer.weight_values.detach()]
    arrays += [v for _, v in sorted(state.items()) if isinstance(v, Tensor) and v.dim()]
    positions = layer.topology.linear_positions().tolist()
    return dict(
        zip(positions, zip(*(a.flatten().tolist() for a in arrays), strict=True), strict=True)
    )


def snapshot(bundle: Bundle, optimizer=None) -> list[Entries]:
    return [entries(layer, optimizer) for layer in bundle.layers]


def oracle_layers(bundle: Bundle, indices=None) -> list[tuple[int, dict[int, float]]]:
    """The layers as the oracles take them: those of `indices`, or all that train."""
    indices = bundle.live() if indices is None else indices
    chosen = [bundle.layers[i] for i in indices]
    return [(c.numel, {p: e[0] for p, e in entries(c).items()}) for c in chosen]


def assert_rewired(old: Entries, new: Entries, pruned: set[int], grown: int | set[int]) -> None:
    """`pruned` and no others were pruned, survivors are unchanged, and `grown` grew, at 0."""
    fresh = set(new) - set(old)
    assert set(old) - set(new) == pruned
    assert all(new[p] == old[p] for p in set(old) & set(new))
    assert all(not any(new[p]) for p in fresh)
    assert (fresh == grown) if isinstance(grown, set) else (len(fresh) == grown)


def assert_frozen_untouched(bundle: Bundle, before: list[Entries], after: list[Entries]) -> None:
    live = set(bundle.live())
    assert all(before[i] == after[i] for i in range(len(before)) if i not in live)
