"""Which steps of optimizers run now: hooks tell of begins and ends, but not of steps that raise."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

# Modules between a step and what its hooks call here, also where the step is compiled.
BETWEEN = ("dsr_kernels.", "torch._dynamo", "torch._compile")
# What a frame is told by. The frame itself is not kept: it would keep its callers' locals alive.
Frame = tuple[int, CodeType]


class Step(NamedTuple):
    """One that has begun, and the frame that calls its hooks, gone once it has ended or raised."""

    optimizer: Any
    thread: int
    frame: Frame


class RunningSteps:
    """Steps within steps, the outer ones first. One optimizer may be there several times: torch
    calls hooks once for every class whose `step` runs, so twice under `super().step()`.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def begin(self, optimizer: Any) -> bool:
        """Called by a hook before a step. Returns whether it is within no other."""
        step = Step(optimizer, threading.get_ident(), _told(_caller()))
        # An earlier one's frame may have lain where this one's does.
        self._steps = [one for one in self._steps if one[1:] != step[1:]]
        self._forget_raised()
        self._steps.append(step)
        return len(self._steps) == 1

    def end(self, optimizer: Any) -> None:
        """Called by a hook after a step: the innermost one of this optimizer ends."""
        self._forget_raised()
        for place in reversed(range(len(self._steps))):
            if self._steps[place].optimizer is optimizer:
                del self._steps[place:]
                return

    def _forget_raised(self) -> None:
        """Forgets steps whose frames are gone. Whatever holds an exception keeps frames, too, so
        they are looked for among those that run.
        """
        threads = {step.thread for step in self._steps}
        running = {(thread, frame) for thread in threads for frame in _frames(thread)}
        self._steps = [step for step in self._steps if step[1:] in running]


def _told(frame: FrameType) -> Frame:
    return id(frame), frame.f_code


def _caller() -> FrameType:
    """The frame that called the hook."""
    frame = sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(BETWEEN):
        frame = frame.f_back
    return frame


def _frames(thread: int) -> Iterator[Frame]:
    """Of all that runs in a thread, the innermost one first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield _told(frame)
        frame = frame.f_back
