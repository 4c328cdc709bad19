"""DistributedDataParallel whose module may be rewired."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import parallel

from dsr_kernels.distributed.refusals import (
    refuse_arguments,
    refuse_hook,
    refuse_join,
    refuse_optimizers_in_backward,
    refuse_python_reducer,
)
from dsr_kernels.distributed.start import share_patterns
from dsr_kernels.nn import SparseModule
from dsr_kernels.nn.accumulators import note_parallel

_SIGNATURE = inspect.signature(parallel.DistributedDataParallel)


class DistributedDataParallel(parallel.DistributedDataParallel):
    """torch.nn.parallel.DistributedDataParallel of a module with sparse layers that are rewired.

    It has the same name, arguments, methods and keys in `state_dict` ("module." before each). Torch
    averages the gradients. Where a parameter has got another length, by a rewire or a load, torch's
    reducer is made anew before the next forward pass that leads to an average. All else stays:
    hooks, communication hooks, what was set since, and which parameters it averages.

    What differs: where processes start with different patterns, that of the group's first process
    is taken, as its values are. Patterns are not sent again at each forward pass, as other buffers
    are: a rewire makes the same ones everywhere, and compares them (rewiring/agreement.py).

    Args:
        module: on the device of this process; models without sparse layers work, too.
        others: as torch's. `mixed_precision`, `delay_all_reduce_named_params` and `device_mesh`
            raise ValueError.

    Raises ValueError that names the layer, in all processes, where their models have different
    sparse layers, or a pattern that differs cannot be replaced.
    """

    follows_rewires = True  # see nn/accumulators.py
    _builtin_hook: Any = None

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        given = _SIGNATURE.bind(module, *args, **kwargs).arguments
        refuse_arguments(given)
        refuse_python_reducer()
        refuse_optimizers_in_backward(module)
        if given.get("init_sync", True):
            group = given.get("process_group") or torch.distributed.group.WORLD
            share_patterns(module, group)
        with _without_patterns(module):
            super().__init__(**given)

    def expect_renewed(self, parameter: nn.Parameter) -> None:
        """A parameter has another node of autograd, on which the reducer has no hook."""
        self._renewed.add(id(parameter))
        self._is_behind = True

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """As torch's. Raises NotImplementedError within `join`."""
        if self._join_config.enable:
            refuse_join()
        # Other passes leave the reducer alone, as torch's do: one process may evaluate by itself.
        if self._is_behind and torch.is_grad_enabled() and self.require_backward_grad_sync:
            _eagerly(self)
        return super().forward(*inputs, **kwargs)

    def register_comm_hook(self, state: object, hook: Any) -> None:
        """As torch's. Raises ValueError for PowerSGD's, which has a memory of buckets, whose sizes
        change, and for post-local SGD's, which lets the weights of processes differ.
        """
        refuse_hook(state)
        super().register_comm_hook(state, hook)

    def _register_builtin_comm_hook(self, comm_hook_type: Any) -> None:
        super()._register_builtin_comm_hook(comm_hook_type)
        self._builtin_hook = comm_hook_type

    def _register_fused_optim(self, optim: type, *args: Any, **kwargs: Any) -> None:
        refuse_optimizers_in_backward()

    def join(self, divide: bool = True, enable: bool = True, throw: bool = False) -> Any:
        """As torch's with enable=False, which does nothing. Raises NotImplementedError else."""
        if enable:
            refuse_join()
        return super().join(divide, enable, throw)

    # ---- torch's reducer ------------------------------------------------------------------------

    def _ddp_init_helper(self, parameters: list[nn.Parameter], *args: Any, **kwargs: Any) -> None:
        """Torch's, which makes the reducer: of what is built, copied, unpickled or has changed."""
        super()._ddp_init_helper(parameters, *args, **kwargs)
        for handle in self.__dict__.get("_own_hooks", {}).values():
            handle.remove()
        self._own_hooks: dict[int, Any] = {}  # by the parameter's place in the reducer
        self._reduced = parameters  # in the reducer's order
        self._shapes = [parameter.shape for parameter in parameters]
        self._renewed: set[int] = set()  # ids of parameters that have another node since
        self._is_behind = False
        self._static_graph_delay_allreduce_enqueued = False

    @torch.inference_mode(False)  # what it makes is trained with
    def _catch_up(self) -> None:
        """Lets the reducer average the parameters that have changed since it was made. Nothing is
        sent, so that processes need not do so at once.

        Lengths may be what they were: weights were loaded for an evaluation, then the first ones
        again, in one process perhaps. Then the reducer stays, for a new one would send other
        buckets than those of the others, and hooks are put on the new nodes. Where any pass may use
        other parameters, buckets depend on lengths alone, and hooks must be the reducer's own.
        """
        if not any(parameter.requires_grad for parameter in self._reduced):
            return  # a static graph would learn from this pass that nothing trains
        refuse_optimizers_in_backward(self.module)
        with _training(self._reduced, self._module_parameters):
            shapes = [parameter.shape for parameter in self._reduced]
            if shapes != self._shapes or (self.find_unused_parameters and not self.static_graph):
                self._make_reducer()
            else:
                self._hook_new_nodes()
        self._renewed.clear()
        self._is_behind = False

    def _make_reducer(self) -> None:
        """As torch does for a copy. Where it raises, the old one stays."""
        parameters, expect_sparse_gradient = self._build_params_for_reducer()
        names = self._build_debug_param_to_name_mapping(parameters)
        self._ddp_init_helper(parameters, expect_sparse_gradient, names, self.static_graph)
        self._has_rebuilt_buckets = False
        if self.static_graph:
            self.reducer._set_static_graph()
            self.logger._set_static_graph()  # type: ignore[union-attr]
        self._hand_over_hooks()

    def _hook_new_nodes(self) -> None:
        for place, parameter in enumerate(self._reduced):
            if id(parameter) in self._renewed and place not in self._own_hooks:
                hook = functools.partial(_ready, weakref.ref(self), place)
                self._own_hooks[place] = parameter.register_post_accumulate_grad_hook(hook)

    def _hand_over_hooks(self) -> None:
        """Gives a new reducer the communication hooks."""
        for hook, state in self._comm_hooks:
            self.logger._set_comm_hook_name(hook.__qualname__)  # type: ignore[union-attr]
            dist._register_comm_hook(self.reducer, state, hook)
        if self._builtin_hook is not None:
            super()._register_builtin_comm_hook(self._builtin_hook)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # refuses another group than the default one
        return {key: value for key, value in state.items() if key != "_own_hooks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with _training(state["_reduced"], state["_module_parameters"]):
            super().__setstate__(state)
        note_parallel(self)
        self._hand_over_hooks()


_eagerly = torch._disable_dynamo(DistributedDataParallel._catch_up)


def _ready(ddp: weakref.ref[DistributedDataParallel], place: int, parameter: nn.Parameter) -> None:
    """Tells the reducer of a gradient, as its own hook on the parameter's first node did."""
    if (living := ddp()) is not None:
        living.reducer._autograd_hook(place)  # type: ignore[attr-defined]


@contextmanager
def _training(trained: list[nn.Parameter], known: list[nn.Parameter]) -> Iterator[None]:
    """While torch looks for what trains, that is what trained when the model was wrapped. A part
    may be frozen for a moment, as a GAN's discriminator is.
    """
    own = {id(parameter) for parameter in trained}
    before = [(parameter, parameter.requires_grad) for parameter in known]
    try:
        for parameter in known:
            parameter.requires_grad_(id(parameter) in own)
        yield
    finally:
        for parameter, trains in before:
            parameter.requires_grad_(trains)


@contextmanager
def _without_patterns(module: nn.Module) -> Iterator[None]:
    """While torch's constructor looks, the buffers of patterns are among those that it leaves
    alone. Otherwise it would send them at each forward pass, and write to all of them.
    """
    key = "_ddp_params_and_buffers_to_ignore"
    before = getattr(module, key, None)
    patterns = {
        id(buffer)
        for layer in module.modules()
        if isinstance(layer, SparseModule)
        for buffer in (layer.crow_indices, layer.col_indices, layer.dense_shape)
    }
    buffers = module.named_buffers(remove_duplicate=False)  # layers may share them, and part
    names = [name for name, buffer in buffers if id(buffer) in patterns]
    setattr(module, key, [*(before or ()), *names])
    try:
        yield
    finally:
        if before is None:
            delattr(module, key)
        else:
            setattr(module, key, before)
