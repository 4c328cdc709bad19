"""torch.func and vmap on sparse layers: the numbers of torch.autograd, and of the dense twin."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.nn_cases import swap_pattern
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_leaves

from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear, densify

MODELS = {
    "conv2d": (
        lambda: nn.Sequential(
            SparseConv2d(4, 6, 3, padding=1, sparsity=0.6),
            nn.Tanh(),
            SparseConv2d(6, 4, 3, stride=2, groups=2, bias=False, sparsity=0.6),
        ),
        (3, 4, 5, 5),
    ),
    "conv1d": (lambda: SparseConv1d(4, 6, 3, padding=1, sparsity=0.5), (3, 4, 7)),
    "linear": (
        lambda: nn.Sequential(
            SparseLinear(6, 8, sparsity=0.5, block_size=4),
            nn.Tanh(),
            SparseLinear(8, 3, sparsity=0.5, bias=False),
        ),
        (3, 6),
    ),
}


@pytest.fixture(params=MODELS)
def case(request) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, size = MODELS[request.param]
    return make().double(), torch.randn(size, dtype=torch.float64)


@pytest.fixture(autouse=True)
def fallbacks_are_seen(recwarn):
    """torch warns where it takes an op without a rule apart."""
    yield
    assert not [w for w in recwarn if "performance drop" in str(w.message)]


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def loss_of(net: nn.Module):
    return lambda parameters, x: functional_call(net, parameters, (x,)).square().sum()


def assert_same(ours, expected) -> None:
    pairs = zip(tree_leaves(ours), tree_leaves(expected), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def expected_grads(net: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))


@pytest.mark.parametrize("tensors", [tensors_of, lambda net: dict(net.named_parameters())])
def test_grad_of_weights(case, tensors):
    net, x = case
    assert_same(grad(loss_of(net))(tensors(net), x), expected_grads(net, x))


def test_grad_of_the_input_and_vjp_more_than_once(case):
    net, x = case
    dense = densify(copy.deepcopy(net))
    assert_same(
        grad(lambda x: net(x).square().sum())(x), grad(lambda x: dense(x).square().sum())(x)
    )
    tensors = tensors_of(net)
    y, pull = vjp(lambda tensors, x: functional_call(net, tensors, (x,)), tensors, x)
    cotangent = torch.randn_like(y)
    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad(net(leaf), [*net.parameters(), leaf], cotangent)
    assert_same(pull(cotangent), wanted)
    assert_same(pull(cotangent), wanted)


def test_jacrev(case):
    net, x = case
    tensors = tensors_of(net)
    ours = jacrev(lambda tensors: functional_call(net, tensors, (x,)))(tensors)

    def by_autograd(*values):
        return functional_call(net, dict(zip(tensors, values, strict=True)), (x,))

    wanted = torch.autograd.functional.jacobian(by_autograd, tuple(tensors.values()))
    assert_same(ours, wanted)
    assert_same(jacrev(net, chunk_size=2)(x), jacrev(densify(copy.deepcopy(net)))(x))


def test_second_derivatives(case):
    """A level above has to record what a level below computes, within its forward pass too."""
    net, x = case
    x = x[:1]
    dense = densify(copy.deepcopy(net))
    of_input = jacrev(jacrev(lambda x: net(x).square().sum()))(x)
    assert_same(of_input, jacrev(jacrev(lambda x: dense(x).square().sum()))(x))
    tensors, loss = tensors_of(net), loss_of(net)
    ours = jacrev(jacrev(loss))(tensors, x)

    def by_autograd(*values):
        return loss(dict(zip(tensors, values, strict=True)), x)

    wanted = torch.autograd.functional.hessian(by_autograd, tuple(tensors.values()))
    assert_same([list(row.values()) for row in ours.values()], wanted)


def test_no_grad_within_and_around(case):
    net, x = case
    with torch.no_grad():
        assert_same(grad(loss_of(net))(tensors_of(net), x), expected_grads_of(net, x))

    def constant(parameters):
        with torch.no_grad():
            return functional_call(net, parameters, (x,)).sum()

    assert not any(g.any() for g in grad(constant)(tensors_of(net)).values())


@torch.enable_grad()
def expected_grads_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    return expected_grads(net, x)


def test_gradients_of_each_sample(case):
    net, x = case
    tensors, loss = tensors_of(net), loss_of(net)
    ours = vmap(grad(loss), (None, 0))(tensors, x.unsqueeze(1))
    each = [grad(loss)(tensors, one) for one in x.split(1)]
    assert_same(ours, {name: torch.stack([g[name] for g in each]) for name in tensors})


def test_an_ensemble_of_patterns_and_its_gradients(case):
    net, x = case
    several = [copy.deepcopy(net) for _ in range(3)]
    for seed, one in enumerate(several):
        for module in one.modules():
            if hasattr(module, "nnz"):
                swap_pattern(module, module.nnz, seed=seed)
    parameters, buffers = stack_module_state(several)

    def run(parameters, buffers, x):
        return functional_call(net, (parameters, buffers), (x,)).square().sum()

    assert_same(
        vmap(run, (0, 0, None))(parameters, buffers, x),
        torch.stack([one(x).square().sum() for one in several]),
    )
    ours = vmap(grad(run), (0, 0, None))(parameters, buffers, x)
    each = zip(*(expected_grads(one, x) for one in several), strict=True)
    assert_same(ours, [torch.stack(grads) for grads in each])


def test_vmap_is_one_call_where_only_images_have_the_dimension():
    conv, calls = SparseConv2d(4, 6, 3, nnz=20), []
    op = torch.ops.dsr_kernels.sparse_conv2d.default
    x = torch.randn(2, 4, 5, 5, 3)
    with Counter(calls):
        y = vmap(conv, in_dims=-1, out_dims=-1)(x)
    assert calls == [op]
    expected = torch.stack([conv(one) for one in x.unbind(-1)], -1)
    torch.testing.assert_close(y, expected)


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    """Lists our ops as they are called."""

    def __init__(self, calls: list) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dsr_kernels":
            self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_autograd_through_vmap(case):
    net, x = case
    x.requires_grad_()
    y = vmap(vmap(net))(x[:, None, None]).flatten(0, 2)
    assert_same(
        torch.autograd.grad(y.square().sum(), [x, *net.parameters()]),
        torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()]),
    )


def test_vmap_over_nothing_is_refused_in_a_sentence():
    conv = SparseConv2d(4, 6, 3, nnz=20)
    weights = torch.zeros(0, 20, 1)
    with pytest.raises(NotImplementedError, match="dimension of size 0"):
        vmap(lambda w: functional_call(conv, {"weight_values": w}, (torch.ones(2, 4, 5, 5),)))(
            weights
        )
    assert vmap(conv)(torch.zeros(0, 2, 4, 5, 5)).shape == (0, 2, 6, 3, 3)


@pytest.mark.parametrize("asks", [False, True])
def test_the_function_of_vjp_outlives_its_transform(asks):
    layer, x = SparseLinear(5, 4, nnz=8), torch.randn(3, 5)
    _, pull = vjp(lambda x: layer(x), x)
    given = torch.randn(3, 4, requires_grad=asks)
    (gx,) = pull(given)
    expected = given @ layer.to_dense()
    assert_same(gx, expected)
    if asks:
        inputs = [layer.weight_values, given]
        found = torch.autograd.grad(gx.square().sum(), inputs)
        assert_same(found, torch.autograd.grad(expected.square().sum(), inputs))


@pytest.mark.parametrize("nnz", [8, 6])
def test_vjp_of_an_older_pattern_is_refused(nnz):
    layer = SparseLinear(5, 4, nnz=8)
    y, pull = vjp(layer, torch.randn(3, 5))
    swap_pattern(layer, nnz)
    with pytest.raises(RuntimeError, match="weights that no longer exist"):
        pull(y)


def test_compiled_and_on_the_meta_device():
    layer, x = SparseLinear(5, 4, nnz=8), torch.randn(3, 5)
    each = vmap(grad(loss_of(layer)), (None, 0))
    compiled = torch.compile(each, backend="aot_eager", fullgraph=True)
    assert_same(compiled(tensors_of(layer), x), each(tensors_of(layer), x))
    meta = copy.deepcopy(layer).to("meta")
    on_meta = vmap(grad(loss_of(meta)), (None, 0))
    assert on_meta(tensors_of(meta), x.to("meta"))["weight_values"].shape == (3, 8, 1)


@pytest.mark.parametrize("call", [torch.func.hessian, torch.func.jacfwd])
def test_forward_mode_is_refused_at_every_level(call):
    layer = SparseLinear(5, 4, nnz=8)
    with pytest.raises(NotImplementedError, match="forward-mode AD"):
        call(lambda x: layer(x).square().sum())(torch.randn(3, 5))
