"""Checkpoints: a folder each, whole or absent, and verified before anything is loaded from it.

    checkpoints/step-0000001200/weights.safetensors   state_dict of the model: values and indices
                                state.pt              all else: class State
                                recipe.toml           a copy of the run's
                                manifest.json         format, step, size and SHA-256 of these
    checkpoints/latest -> step-0000001200             for people; loading takes the highest step

A folder is written under a hidden name and renamed once all of it is on the disk. So a kill at any
moment leaves the former checkpoints and at most a hidden leftover, which the next start removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from dsr_kernels.errors import UsageError, require
from dsr_kernels.training.run import stored_state
from dsr_kernels.training.run.files import Json, sync_folder, write_file

FORMAT, VERSION = "dsr_kernels checkpoint", 2
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
RECIPE = "recipe.toml"
# What reading a manifest raises that is none.
NO_MANIFEST = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
Weights = dict[str, torch.Tensor]  # of a model's state_dict


class State(TypedDict, total=False):
    """state.pt: all but the weights that a run needs to go on."""

    recipe: str  # TOML
    data: str  # fingerprint of the data set
    position: dict[str, Any]  # the fields of run.position.Position
    lengths: dict[str, int]  # bytes of each CSV file: what was written later is cut off
    sums: dict[str, torch.Tensor]  # of each CSV file, see csv_files.line_sums
    optimizer: dict[str, Any]  # its state_dict
    rewirer: dict[str, Any] | None  # its state_dict; None for a dense model
    scaler: dict[str, Any]  # state_dict of the loss scaler
    exploration: dict[str, torch.Tensor] | None  # the bitmaps of positions ever active
    ranks: list[dict[str, torch.Tensor]]  # of several processes, the next two of each by rank
    random: torch.Tensor  # state of torch's generator
    cuda_random: torch.Tensor  # of the GPU's, on a GPU


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        self.folder, self.keep = folder, keep

    def steps(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: path.name)

    def save(
        self,
        step: int,
        weights: Mapping[str, torch.Tensor],
        state: State,
        recipe: bytes | None = None,
    ) -> Path:
        """Writes checkpoint `step`, and returns once it would survive a power cut.

        `recipe` is the content of the run's recipe.toml. Where the system refuses to write, an
        OSError names the file, and the former checkpoints stay.
        """
        safetensors = require("safetensors.torch", "saving a checkpoint")
        self.folder.mkdir(exist_ok=True)
        self.clean()
        final = self._free_name(step)
        part = self.folder / f".part-{final.name}"
        # safetensors wants each tensor contiguous and with storage of its own.
        whole = {name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}
        pickled = io.BytesIO()  # torch and safetensors themselves do not say why a write failed
        torch.save(state, pickled)
        # One entry of metadata: the library writes several in an order that changes between runs.
        files = {
            WEIGHTS: safetensors.save(whole, metadata={"format": FORMAT}),
            STATE: pickled.getvalue(),
        }
        if recipe is not None:
            files[RECIPE] = recipe
        prints = {
            name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
            for name, raw in files.items()
        }
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": prints}
        files[MANIFEST] = json.dumps(manifest, indent=1).encode()
        try:
            part.mkdir()
            for name, raw in files.items():
                write_file(part / name, raw)
            sync_folder(part)
            os.rename(part, final)
        except OSError:  # such as a full disk, on which this part takes room
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._point_to(final)
        sync_folder(self.folder)
        for old in self.steps()[: -self.keep]:
            self._discard(old)
        return final

    def clean(self) -> None:
        """Removes what a kill during `save` has left."""
        for leftover in (*self.folder.glob(".part-*"), *self.folder.glob(".old-*")):
            _remove(leftover)

    def load_latest(self) -> tuple[Weights, State] | None:
        """(weights, state) of the newest checkpoint; None where there is none yet."""
        steps = self.steps()
        if not steps:
            return None
        try:
            return load(steps[-1])
        except UsageError as error:
            if steps[:-1]:
                hint = f"remove that folder to resume from {steps[-2].name} instead"
                raise UsageError(f"{error}; {hint}") from None
            raise

    def _free_name(self, step: int) -> Path:
        """A folder's name for `step` that is free and sorts behind those that are taken.

        A step may have a second checkpoint: one before the evaluation, one behind it.
        """
        names = [f"step-{step:010d}", *(f"step-{step:010d}.{again}" for again in range(1, 10))]
        return next(p for p in (self.folder / name for name in names) if not p.exists())

    def _discard(self, path: Path) -> None:
        # Renamed first: a half-removed folder must not look like a checkpoint.
        hidden = path.with_name(f".old-{path.name}")
        os.rename(path, hidden)
        _remove(hidden)

    def _point_to(self, final: Path) -> None:
        link = self.folder / ".part-latest"
        with contextlib.suppress(OSError):  # a file system without links: it is only a convenience
            link.symlink_to(final.name)
            os.replace(link, self.folder / "latest")


def load(path: Path) -> tuple[Weights, State]:
    """(weights, state) of one checkpoint.

    Raises UsageError for one that is truncated, altered, or not a checkpoint of this format.
    """
    safetensors = require("safetensors.torch", "loading a checkpoint")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest["files"]
        if manifest["format"] != FORMAT or not {WEIGHTS, STATE} <= set(expected):
            raise KeyError
        if not set(expected) <= {WEIGHTS, STATE, RECIPE}:
            raise KeyError
        sizes = {name: int(fingerprint["bytes"]) for name, fingerprint in expected.items()}
    except (OSError, *NO_MANIFEST):
        raise UsageError(f"{path}: not a checkpoint of dsr_kernels (no valid {MANIFEST})") from None
    if manifest.get("version") != VERSION:
        raise UsageError(
            f"{path}: expected checkpoint format {VERSION}, got {manifest.get('version')}: another "
            "version of dsr_kernels wrote it, which alone can continue the run"
        )
    for name, fingerprint in expected.items():
        if not (path / name).is_file():
            raise UsageError(f"{path}: damaged checkpoint: {name} is missing")
        found = _fingerprint(path / name)
        if found["bytes"] != sizes[name]:
            raise UsageError(
                f"{path}: truncated checkpoint: {name} has {found['bytes']} bytes, "
                f"expected {sizes[name]}"
            )
        if found != fingerprint:
            raise UsageError(f"{path}: damaged checkpoint: {name} does not match its SHA-256")
    try:  # whoever changed a file can sign it, too
        weights = safetensors.load_file(path / WEIGHTS)
        state = torch.load(path / STATE, weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise TypeError(f"{STATE} holds no dict")
        stored_state.check_types(state)
    except MemoryError:
        raise
    except stored_state.WrongState as error:
        raise UsageError(f"{path}: damaged checkpoint: {STATE}: {error}") from None
    except Exception as error:  # these can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch would have it loaded without care
            reason = "it holds more than tensors and numbers, or no such file"
        raise UsageError(f"{path}: damaged checkpoint: it cannot be loaded ({reason})") from None
    return weights, state


def recipe_copy(folder: Path) -> tuple[Path, bytes] | None:
    """The newest checkpoint's copy of the run's recipe.toml: (path, content).

    None where there is none, and where the copy is not what the manifest says.
    """
    for path in Checkpoints(folder).steps()[-1:]:
        with contextlib.suppress(OSError, *NO_MANIFEST):
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            raw = (path / RECIPE).read_bytes()
            if manifest["files"][RECIPE]["sha256"] == hashlib.sha256(raw).hexdigest():
                return path / RECIPE, raw
    return None


def _remove(path: Path) -> None:
    """A folder with all that is in it; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fingerprint(path: Path) -> Json:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
