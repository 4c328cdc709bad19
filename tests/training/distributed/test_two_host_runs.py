"""`dsr train` on two network namespaces whose link is cut: both end, and the run goes on."""

from __future__ import annotations

from helpers.process_faults import CHANGES, goes_on
from helpers.small_runs import arguments
from helpers.two_hosts import ADDRESSES, PORT, two_hosts

SECONDS = 6
TIMEOUT = f"distributed.timeout_seconds={SECONDS}"
SCRIPT = """
import faulthandler, os, sys, time
from pathlib import Path
from dsr_kernels import cli
from helpers.process_faults import AT, at_iteration
faulthandler.dump_traceback_later(90)
folder = Path(os.environ["DSR_TEST"])

def wait(trainer):
    (folder / "within").touch()
    while not (folder / "cut").exists():
        time.sleep(0.01)

if os.environ["RANK"] == "1":
    at_iteration(AT, wait)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_link_that_is_cut_ends_both_hosts_and_the_run_goes_on(tmp_path):
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    meet = "--master-addr", ADDRESSES[0], "--master-port", str(PORT)
    with two_hosts(tmp_path) as hosts:
        for host in range(2):
            torchrun = "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(host)
            own = str(script), *arguments(run, *CHANGES, TIMEOUT)
            hosts.start(host, *torchrun, *meet, *own, DSR_TEST=str(tmp_path))
        hosts.wait_for(tmp_path / "within")
        hosts.cut()
        (tmp_path / "cut").touch()
        assert hosts.wait() == [1, 1], (hosts.output(0), hosts.output(1))
        for host, lost in enumerate(("rank 1 on ", "another process of the run")):
            text = hosts.output(host)
            (sentence,) = (line for line in text.split("\n") if line.startswith("dsr: "))
            assert sentence.startswith(f"dsr: {lost}"), text
            assert f"has not answered for {SECONDS} seconds" in sentence, text
            assert "step-0000000006; go on with: torchrun --nnodes 2" in sentence, text
    goes_on(tmp_path, run)
