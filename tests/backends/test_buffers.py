"""Memory that large results leave to later ones: never while anybody can still see it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.nn_cases import layer
from torch import nn

import dsr_kernels
from dsr_kernels.backends.buffers import MOST_IDLE, SMALLEST, Buffers, buffers

SIZE, STRIDES = (SMALLEST // 4,), (1,)


class Owner:
    pass


@pytest.fixture
def pool() -> Buffers:
    return Buffers()


def ask(pool: Buffers, owner: object) -> torch.Tensor:
    return pool.empty(owner, SIZE, STRIDES, torch.float32)


def test_memory_is_used_again_once_nobody_has_it(pool: Buffers) -> None:
    owner = Owner()
    first = ask(pool, owner)
    place = first.data_ptr()
    assert ask(pool, owner).data_ptr() != place  # of a second one, which dies at once
    del first
    again = [ask(pool, owner) for _ in range(2)]
    assert place in {t.data_ptr() for t in again}
    assert pool.held() == 2 * SMALLEST
    assert pool.empty(owner, (3, 2), (2, 1), torch.float64).stride() == (2, 1)
    assert pool.held() == 2 * SMALLEST  # small ones are the heap's


@pytest.mark.parametrize(
    "see",
    [
        lambda t: t[:4],
        lambda t: t.detach(),
        lambda t: t.view(torch.int32),
        lambda t: t.numpy(),
        lambda t: t.untyped_storage(),
        lambda t: torch.from_dlpack(t),
        lambda t: memoryview(t.numpy()),
        lambda t: (t.clone().requires_grad_() * t).sum(),  # autograd has saved it
    ],
    ids=["view", "detached", "dtype", "numpy", "storage", "dlpack", "memoryview", "saved"],
)
def test_what_is_still_seen_is_not_used_again(pool: Buffers, see) -> None:
    owner = Owner()
    tensor = ask(pool, owner)
    place = tensor.data_ptr()
    seen = see(tensor)
    del tensor
    assert ask(pool, owner).data_ptr() != place
    del seen
    assert place in {t.data_ptr() for t in [ask(pool, owner) for _ in range(2)]}


def test_memory_of_other_processes_or_sizes_is_left_alone(pool: Buffers) -> None:
    owner = Owner()
    shared, resized = ask(pool, owner), ask(pool, owner)
    shared.share_memory_()
    resized.untyped_storage().resize_(0)
    del shared, resized
    kept = [ask(pool, owner) for _ in range(3)]
    assert all(t.untyped_storage().nbytes() == SMALLEST for t in kept)
    assert not any(t.is_shared() for t in kept)


def test_buffers_go_with_their_last_user(pool: Buffers) -> None:
    one, two = Owner(), Owner()
    tensor = ask(pool, one)
    tensor.fill_(7)
    del one
    assert pool.held() == 0
    assert torch.all(tensor == 7)  # it lives on by itself
    del tensor
    first = ask(pool, two)
    del first
    three = Owner()
    ask(pool, three)  # takes it over
    del two
    assert pool.held() == SMALLEST
    del three
    assert pool.held() == 0


def test_idle_buffers_do_not_pile_up(pool: Buffers) -> None:
    """Images of ever other sizes, or results that were many once."""
    owner = Owner()
    many = [ask(pool, owner) for _ in range(200)]
    assert pool.held() == 200 * SMALLEST
    del many
    for count in range(100):
        pool.empty(owner, (SIZE[0] + 4 * count + 4,), STRIDES, torch.float32)
        assert pool.held() <= MOST_IDLE + 2 * SMALLEST


@pytest.mark.parametrize(
    "lose", [lambda t: t.share_memory_(), lambda t: t.resize_(2 * t.numel())], ids=["share", "size"]
)
def test_memory_that_became_anothers_is_given_up(pool: Buffers, lose) -> None:
    owner = Owner()
    for _ in range(50):
        lose(ask(pool, owner))
    assert pool.held() <= MOST_IDLE
    del owner
    assert pool.held() == 0


def test_a_default_device_is_none_of_ours(pool: Buffers) -> None:
    owner = Owner()
    for _ in range(2):
        with torch.device("meta"):
            assert ask(pool, owner).is_cpu
        assert ask(pool, owner).is_cpu


def test_threads_are_given_memory_of_their_own(pool: Buffers) -> None:
    owner = Owner()

    def use(number: int) -> bool:
        ok = True
        for _ in range(200):
            tensor = ask(pool, owner)
            tensor.fill_(number)
            ok &= bool(torch.all(tensor == number))
            del tensor
        return ok

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(use, range(4)))


def fused_model() -> nn.Module:
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(layer(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(layer(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
    )
    dsr_kernels.fuse(model, verbose=False)
    return model


def test_results_that_are_kept_stay_what_they_are() -> None:
    model, x = fused_model(), torch.randn(4, 3, 64, 64)
    outputs, copies = [], []
    for _ in range(4):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.square().sum().backward()
        outputs += [y.detach(), leaf.grad]
        copies += [y.detach().clone(), leaf.grad.clone()]
        x = x + 1
    assert all(map(torch.equal, outputs, copies))


def test_a_models_buffers_are_freed_with_it() -> None:
    gc.collect()
    before = buffers.held()
    model = fused_model()
    for _ in range(3):
        with torch.device("meta"):  # a default for new tensors, which these are not
            model(torch.randn(4, 3, 64, 64, device="cpu")).sum().backward()
    assert buffers.held() > before
    with torch.no_grad():
        held = buffers.held()
        model.eval()
        kept = [model(torch.randn(4, 3, 64, 64 + n)) for n in range(9)]
        assert buffers.held() == held  # inference takes none
    del model, kept
    gc.collect()
    assert buffers.held() <= before


def test_a_request_without_an_owner_is_the_last_ones(pool: Buffers) -> None:
    ask(pool, None)
    assert pool.held() == 0  # nobody's
    owner = Owner()
    kept = [ask(pool, owner), ask(pool, None)]
    assert pool.held() == 2 * SMALLEST
    del owner
    assert pool.held() == 0
    del kept
