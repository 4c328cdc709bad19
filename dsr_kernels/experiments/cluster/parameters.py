"""`--slurm key=value`: what a job asks the cluster for."""

from __future__ import annotations

import re
from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import UsageError, shown
from dsr_kernels.training.recipe.load import tomllib

OURS = {  # parameters of submitit that a grid gives itself
    "array_parallelism": "--jobs gives it",
    "dependency": "the grid gives it",
    "nodes": "a cell is one process on one node",
    "ntasks_per_node": "a cell is one process on one node",
}
LISTS = ("setup", "teardown", "srun_args")
SIGNAL_DELAY_S = 90  # submitit's; saving a checkpoint has to fit in
LOCAL = ("time", "gpus_per_node", "signal_delay_s")  # what means something without a cluster


def parse(texts: list[str]) -> dict[str, Any]:
    """The values by name. Numbers, true, false, lists and tables are read as TOML.

    Raises UsageError for a text that is no key=value, a key that comes twice, one that is not the
    user's to give, or a time that is no number of minutes or leaves none for training.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, raw = (part.strip() for part in text.partition("="))
        if not (key and equals and raw):
            raise UsageError(f"--slurm: expected key=value, got {shown(text)}")
        key = key.replace("-", "_")
        if key in found:
            raise UsageError(f"--slurm {key}: expected once, got {shown(found[key])} and {raw}")
        if key in OURS:
            raise UsageError(f"--slurm {key}: cannot be given: {OURS[key]}")
        found[key] = _value(raw)
    minutes = found.get("time", 1)
    if type(minutes) is not int or minutes < 1:
        raise UsageError(
            f"--slurm time: expected the minutes of a cell, as in time=240, got {shown(minutes)}"
        )
    _check_delay(found)
    for key in LISTS:
        lines = [found[key]] if isinstance(found.get(key), str) else found.get(key, [])
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise UsageError(f"--slurm {key}: expected lines of text, got {shown(lines)}")
        if lines:
            found[key] = lines
    extra = found.get("additional_parameters", {})
    if not isinstance(extra, dict):
        raise UsageError(
            "--slurm additional_parameters: expected options of sbatch, as in "
            f'{{reservation = "x"}}, got {shown(extra)}'
        )
    return found


def _check_delay(found: dict[str, Any]) -> None:
    """A signal that is due before a job begins would have it do nothing but save and queue."""
    delay, minutes = found.setdefault("signal_delay_s", SIGNAL_DELAY_S), found.get("time")
    if type(delay) is not int or delay < 1:
        raise UsageError(
            f"--slurm signal_delay_s: expected a number of seconds, got {shown(delay)}"
        )
    if minutes is not None and delay >= 60 * minutes:
        raise UsageError(
            f"--slurm time: expected more than the {delay} s before its end that a cell has to "
            f"save a checkpoint (signal_delay_s), got time={minutes}, which is {60 * minutes} s"
        )


def check_local(parameters: dict[str, Any]) -> None:
    """Raises UsageError for a parameter that this machine alone could only ignore."""
    for key in parameters:
        if key not in LOCAL:
            raise UsageError(
                f"--slurm {key}: --launcher local takes only {', '.join(LOCAL[:-1])} and "
                f"{LOCAL[-1]}; leave it out, or use --launcher slurm"
            )
    gpus = parameters.get("gpus_per_node", 0)
    if type(gpus) is not int or gpus < 0:
        raise UsageError(f"--slurm gpus_per_node: expected a number of GPUs, got {shown(gpus)}")


def refused(parameters: dict[str, Any], error: Exception) -> UsageError:
    """What submitit has against the parameters, in our words where it is an unknown name."""
    known = re.findall(r"- (\w+) \(default: ", str(error))  # it lists all names, one a line
    for key in parameters:
        if known and key not in known:
            return UsageError(f"--slurm: unknown parameter {unknown(key, known)}")
    return UsageError(f"--slurm: {error}")


def _value(raw: str) -> Any:
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):  # a bare word
        return raw
    return value if isinstance(value, (bool, int, str, list, dict)) else raw
