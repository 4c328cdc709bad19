"""One process group of one process, for DistributedDataParallel."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def one_process():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
