"""Two "hosts" on one machine: network namespaces with a link between them that can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDRESSES = "10.213.0.1", "10.213.0.2"
INTERFACE = "dsr0"  # of both
PORT = 29517  # namespaces have all ports to themselves
PATIENCE = 120  # seconds; a loaded machine imports torch slowly


def ip(*arguments: str) -> None:
    """Raises OSError with what `ip` says where it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")


class TwoHosts:
    """Raises OSError where namespaces cannot be made."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("ip") is None:
            raise OSError("there is no command `ip` (iproute2)")
        self.folder = folder
        self.names = [f"dsr-{os.getpid()}-{host}" for host in range(2)]
        self.processes: list[subprocess.Popen] = []
        try:
            for name in self.names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            first, second = self.names
            peer = "peer", "name", INTERFACE, "netns", second
            ip("link", "add", INTERFACE, "netns", first, "type", "veth", *peer)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
                ip("-n", name, "link", "set", INTERFACE, "up")
        except OSError:
            self.end()
            raise

    def start(self, host: int, *command: str, **variables: str) -> subprocess.Popen:
        """Python with this command on a host; its output is in `output`."""
        own = {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": str(PORT),
            "RANK": str(host),
            "WORLD_SIZE": "2",
        }
        with self._output(host).open("w") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], sys.executable, *command],
                env={**os.environ, **own, **variables},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def output(self, host: int) -> str:
        return self._output(host).read_text()

    def _output(self, host: int) -> Path:
        return self.folder / f"host{host}.txt"

    def cut(self) -> None:
        """What is on its way is lost, and nobody is told."""
        ip("-n", self.names[0], "link", "set", INTERFACE, "down")

    def wait(self) -> list[int]:
        """The exit codes of all processes."""
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        codes = [process.returncode for process in self.processes]
        assert None not in codes, (codes, self.output(0), self.output(1))
        return codes

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + PATIENCE
        while not path.exists():
            assert all(process.poll() is None for process in self.processes), (
                self.output(0),
                self.output(1),
            )
            assert time.monotonic() < end, (path, self.output(0), self.output(1))
            time.sleep(0.02)

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # what it has started is of its session
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self.names:
            with contextlib.suppress(OSError):
                ip("netns", "del", name)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Skips the test, with the reason, where there are none."""
    try:
        made = TwoHosts(folder)
    except OSError as error:
        pytest.skip(f"no network namespaces: {error}")
    try:
        yield made
    finally:
        made.end()
