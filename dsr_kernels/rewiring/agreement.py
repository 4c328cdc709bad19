"""Before a rewire, processes that train one model together compare what decides it.

Each makes the same decisions by itself, so nothing of a rewire is sent but gradients. That is right
only where weights, positions, settings and the step are the same everywhere. One small all-gather
of hashes tells; the layer is looked for only where they differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.processes import Processes
from dsr_kernels.rewiring.schedule import Anneal, Schedule

CHUNK = 2**20  # numbers that are hashed at a time: 8 MiB for each intermediate result
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd, with bits as if drawn: those of splitmix64 and of the golden ratio.
PLACE, FIRST, SECOND = (
    n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
PARTS = ("positions", "values", "optimizer state")
NOT_ALL_CAME = (
    "rewirer.step(): the exchange with the other processes has failed. One may have ended; or it "
    "has not called rewirer.step() as often, for it has no rewirer, or had fewer batches. Give all "
    "processes the same steps"
)
CAUSES = (
    "Usual causes: own code that changed or loaded weights in one process only; a backward pass "
    "whose gradients were not averaged (a forward pass of ddp.module, or one within no_sync() "
    "before optimizer.step()); another learning rate; an optimizer built before the model was "
    "wrapped, with state of its own"
)


def digest(first: Tensor, *others: Tensor) -> Tensor:
    """[] int64: a hash of the tensors' bytes, each at its place, and of their lengths.

    It is the same on every device, for integers are added, in whatever order. -0.0 is another
    number than 0.0, and a NaN equals one with the same bits.
    """
    total = torch.zeros((), dtype=torch.int64, device=first.device)
    for tensor in (first, *others):
        words = tensor.detach().contiguous().flatten().view(WORDS[tensor.element_size()])
        total = _mixed(total + words.numel() + FIRST)
        for start in range(0, words.numel(), CHUNK):
            chunk = words[start : start + CHUNK].long()
            places = torch.arange(start, start + chunk.numel(), device=chunk.device)
            total = total + _mixed(_mixed(chunk) + places * PLACE).sum()
    return _mixed(total)


def _mixed(number: Tensor) -> Tensor:
    """One to one; each bit of the result depends on all (splitmix64's, with signed shifts)."""
    number = (number ^ (number >> 30)) * FIRST
    number = (number ^ (number >> 27)) * SECOND
    return number ^ (number >> 31)


def agree(
    processes: Processes,
    settings: dict[str, Any],
    layers: Sequence[SparseLayer],
    states: Sequence[Sequence[Tensor]],
    failure: Exception | None = None,
    held: Sequence[str] = (),
) -> dict[str, int]:
    """Raises RuntimeError, in all processes, unless all are about to rewire the same layers from
    the same weights in the same way, or where an exchange fails. Returns the layers whose length
    cannot change in some process, each with the rank.

    settings: of the method, and its step. states: of each layer what else decides, such as a
    momentum. failure: why this process cannot rewire; it is raised here, and told to the others.
    held: layers whose length cannot change in this process.
    """
    own = [
        digest(*tensors).to(processes.device)
        for layer, held in zip(layers, states, strict=True)
        for tensors in (layer.pattern, [layer.weight_values], [layer.module.dense_shape, *held])
    ]
    digests = torch.stack(own) if own else torch.zeros(0, dtype=torch.int64)
    names = [layer.name for layer in layers]
    known = torch.tensor([len(held), failure is not None, _number(settings), _number(names)])
    numbers = torch.stack([*known.to(digests.device), digest(digests)])
    try:
        seen = processes.gather(numbers)
    except RuntimeError as error:
        raise RuntimeError(f"{NOT_ALL_CAME}: {error}") from error
    counts, seen = seen[:, 0], seen[:, 1:]
    if bool((seen == seen[0]).all()) and not failure:
        return _by_rank(processes, held) if counts.any() else {}
    mine = (failure and str(failure), settings, names, digests.view(-1, len(PARTS)).tolist())
    everybody = processes.gather_objects(mine)
    if failure is not None:
        raise failure
    ranks = [processes.rank(index) for index in range(len(everybody))]
    for rank, (message, *_) in zip(ranks, everybody, strict=True):
        if message:
            raise RuntimeError(f"rewire: nothing was rewired, for rank {rank} cannot: {message}")
    _tell_settings(ranks, [settings for _, settings, _, _ in everybody])
    _tell_names(ranks, [names for _, _, names, _ in everybody])
    _tell_digests(ranks, names, [digests for *_, digests in everybody])
    raise RuntimeError(
        "rewire: processes differ in what decides a rewire, and not in what they say of it; "
        "nothing was rewired, please report this"
    )


def _by_rank(processes: Processes, names: Sequence[str]) -> dict[str, int]:
    """Of each name that a process gives the rank of the first one that does."""
    everybody = list(enumerate(processes.gather_objects(list(names))))
    return {name: processes.rank(index) for index, theirs in everybody[::-1] for name in theirs}


def settings_of(rewirer: object, layers: Sequence[SparseLayer]) -> dict[str, Any]:
    """All that is set of a method, by name, and how far the training is."""
    own = {
        name: value
        for name, value in vars(rewirer).items()
        if not name.startswith("_") and _is_plain(value)
    }
    blocks = {layer.name: (layer.block, layer.block_score) for layer in layers}
    return {"method": type(rewirer).__name__, **own, "blocks": blocks}


def _is_plain(value: Any) -> bool:
    """Whether it has the same repr in all processes where it is the same; tensors have none."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, Number | str | type(None) | Schedule | Anneal)


def _number(value: Any) -> int:
    """64 bits of a hash of what has the same repr everywhere."""
    found = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)


def _tell_settings(ranks: list[int], everybody: list[dict[str, Any]]) -> None:
    first = everybody[0]
    for rank, theirs in zip(ranks, everybody, strict=True):
        for key in [*first, *theirs]:
            if repr(first.get(key)) != repr(theirs.get(key)):  # as it was hashed
                raise RuntimeError(
                    f"rewire: expected the same {key} in all processes, got {first.get(key)} on "
                    f"rank {ranks[0]} and {theirs.get(key)} on rank {rank}; nothing was rewired. "
                    "Build the rewirer with the same arguments everywhere, call `step` equally "
                    "often, and resume all processes from one checkpoint"
                )


def _tell_names(ranks: list[int], everybody: list[list[str]]) -> None:
    first = everybody[0]
    for rank, theirs in zip(ranks, everybody, strict=True):
        if theirs != first:
            name = next((n for n in first if n not in theirs), None)
            on, off = (ranks[0], rank) if name else (rank, ranks[0])
            name = name or next((n for n in theirs if n not in first), first[0])
            raise RuntimeError(
                f"rewire: layer {name!r} trains on rank {on}, but not in the same place on rank "
                f"{off}; nothing was rewired. Freeze and thaw the same layers in all processes"
            )


def _tell_digests(ranks: list[int], names: list[str], everybody: list[list[list[int]]]) -> None:
    for place, name in enumerate(names):
        for rank, theirs in zip(ranks, everybody, strict=True):
            pairs = zip(PARTS, everybody[0][place], theirs[place], strict=True)
            differ = [part for part, one, other in pairs if one != other]
            if differ:
                raise RuntimeError(
                    f"rewire: layer {name!r}: rank {rank} has other {' and '.join(differ)} than "
                    f"rank {ranks[0]}; nothing was rewired. {CAUSES}"
                )
