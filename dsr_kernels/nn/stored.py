"""The sparse weight in a checkpoint: which keys hold it, and what is checked before it is loaded.

A checkpoint holds `<fqn>.weight_values`, `<fqn>.crow_indices`, `<fqn>.col_indices` and
`<fqn>.bias`, and the dense weight's shape in `<fqn>.dense_shape`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.held import exchange
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.backends.retired import retire
from dsr_kernels.nn import pretrained, sharing
from dsr_kernels.nn.accumulators import give_data, refuse_held
from dsr_kernels.nn.changing import changing
from dsr_kernels.nn.leaf import mode_of, why_fixed
from dsr_kernels.nn.pattern_owner import PatternOwner
from dsr_kernels.nn.step_check import loaded, resized
from dsr_kernels.nn.stored_weight import PARTS, RENAMED, check_stored_pattern, read_weight


class StoredWeight(PatternOwner):
    """A layer whose sparse weight goes into checkpoints, and comes from them at any size."""

    weight_values: nn.Parameter
    bias: nn.Parameter | None

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.know_name(prefix[:-1])
        with exchange:
            self._verify()
            super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["weight_shape"] = list(self.weight_shape)
        pretrained.mark(destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As nn.Module, but the module first takes on the checkpoint's number of non-zeros.

        The checkpoint has `weight_values`, `crow_indices` and `col_indices`, or a dense `weight`,
        of which the non-zeros are taken. Anything else is an error and changes nothing.
        """
        self.know_name(prefix[:-1])
        lists = strict, missing_keys, unexpected_keys, error_msgs
        with contextlib.ExitStack() as until_loaded:
            try:
                until_loaded.enter_context(changing([self]))
                alike, source, before = self._alike(), _source(state_dict, prefix), self._owned
                state_dict = self._fit_to(state_dict, prefix, local_metadata)
                until_loaded.enter_context(exchange)
                assign = local_metadata.get("assign_to_params_buffers", False)
                self._make_room(state_dict, prefix, assign)
            except (ValueError, RuntimeError) as error:
                message = f"{prefix[:-1] or type(self).__name__}: {error}"
                if str(error) == RENAMED:  # true of every layer
                    message = RENAMED
                if message not in error_msgs:
                    error_msgs.append(message)
                return
            self._unshare()
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *lists)
            if self._pattern_pending:
                return
            self._unshare()  # where tensors were assigned
            self._own()
            sharing.values_were_exchanged(self)
        loaded(self, before)
        self._leave_behind(None)
        self._tell_copies(alike)
        self._join(source)

    def _fit_to(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Checks this layer's part of a checkpoint; returns what torch is to copy of it.

        Raises ValueError for what cannot be this layer's weight.
        """
        if "weight_values" not in self._parameters:
            blocks = self.col_indices.numel()
            check_stored_pattern(self.weight_shape, self.block_size, blocks, state_dict, prefix)
            return {**state_dict, f"{prefix}dense_shape": torch.tensor(self.weight_shape)}
        weight = read_weight(self.weight_shape, self.block_size, state_dict, prefix, metadata)
        if weight is None:
            return state_dict
        bias = state_dict.get(f"{prefix}bias")
        if self.bias is not None and bias is not None and bias.shape != self.bias.shape:
            raise ValueError(
                f"bias: expected shape {tuple(self.bias.shape)}, got {tuple(bias.shape)}"
            )
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        own.pop(f"{prefix}weight", None)
        own[f"{prefix}dense_shape"] = torch.tensor(self.weight_shape)
        return own | {prefix + part: tensor for part, tensor in weight.items()}

    def _make_room(self, fitted: Mapping[str, Any], prefix: str, assign: bool) -> None:
        """Before what `_fit_to` has returned is copied or assigned: to other memory, where the
        pattern differs, for passes in other threads go on with what is there now.

        Raises RuntimeError, before anything changed, where that cannot be.
        """
        values, crow, col = (fitted.get(prefix + part) for part in PARTS)
        if "weight_values" not in self._parameters:
            self._pattern_pending &= col is None
            return
        if values is None or crow is None or col is None:
            return
        refuse_held(self.weight_values, len(values), self.label())
        reason = why_fixed(self.weight_values)
        if reason and len(values) != self.col_indices.numel():
            raise RuntimeError(reason)
        if assign and values.shape != self.weight_values.shape:
            self._stand_in(len(values))
        elif not (assign or reason or self._has_indices(crow, col)):
            self._resize(len(values))
        self._pattern_pending = False
        self.times_given += 1

    @torch.no_grad()
    def expect(self, blocks: int) -> None:
        """Leaves `blocks` blocks to be loaded, tensor by tensor: values are NaN until then, and
        there is no pattern.
        """
        if blocks != self.col_indices.numel():
            self._resize(blocks)
        self._vacate()
        self.weight_values.fill_(torch.nan)
        self.times_given += 1

    @torch.no_grad()
    def _resize(self, blocks: int) -> None:
        """Makes room for another number of non-zeros, about to be copied in."""
        with mode_of(self.weight_values), exchange:
            self._exchange_values(self.weight_values.new_empty(blocks, self.block_size))
            crow = self.crow_indices.detach().clone()
            self._exchange_pattern(crow, self.col_indices.new_empty(blocks))

    def _stand_in(self, blocks: int) -> None:
        """As `_resize`, where others are about to take the place of these tensors."""
        values = self.weight_values
        resized()
        data = values.new_empty(blocks, self.block_size, requires_grad=False)
        self._parameters["weight_values"] = nn.Parameter(data, values.requires_grad)
        self._buffers["col_indices"] = self.col_indices.new_empty(blocks)

    def _exchange_values(self, values: Tensor) -> None:
        """Gives the parameter other data, of another pattern. The caller has `exchange`."""
        parameter = self.weight_values
        before = parameter.detach()
        if values.shape != parameter.shape:
            resized()
        give_data(parameter, values)
        # Graphs recorded so far saved it: a newer version makes their backward refuse. Last, for
        # another thread may record one meanwhile, with the former size.
        if not parameter.is_inference():
            torch.autograd.graph.increment_version([parameter])
        retire(before)


def _source(state_dict: Mapping[str, Any], prefix: str) -> object:
    """The layer whose tensors these are: a state_dict shares the memory of the model."""
    crow, col = (state_dict.get(prefix + part) for part in PARTS[1:])
    held = all(type(t) is Tensor and not t.is_meta for t in (crow, col))
    return patterns.owner_of(crow, col) if held else None  # type: ignore[arg-type]
