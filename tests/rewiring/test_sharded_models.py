"""FSDP keeps a model's values in parts of its own: a rewire is refused, by the layer's name."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dsr_kernels import SparseLinear
from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.rewiring import SET


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fsdp1(model: nn.Module, use_orig_params: bool) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=use_orig_params)


def fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


SHARDED = {
    "FSDP1": lambda model: fsdp1(model, False),
    "FSDP1 with the original parameters": lambda model: fsdp1(model, True),
    "FSDP2": fsdp2,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SHARDED)
def test_a_rewirer_of_a_sharded_model_is_refused(group, kind):
    sharded = SHARDED[kind](nn.Sequential(SparseLinear(8, 6, nnz=12), SparseLinear(6, 4, nnz=9)))
    sharded(torch.randn(3, 8)).sum().backward()
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"layer '0': \w+ keeps its values in parts"):
        SET(sharded, optimizer)


@pytest.mark.filterwarnings("ignore")
def test_the_original_parameters_of_a_sharded_model_are_not_replaced(group):
    """Seen from inside, where nothing of the wrapper is in sight."""
    sharded = fsdp1(nn.Sequential(SparseLinear(8, 6, nnz=12)), True)
    (_, layer), *_ = named_sparse_modules(sharded)
    other = SparseLinear(8, 6, nnz=12)
    with pytest.raises(RuntimeError, match="a view of a parameter of FullyShardedDataParallel"):
        layer.replace_topology(other.crow_indices, other.col_indices, other.weight_values)
    with pytest.raises(ValueError, match=r"layer '0': .* FullyShardedDataParallel"):
        SET(nn.Sequential(layer), torch.optim.SGD(layer.parameters(), lr=0.1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SHARDED)
def test_a_model_that_is_sharded_after_the_rewirer_was_made(group, kind):
    """At the first step, not at the rewire: there may be hours between."""
    model = nn.Sequential(SparseLinear(8, 6, nnz=12), SparseLinear(6, 4, nnz=9))
    rewirer = SET(model, torch.optim.SGD(model.parameters(), lr=0.1))
    SHARDED[kind](model)
    with pytest.raises(ValueError, match=r"layer '0': its values are .*of which a rewire would"):
        rewirer.step()
    assert rewirer.iteration == 0
