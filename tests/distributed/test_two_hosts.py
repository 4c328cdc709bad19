"""Two network namespaces train as one process does; a link that is cut ends both."""

from __future__ import annotations

import re

import torch
from helpers.parallel_training import assert_equal, train
from helpers.two_hosts import two_hosts

SECONDS = 5  # the process group's timeout
ITERATIONS = 30
TRAIN = """
import datetime, os, sys
import torch, torch.distributed as dist
from helpers.parallel_training import train
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
state = train("dsr", int(sys.argv[2]), dist.get_rank(), 2)
torch.save(state, f"{sys.argv[1]}/state{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""
# The second one waits within a step, so that the first is in the middle of an all-reduce.
CUT = """
import datetime, os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from helpers.parallel_training import step, trained
torch.set_num_threads(1)
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
rank = dist.get_rank()
dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds))  # not of the start
model, wrapped, optimizer, rewirer = trained(rank, 2, "dsr")
for number in range(1, 9):
    step(wrapped, optimizer, number, rank, 2)
    rewirer.step()
if rank:
    (folder / "within").touch()
    while not (folder / "cut").exists():
        time.sleep(0.01)
step(wrapped, optimizer, number, rank, 2)
"""


def test_two_hosts_train_as_one_process_does(tmp_path):
    with two_hosts(tmp_path) as hosts:
        for host in range(2):
            hosts.start(host, "-c", TRAIN, str(tmp_path), str(ITERATIONS))
        assert hosts.wait() == [0, 0], (hosts.output(0), hosts.output(1))
        states = [torch.load(tmp_path / f"state{rank}.pt") for rank in range(2)]
        assert_equal(*states, exactly=True)
        assert_equal(states[0], train("dsr", ITERATIONS))


def test_a_link_that_is_cut_within_an_all_reduce_ends_both(tmp_path):
    with two_hosts(tmp_path) as hosts:
        for host in range(2):
            hosts.start(host, "-c", CUT, str(tmp_path), str(SECONDS))
        hosts.wait_for(tmp_path / "within")
        hosts.cut()
        (tmp_path / "cut").touch()
        for host, code in enumerate(hosts.wait()):
            text = hosts.output(host)
            said = re.search(r"RuntimeError: .*[Tt]imed out waiting 5000ms", text)
            assert code == 1 and said, text
