"""The lock of a run is its process's alone: workers that outlive a killed one do not hold it on."""

from __future__ import annotations

import os
from pathlib import Path

from dsr_kernels.training.run import out_folder


def test_a_child_that_lives_on_does_not_hold_the_lock(tmp_path: Path) -> None:
    held = out_folder.lock(tmp_path)
    assert held is not None
    reading, writing = os.pipe()
    begun, began = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.write(began, b"!")
        os.read(reading, 1)  # until the parent closes it
        os._exit(0)
    try:
        os.read(begun, 1)
        assert out_folder.is_locked(tmp_path)  # the child has left it to the parent
        held.close()  # as if it were killed
        again = out_folder.lock(tmp_path)
        assert again is not None
        again.close()
    finally:
        for end in (writing, reading, begun, began):
            os.close(end)
        os.waitpid(child, 0)
