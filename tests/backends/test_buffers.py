"""Memory that large results leave to later ones: never while anybody can still see it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.nn_cases import layer

from dsr_kernels.backends.buffers import IDLE, SMALLEST, Buffers, buffers
from dsr_kernels.backends.patterns import patterns

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
    places = {resized.data_ptr(), shared.share_memory_().data_ptr()}
    resized.untyped_storage().resize_(0)
    del shared, resized
    kept = [ask(pool, owner) for _ in range(3)]
    assert not places & {t.data_ptr() for t in kept} or not any(t.is_shared() for t in kept)
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


def test_what_nobody_asks_for_any_more_is_given_up(pool: Buffers) -> None:
    owner = Owner()
    del [ask(pool, owner) for _ in range(3)][:]
    assert pool.held() >= SMALLEST
    other = (2 * SIZE[0],)
    for _ in range(2 * IDLE):
        pool.empty(owner, other, STRIDES, torch.float32)
    assert pool.held() == 2 * SMALLEST


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


def test_results_that_are_kept_stay_what_they_are() -> None:
    conv, x = layer(8, 64, 3, padding=1), torch.randn(1, 8, 64, 64)
    outputs, copies = [], []
    for _ in range(5):
        leaf = x.clone().requires_grad_()
        y = conv(leaf)
        y.square().sum().backward()
        outputs += [y.detach(), leaf.grad]
        copies += [y.detach().clone(), leaf.grad.clone()]
        x = x + 1
    assert all(map(torch.equal, outputs, copies))


def test_a_layers_buffers_are_freed_with_it() -> None:
    gc.collect()
    patterns.clear()
    pool = buffers
    before = pool.held()
    conv = layer(8, 64, 3, padding=1)
    for _ in range(3):
        conv(torch.randn(1, 8, 64, 64))
    assert pool.held() > before
    del conv
    gc.collect()
    assert pool.held() == before


def test_a_request_without_an_owner_is_the_last_ones(pool: Buffers) -> None:
    ask(pool, None)
    assert pool.held() == 0  # nobody's
    owner = Owner()
    kept = [ask(pool, owner), ask(pool, None)]
    assert pool.held() == 2 * SMALLEST
    del owner
    assert pool.held() == 0
    del kept
