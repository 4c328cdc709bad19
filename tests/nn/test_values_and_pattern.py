"""Values and pattern stay together, also for those who hold a layer's tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.one_row import X, index, two_weights
from torch import Tensor, nn
from torch.func import functional_call

from dsr_kernels import SparseConv2d, SparseLinear


def rewire(layer: SparseLinear, nnz: int = 2) -> None:
    """As many or more weights, elsewhere: 21 for X where there are two."""
    columns = index(0, 1, 3)[:nnz]
    layer.replace_topology(index(0, nnz), columns, torch.tensor([1.0, 2.0, 0.0])[:nnz])


HOLDERS: dict[str, Callable[[SparseLinear], Callable[[Tensor], Tensor]]] = {
    "trace": lambda layer: torch.jit.trace(layer, X),
    "functional_call": lambda layer: _held(layer, dict(layer.named_parameters())),
    "functional_call of all": lambda layer: _held(
        layer, dict(layer.named_parameters()) | dict(layer.named_buffers())
    ),
    "keep_vars": lambda layer: _held(layer, layer.state_dict(keep_vars=True)),
    "the same module elsewhere": lambda layer: nn.Sequential(layer),
    "make_fx": lambda layer: _graph(layer),
}


def _held(layer: SparseLinear, tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: functional_call(layer, tensors, (x,))


def _graph(layer: SparseLinear) -> Callable[[Tensor], Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    graph = make_fx(lambda held, x: functional_call(layer, held, (x,)))(tensors, X)
    return lambda x: graph(tensors, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("holder", HOLDERS)
def test_who_holds_the_tensors_of_a_layer_sees_a_rewire(holder: str) -> None:
    layer = two_weights()
    held = HOLDERS[holder](layer)
    assert held(X).item() == 201
    rewire(layer)
    assert held(X).item() == 21 == layer(X).item()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_follows_a_layer_that_grows() -> None:
    layer = two_weights()
    traced = torch.jit.trace(layer, X)
    rewire(layer, 3)
    assert traced(X).item() == 21


@pytest.mark.parametrize("change", ["rewire", "load"])
def test_values_from_before_a_rewire_are_refused(change: str) -> None:
    layer = two_weights()
    held = {name: p.detach() for name, p in layer.named_parameters()}
    if change == "rewire":
        rewire(layer)
    else:
        other = SparseLinear(4, 1, bias=False, nnz=3)
        rewire(other, 3)
        layer.load_state_dict(other.state_dict())
        rewire(layer)
    with pytest.raises(RuntimeError, match="pattern that a layer had before a rewire"):
        functional_call(layer, held, (X,))
    assert functional_call(layer, dict(layer.named_parameters()), (X,)).item() == 21


def test_all_tensors_from_before_a_rewire_still_make_the_old_layer() -> None:
    layer = two_weights()
    held = {name: t.detach().clone() for name, t in layer.state_dict(keep_vars=True).items()}
    rewire(layer)
    assert functional_call(layer, held, (X,)).item() == 201


@pytest.mark.parametrize("nnz", [2, 3])
@pytest.mark.parametrize("hook", ["none", "save_on_cpu", "copies"])
def test_a_backward_after_a_rewire_raises(hook: str, nnz: int) -> None:
    layer = two_weights()
    hooks = {
        "none": torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        "save_on_cpu": torch.autograd.graph.save_on_cpu(),
        "copies": torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    }
    with hooks[hook]:
        loss = layer(X.clone().requires_grad_()).sum()
    rewire(layer, nnz)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()
    assert layer.weight_values.grad is None


def shapes() -> dict[str, tuple[nn.Module, nn.Module]]:
    def conv(*args: int, **more: int) -> SparseConv2d:
        return SparseConv2d(*args, nnz=4, **more)

    return {
        "inputs": (conv(1, 2, 3), conv(3, 2, 3)),
        "kernel": (conv(1, 2, 3), conv(1, 2, 5)),
        "groups": (conv(4, 4, 3, groups=4), conv(4, 4, 3)),
        "kernel turned": (conv(2, 2, (1, 3)), conv(2, 2, (3, 1))),
        "linear": (SparseLinear(3, 2, nnz=4), SparseLinear(9, 2, nnz=4)),
    }


WAYS: dict[str, Callable[[dict], dict]] = {
    "state_dict": lambda state: state,
    "comprehension": lambda state: {key: value for key, value in state.items()},
    "dict": dict,
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", list(shapes()))
def test_a_checkpoint_of_another_shape_is_refused(case: str, way: str) -> None:
    saved, loaded = shapes()[case]
    before = copy.deepcopy(loaded.state_dict())
    state = WAYS[way](nn.Sequential(saved).state_dict())
    with pytest.raises(
        RuntimeError, match=r"0: expected a weight of shape .*, the checkpoint's is"
    ):
        nn.Sequential(loaded).load_state_dict(state)
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_a_checkpoint_of_another_shape_is_refused_from_safetensors(tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    saved, loaded = shapes()["kernel"]
    safetensors.save_file(saved.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(RuntimeError, match="expected a weight of shape"):
        loaded.load_state_dict(safetensors.load_file(tmp_path / "a.safetensors"))


def test_a_checkpoint_without_the_shape_still_loads() -> None:
    """As those made before `dense_shape` was a buffer."""
    saved, loaded = two_weights(), SparseLinear(4, 1, bias=False, nnz=3)
    state = saved.state_dict()
    del state["dense_shape"]
    loaded.load_state_dict(state)
    assert loaded(X).item() == 201


def test_a_layer_moved_from_meta_has_its_shape_again() -> None:
    layer = SparseLinear(4, 1, nnz=2, device="meta").to_empty(device="cpu")
    assert layer.dense_shape.tolist() == [1, 4]


def test_a_state_dict_of_before_a_rewire_can_be_assigned_back() -> None:
    layer, other = two_weights(), two_weights()
    state = layer.state_dict()
    rewire(layer)
    other.load_state_dict(state, assign=True)
    layer.load_state_dict(state, assign=True)
    assert layer(X).item() == other(X).item() == 201
    rewire(other)  # whose values lie where the layer's do
    assert layer(X).item() == 201 and other(X).item() == 21


def test_flat_parameters_survive_the_rewire_of_one_layer() -> None:
    model = nn.ModuleList([two_weights(), two_weights()])
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    held = {"weight_values": model[0].weight_values.detach()}
    rewire(model[0])
    with pytest.raises(RuntimeError, match="pattern that a layer had before a rewire"):
        functional_call(model[0], held, (X,))
    assert model[0](X).item() == 21 and model[1](X).item() == 201


def test_a_layer_in_shared_memory_keeps_its_pattern() -> None:
    layer = two_weights().share_memory()
    with pytest.raises(RuntimeError, match="its tensors are in shared memory"):
        rewire(layer)
    assert layer.weight_values.is_shared() and layer(X).item() == 201
