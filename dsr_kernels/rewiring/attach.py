"""One line instead of `rewirer.step()` in the loop: the optimizer's own steps count."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch.optim import Optimizer

from dsr_kernels.rewiring.counted import find_counted
from dsr_kernels.rewiring.counted_steps import (
    STATE_KEY,
    is_rehearsal,
    warn_if_loaded,
    was_left_out,
)
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.optimizers import Optimizers
from dsr_kernels.rewiring.report import RewireReport
from dsr_kernels.rewiring.running import RunningSteps

OnRewire = Callable[[RewireReport], object]


class Attachable:
    """Base of Rewirer: steps by itself after every step of its optimizer, once it is attached."""

    _layers: list[SparseLayer]
    _optimizers: Optimizers
    _attachment: Attachment | None = None
    iteration: int

    def attach(
        self,
        *,
        on_rewire: OnRewire | None = None,
        after: Optimizer | None = None,
        state_in_optimizer: bool = True,
    ) -> Attachment:
        """Calls `step` after every step of the optimizer from now on, with the same bits as a loop
        that does so itself. `step` may not be called beside it.

        Only steps that were made count: neither the batches that gradients are accumulated over,
        nor steps that a GradScaler leaves out. A rewire that fails raises from `optimizer.step()`,
        whose own step was made then.

        Args:
            on_rewire: is called with the RewireReport of each rewire, after it.
            after: the optimizer whose steps count, the rewirer's own or one within. Needed where
                several hold sparse layers: the one that steps last in an iteration. Needed, too,
                for an optimizer around another whose steps call no hooks: then rewires follow the
                inner step, and come before what the outer one does afterwards.
            state_in_optimizer: whether `optimizer.state_dict()` holds the rewirer's state, under
                "dsr_kernels", and `optimizer.load_state_dict()` loads it from there. Load the model
                before, and the optimizer after `attach`: a warning says so where a rewirer at
                iteration 0 finds it loaded. False: save and load `rewirer.state_dict()` yourself.

        Returns the handle: `remove()` ends all this, as does leaving its `with` block. A copy of
        model, optimizer and rewirer is attached, too; one of the optimizer alone is not.

        Raises RuntimeError for a rewirer that is attached already. Raises ValueError where it is
        not clear which steps count, and where another rewirer's state is in the optimizer already.
        """
        if self._attachment is not None:
            raise RuntimeError(
                f"attach: this rewirer is attached to {self._attachment.kind} already; call "
                "`remove()` of the handle that the first `attach` returned"
            )
        counted, around = find_counted(self._optimizers, self._layers, after)
        if state_in_optimizer and not self.iteration:
            warn_if_loaded([counted, *around])
        self._attachment = Attachment(self, counted, around, on_rewire, state_in_optimizer)
        return self._attachment

    def step(self) -> RewireReport | None:
        raise NotImplementedError

    def take_report(self) -> RewireReport | None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _check_caller(self) -> None:
        """Raises RuntimeError where `step` is called beside the optimizer, which calls it too."""
        if self._attachment is not None and not self._attachment.is_stepping:
            raise RuntimeError(
                f"step: this rewirer is attached, and {self._attachment.kind}.step() calls it: an "
                "iteration would count twice; leave the call out, or `remove()` the handle that "
                "`attach` returned"
            )


class Attachment:
    """The handle of an attached rewirer, and the hooks of its optimizer.

    Optimizers around the counted one are watched, too: a rewire waits until the outermost step has
    ended.
    """

    def __init__(
        self,
        rewirer: Attachable,
        counted: Optimizer,
        around: list[Optimizer],
        on_rewire: OnRewire | None,
        state_in_optimizer: bool,
    ) -> None:
        self.rewirer, self.on_rewire = rewirer, on_rewire
        self.is_stepping = False
        self._counted, self._watched = counted, [counted, *around]
        self._state_in_optimizer = state_in_optimizer
        if state_in_optimizer:
            for one in self._watched:
                _refuse_a_second_state(one)
        self._start()

    def _start(self) -> None:
        self._running, self._is_by_hand = RunningSteps(), False
        self._counts: bool | None = None  # whether the running step is an iteration; not known yet
        self._stepped = False  # whether the counted one has made its step within the running one
        self._loading: dict[str, Any] | None = None
        self._hooks: list[Any] = []
        for one in self._watched:
            self._hooks += [
                one.register_step_pre_hook(self._before),
                one.register_step_post_hook(self._after),
            ]
            if self._state_in_optimizer:
                self._hooks += [
                    one.register_state_dict_post_hook(self._give_state),
                    one.register_load_state_dict_pre_hook(self._check_state),
                    one.register_load_state_dict_post_hook(self._load_state),
                ]

    @property
    def kind(self) -> str:
        """What a message calls the optimizer whose steps count."""
        return type(self._counted).__name__

    def remove(self) -> None:
        """Detaches the rewirer, which keeps its state. `on_rewire` gets what was not reported yet.
        Does nothing the second time.
        """
        if self.rewirer._attachment is not self:
            return
        for hook in self._hooks:
            hook.remove()
        self.rewirer._attachment = None
        self._tell(self.rewirer.take_report() if self.on_rewire else None)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    # ---- copies ---------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # The rewirer comes first: what its optimizers' hooks do is to be done before these.
        names = ("rewirer", "on_rewire", "_counted", "_watched", "_state_in_optimizer")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies of optimizers come without hooks."""
        self.__dict__.update(state)
        self.is_stepping = False
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """`on_rewire` is shared: what it writes to, such as a file, is no part of the training."""
        memo[id(self.on_rewire)] = self.on_rewire
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    # ---- steps ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def by_hand(self) -> Iterator[None]:
        """Steps within are not counted: whoever makes them calls `count` after each, as for the
        replay of a CUDA graph, which calls no hooks.
        """
        self._is_by_hand = True
        try:
            yield
        finally:
            self._is_by_hand = False

    def count(self) -> RewireReport | None:
        """Counts a step that was made within `by_hand`; returns what a rewire did."""
        return self._step_rewirer()

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._is_by_hand:
            return
        if torch.compiler.is_compiling():  # a trace would take what is so now for always
            _eagerly(Attachment._begin, self, optimizer)
        else:
            self._begin(optimizer)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._is_by_hand:
            return
        if torch.compiler.is_compiling():
            _eagerly(Attachment._end, self, optimizer)
        else:
            self._end(optimizer)

    def _begin(self, optimizer: Any) -> None:
        if self._running.begin(optimizer):
            self._stepped, self._counts = False, None
        if optimizer is self._counted and self._counts is None:
            self._counts = not is_rehearsal(optimizer)

    def _end(self, optimizer: Any) -> None:
        self._running.end(optimizer)
        if optimizer is self._counted and self._counts and not was_left_out(optimizer):
            self._stepped = True
        if self._stepped and not self._running:
            self._stepped = False
            self._step_rewirer()

    def _step_rewirer(self) -> RewireReport | None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"attach: {self.kind}.step() is being captured in a CUDA graph, whose replays "
                "would not call the rewirer; make steps by dsr_kernels.cuda.GraphedStep, which "
                "counts them, or `remove()` the handle that `attach` returned and call "
                "`rewirer.step()` after each replay"
            )
        self.is_stepping = True
        try:
            report = self.rewirer.step()
        finally:
            self.is_stepping = False
        self._tell(report)
        return report

    def _tell(self, report: RewireReport | None) -> None:
        if report is not None and self.on_rewire is not None:
            self.on_rewire(report)

    # ---- state ----------------------------------------------------------------------------------

    def _give_state(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {STATE_KEY: self.rewirer.state_dict()}

    def _check_state(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError, before anything is loaded, where the rewirer could not load its."""
        if not isinstance(found := state.get(STATE_KEY), dict):
            raise ValueError(
                f"{type(optimizer).__name__}.load_state_dict: expected the state of the attached "
                f"rewirer under {STATE_KEY!r}, got the keys {sorted(state)}; nothing was loaded. A "
                "state that was saved without `attach` has none: `remove()` the handle, load the "
                "optimizer and then `rewirer.load_state_dict(...)`, and attach again"
            )
        own = self.rewirer.state_dict()
        self.rewirer.load_state_dict(found)
        self.rewirer.load_state_dict(own)
        self._loading = found
        return {key: value for key, value in state.items() if key != STATE_KEY}

    def _load_state(self, optimizer: Any) -> None:
        if self._loading is not None:
            self.rewirer.load_state_dict(self._loading)
        self._loading = None


_eagerly = torch._disable_dynamo(lambda method, attachment, one: method(attachment, one))


def _refuse_a_second_state(optimizer: Any) -> None:
    hooks = optimizer._optimizer_state_dict_post_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), Attachment) for hook in hooks):
        raise ValueError(
            f"attach: the state of {type(optimizer).__name__} holds another rewirer's already; "
            "`remove()` that one's handle if this one replaces it, or use "
            "attach(state_in_optimizer=False) and save and load this rewirer's state_dict yourself"
        )
