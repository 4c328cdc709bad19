"""No address reaches native code of a tensor whose memory does not hold what it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dsr_kernels
from dsr_kernels.backends.address import address, address_to_read

ROOM = Path(dsr_kernels.__file__).parent


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.empty(3)


def freed() -> Tensor:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk(tensor: Tensor, size: int = 4) -> Tensor:
    tensor.untyped_storage().resize_(size)
    return tensor


def two() -> Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(torch.ones(3), torch.ones(3))


def functional() -> Tensor:
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

    with FunctionalTensorMode():
        return FunctionalTensor.to_functional(torch.ones(3))


WITHOUT: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.empty(3, device="meta"),
    "fake": fake,
    "functional": functional,
    "sparse COO": lambda: torch.eye(3).to_sparse(),
    "sparse CSR": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3)], layout=torch.jagged
    ),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "negated": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "zeros that take no memory": lambda: torch._efficientzerotensor(3),
    "mkldnn": lambda: torch.ones(3, 4).to_mkldnn(),
    "wrapper subclass": two,
    "freed": freed,
    "shrunk": lambda: shrunk(torch.ones(3)),
    "view of a freed one": lambda: shrunk(torch.ones(5)[2:], 0),
    "view of a shrunk one": lambda: shrunk(torch.ones(5)[2:], 16),
    "shrunk, with gaps": lambda: shrunk(torch.ones(4, 4)[:, :2], 48),
    "shrunk, channels last": lambda: shrunk(
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last), 380
    ),
    "meta, shared copy-on-write": lambda: torch._lazy_clone(torch.empty(3, device="meta")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gate", [address, address_to_read])
@pytest.mark.parametrize("kind", WITHOUT)
def test_tensors_without_memory_of_their_own_are_refused(
    kind: str, gate: Callable[[Tensor], int]
) -> None:
    with pytest.raises(TypeError, match="memory does not hold what it stands for"):
        gate(WITHOUT[kind]())


@pytest.mark.parametrize("gate", [address, address_to_read])
@pytest.mark.parametrize("transform", ["vmap", "grad", "functionalize"])
def test_tensors_of_functorch_are_refused(transform: str, gate: Callable[[Tensor], int]) -> None:
    def look(x: Tensor) -> Tensor:
        with pytest.raises(TypeError, match="memory does not hold"):
            gate(x)
        return x.sum()

    getattr(torch.func, transform)(look)(torch.ones(2, 3))


WITH: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.ones(3),
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "view": lambda: torch.ones(5)[2:4],
    "view as far as its memory": lambda: shrunk(torch.ones(5)[2:4], 16),
    "with gaps": lambda: shrunk(torch.ones(4, 4)[:, :2], 56),
    "expanded": lambda: torch.ones(1).expand(3),
    "shared copy-on-write": lambda: torch._lazy_clone(torch.ones(3)),
    "view of a shared one": lambda: torch._lazy_clone(torch.ones(5))[2:4],
    "pinned to nothing": lambda: torch.ones(0, 3),
    "buffer": lambda: nn.Buffer(torch.ones(3)),
    "under inference_mode": torch.inference_mode()(lambda: torch.ones(3)),
}


@pytest.mark.parametrize("kind", WITH)
def test_ordinary_tensors_have_an_address(kind: str) -> None:
    tensor = WITH[kind]()
    shared = torch._C._is_cow_tensor(tensor)
    place = address_to_read(tensor)
    assert torch._C._is_cow_tensor(tensor) == shared  # reading leaves it shared
    assert address(tensor) == tensor.data_ptr()
    assert shared or place == tensor.data_ptr()


ALLOWED = ("address.py", "gradient_growth.py", "kept.py")


def test_every_address_goes_through_the_gate() -> None:
    """But for those that only tell tensors apart."""
    found = [
        f"{path.relative_to(ROOM)}: {line.strip()}"
        for path in ROOM.rglob("*.py")
        for line in path.read_text().splitlines()
        if ".data_ptr()" in line and path.name not in ALLOWED
    ]
    assert not found
