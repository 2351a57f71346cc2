"""Checkpoints: one safetensors file a round boundary and one inside the open round, written atomically, listed with digests, verified before they are used."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from heron_common.errors import CheckpointError, ConfigurationError
from heron_common.files.atomic import finite, write_atomically, write_json_atomically
from heron_common.files.plain_files import MOST_DOCUMENT_BYTES, plain_folder, plain_name, read_plain
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.process.process_memory import available_memory

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_OPEN_MANIFEST = "open.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state at a round boundary: tensors by name, and everything else as JSON values."""

    completed_rounds: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """Keeps the newest `keep` checkpoints of a run, and the first one too where an audit has to begin there."""

    def __init__(self, directory: Path, keep: int, *, keep_first: bool = False, infinite: frozenset[str] = frozenset()) -> None:
        """`infinite` names the tensors that may hold what is not finite: a model's own masks, which do from the start."""
        self._directory = directory
        self._infinite = infinite
        self._keep = keep
        self._keep_first = keep_first

    def path_of(self, completed_rounds: int) -> Path:
        """Return where the checkpoint after so many rounds is."""
        return self._directory / f"round-{completed_rounds:06d}.safetensors"

    def write(self, checkpoint: Checkpoint, best: int | None = None) -> Path:
        """Write a checkpoint, and keep the one after `best` rounds beside it; returns when it is durable and listed. The one before stands until then, and after a failure.

        Raises:
            CheckpointError: the disk refuses, or a number is not finite.

        """
        path = self.path_of(checkpoint.completed_rounds)
        self._refuse_infinite(checkpoint)
        data = _document(checkpoint)
        crash_point(CrashPoint.CHECKPOINT_BEGUN)
        try:
            write_atomically(path, data)
            crash_point(CrashPoint.CHECKPOINT_WRITTEN)
            kept = [e for e in self._entries() if e["completed_rounds"] != checkpoint.completed_rounds]
            kept.append(_entry(checkpoint, path, data))
            kept.sort(key=lambda entry: int(entry["completed_rounds"]))
            older = {best} | ({0} if self._keep_first else set())
            kept = [entry for entry in kept[: -self._keep] if entry["completed_rounds"] in older] + kept[-self._keep :]
            kept = [{**entry, "best": entry["completed_rounds"] == best} for entry in kept]
            write_json_atomically(self._directory / _MANIFEST, kept)
            crash_point(CrashPoint.CHECKPOINT_LISTED)
            self._remove_unlisted({entry["file"] for entry in kept})
            self.drop_open()
        except OSError as exc:
            raise CheckpointError(
                f"the checkpoint after {checkpoint.completed_rounds} rounds cannot be written to {self._directory} ({exc.strerror or exc}): "
                "free some space; the last good checkpoint stands"
            ) from exc
        return path

    def _refuse_infinite(self, checkpoint: Checkpoint) -> None:
        """Weights and moments are finite whatever clients send (`server_step.py`); a run goes back to nothing that is not."""
        for name, tensor in checkpoint.tensors.items():
            if name not in self._infinite and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"the checkpoint after {checkpoint.completed_rounds} rounds is not written, for its tensor {name!r} was expected to be finite and "
                    "is not: the last good checkpoint stands; stop the run and go on from that one with --resume and a lower learning rate"
                )

    def _remove_unlisted(self, listed: set[str]) -> None:
        """Remove what is listed no more, and what processes that were killed left half-written; raises OSError."""
        for pattern in ("round-*.safetensors", ".*.tmp"):
            for left in self._directory.glob(pattern):
                if left.name not in listed:
                    left.unlink(missing_ok=True)

    @property
    def is_empty(self) -> bool:
        """Whether no checkpoint was ever listed."""
        return not self._entries()

    def write_open(self, checkpoint: Checkpoint, positions: int) -> None:
        """Write a checkpoint inside the open round, in place of the one before; the next one at a boundary replaces it.

        Raises:
            CheckpointError: the disk refuses, or a number is not finite.

        """
        self._refuse_infinite(checkpoint)
        path = self._directory / f"open-{checkpoint.completed_rounds:06d}-{positions:09d}.safetensors"
        data = _document(checkpoint)
        try:
            write_atomically(path, data)
            write_json_atomically(self._directory / _OPEN_MANIFEST, [_entry(checkpoint, path, data)])
            for left in self._directory.glob("open-*.safetensors"):
                if left != path:
                    left.unlink()
        except OSError as exc:
            raise CheckpointError(
                f"the checkpoint inside round {checkpoint.completed_rounds + 1} cannot be written to {self._directory} ({exc.strerror or exc}): "
                "free some space; the last good checkpoint stands"
            ) from exc

    def read_open(self) -> Checkpoint | None:
        """Return the checkpoint inside a round; None if there is none, or with a warning if it is damaged."""
        found = [self._read(entry) for entry in self._entries(_OPEN_MANIFEST)]
        return found[0] if found else None

    def drop_open(self) -> None:
        """Forget the checkpoint inside a round; raises OSError."""
        (self._directory / _OPEN_MANIFEST).unlink(missing_ok=True)
        for left in self._directory.glob("open-*.safetensors"):
            left.unlink()

    def read_all(self) -> list[Checkpoint]:
        """Return every listed checkpoint that is undamaged, oldest first."""
        found = (self._read(entry) for entry in self._entries())
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def read_newest(self) -> Checkpoint:
        """Return the newest checkpoint that is undamaged; older ones are used with a warning.

        Raises:
            CheckpointError: there is none.

        """
        for entry in reversed(self._entries()):
            checkpoint = self._read(entry)
            if checkpoint is not None:
                return checkpoint
        raise CheckpointError(f"no usable checkpoint in {self._directory}: start a new run with another --run-dir")

    def has(self, completed_rounds: int) -> bool:
        """Whether the checkpoint after so many rounds is listed; raises CheckpointError if nobody can say."""
        return any(entry["completed_rounds"] == completed_rounds for entry in self._entries())

    def best(self) -> int:
        """Return after how many rounds the run was at its best, as its newest checkpoint knows it.

        Raises:
            CheckpointError: no list can be read.
            ConfigurationError: it knows of none.

        """
        for entry in self._entries():
            if entry["best"]:
                return int(entry["completed_rounds"])
        raise ConfigurationError(
            f"no best checkpoint is known in {self._directory}, for the run is too young or of an earlier version: leave --checkpoint out"
        )

    def read(self, completed_rounds: int | None = None) -> Checkpoint:
        """Return the checkpoint after so many rounds, or the newest; no other one is taken in its place.

        Raises:
            CheckpointError: it is damaged, or there is none.
            ConfigurationError: it is not kept; the message names those that are.

        """
        kept = {entry["completed_rounds"]: entry for entry in self._entries()}
        names = ", ".join(map(str, kept))
        if not kept:
            raise CheckpointError(
                f"a checkpoint was expected in {self._directory}, but there is none: give the --run-dir of a run that began"
            )
        if completed_rounds is not None and completed_rounds not in kept:
            raise ConfigurationError(
                f"no checkpoint after {completed_rounds} rounds is kept in {self._directory}: --round can be {names} "
                "(--keep-checkpoints says how many a run keeps)"
            )
        entry = kept[max(kept) if completed_rounds is None else completed_rounds]
        try:
            return self._load(entry)
        except (OSError, ValueError, SafetensorError) as exc:
            raise CheckpointError(
                f"checkpoint {entry['file']} in {self._directory} is damaged ({exc}): restore it from a backup, "
                f"or choose another with --round, one of {names}"
            ) from exc

    def _read(self, entry: dict[str, Any]) -> Checkpoint | None:
        try:
            return self._load(entry)
        except (OSError, ValueError, SafetensorError) as exc:
            log.warning(
                "a checkpoint is damaged, using the one before", extra={"path": str(self._directory / entry["file"]), "reason": str(exc)}
            )
            return None

    def _load(self, entry: dict[str, Any]) -> Checkpoint:
        name = plain_name(entry["file"])
        if f"-{entry['completed_rounds']:06d}" not in name:
            raise ValueError("the manifest says that it is of another round")
        # What does not fit this machine's memory was not written by it, or cannot be gone on with here.
        data = read_plain(plain_folder(self._directory) / name, available_memory() or 1 << 40)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError("its digest does not match the manifest")
        return Checkpoint(int(entry["completed_rounds"]), load(data), _state_of(data))

    def _entries(self, manifest: str = _MANIFEST) -> list[dict[str, Any]]:
        try:
            entries = json.loads(read_plain(plain_folder(self._directory) / manifest, MOST_DOCUMENT_BYTES))
            return [
                {
                    "completed_rounds": int(e["completed_rounds"]),
                    "file": str(e["file"]),
                    "sha256": str(e["sha256"]),
                    "best": e.get("best") is True,
                }
                for e in entries
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise CheckpointError(
                f"{self._directory / manifest} is damaged ({exc!r}): restore it from a backup or start a new run"
            ) from exc


def _document(checkpoint: Checkpoint) -> bytes:
    state = json.dumps(finite(checkpoint.state), sort_keys=True, allow_nan=False)
    data: bytes = save({name: t.contiguous() for name, t in checkpoint.tensors.items()}, {"state": state})
    return data


def _entry(checkpoint: Checkpoint, path: Path, data: bytes) -> dict[str, Any]:
    return {"completed_rounds": checkpoint.completed_rounds, "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def _state_of(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    try:
        state = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    except (KeyError, TypeError, RecursionError) as exc:
        raise ValueError(f"its header holds no state ({exc!r})") from exc
    if not isinstance(state, dict):
        raise ValueError("its state is no JSON object")
    return state
