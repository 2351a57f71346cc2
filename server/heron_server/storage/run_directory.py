"""What a run keeps on disk besides checkpoints and ledger: its identity and configuration, its summary, its address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from heron_common.errors import ConfigurationError, StorageError
from heron_common.files.atomic import write_json_atomically
from heron_common.files.directory_lock import DirectoryLock
from heron_common.files.plain_files import MOST_DOCUMENT_BYTES, read_plain
from heron_common.ids import new_token
from heron_server.storage.probe_file import write_probe_file

_IDENTITY = "run.json"


@dataclass(frozen=True)
class RunIdentity:
    """A run's id, its session-independent configuration, and what its model is known by where it is a user's own.

    Attributes:
        model_code: digest of the model's code, empty where the model is not a user's own.
        behaviour: what the model made of a few samples when the run began, by name; empty where nobody wrote that down.
        columns: names of the columns that a sample's numbers come from, where they have names.
        probes: the samples that it was tried on, where they are the operator's own; they are written beside the record, not into it.

    """

    run_id: str
    configuration: dict[str, Any]
    _: KW_ONLY
    model_code: str = ""
    behaviour: Mapping[str, list[float]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    probes: npt.NDArray[Any] | None = field(default=None, compare=False)

    def code_difference(self, differs: bool) -> str:
        """Return a sentence that says that the model computes something else than when the run began, empty if it does not."""
        if not differs:
            return ""
        return (
            f"the code of model {self.configuration.get('model')!r} does not compute what it did when run {self.run_id} began: "
            "bring back the code of then, unless the change was meant"
        )


class RunDirectory:
    """One run, one process at a time."""

    def __init__(self, path: Path) -> None:
        """Create or open the directory and lock it.

        Raises:
            ConfigurationError: another server uses it.
            StorageError: it cannot be written, or a folder in it is a link.

        """
        self.path = path
        self._lock = DirectoryLock(path, "heron-server", "stop it or choose another --run-dir")
        for folder in (self.checkpoints, self.spool, self.blobs, self.audit):
            if folder.is_symlink():
                self.close()
                # A run deletes what it needs no more, and a directory that came from elsewhere would say where.
                raise StorageError(f"{folder} is a link, but a run keeps its files in folders of its own: put the folder in its place")

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def spool(self) -> Path:
        """Where uploads wait."""
        return self.path / "spool"

    @property
    def ledger(self) -> Path:
        """Where uploads, updates and decisions are recorded."""
        return self.path / "ledger.sqlite"

    @property
    def blobs(self) -> Path:
        """Where frozen weights are, if the model has any."""
        return self.path / "blobs"

    @property
    def audit(self) -> Path:
        """Where the audit trail is, if clients submit logs."""
        return self.path / "audit"

    def close(self) -> None:
        """Release the lock; safe to repeat."""
        self._lock.close()

    def identify(self, configuration: dict[str, Any], resume: bool, may_change: frozenset[str]) -> RunIdentity:
        """Return the identity of a new run, or of the one that is here; writes nothing, so that a failed start leaves no trace.

        Args:
            configuration: options by name, as JSON values.
            resume: whether continuing is what was asked for.
            may_change: options that may differ from the first start.

        Raises:
            ConfigurationError: there is a run and `resume` was not given, there is none and it was, or an option changed; names every such option.

        """
        known = self._read(_IDENTITY)
        if known is None:
            if resume:
                raise ConfigurationError(f"--resume: there is no run in {self.path}: give the --run-dir of the run, or leave --resume out")
            return RunIdentity(new_token(), configuration)
        if not resume:
            raise ConfigurationError(f"{self.path} holds a run already: give --resume to continue it, or another --run-dir")
        then = known.get("configuration")
        if not isinstance(then, dict) or "run_id" not in known:
            raise StorageError(f"{self.path / 'run.json'} is damaged: restore it from a backup or start a new run")
        changed = [name for name in sorted({*then, *configuration} - may_change) if then.get(name) != configuration.get(name)]
        if changed:
            details = "; ".join(f"{_written(name)} was {then.get(name)!r} and is now {configuration.get(name)!r}" for name in changed)
            raise ConfigurationError(f"--resume continues a run as it was started, but {details}: give the old value or start a new run")
        return _identity(self.path, known, configuration)

    def record(self, identity: RunIdentity) -> None:
        """Write down the run once it has really started; from then on it is continued with --resume only."""
        if identity.probes is not None:
            try:
                write_probe_file(self.path, identity.probes)
            except OSError as exc:
                raise StorageError(
                    f"cannot write the samples of the model to {self.path} ({exc.strerror or exc}): free some space"
                ) from exc
        code = {"model_code": identity.model_code, "behaviour": dict(identity.behaviour)} if identity.model_code else {}
        columns = {"columns": list(identity.columns)} if identity.columns else {}
        self._write(_IDENTITY, {"run_id": identity.run_id, "configuration": identity.configuration, **code, **columns})

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace `summary.json`."""
        self._write("summary.json", summary)

    def write_address(self, address: dict[str, Any]) -> None:
        """Replace `server.json`: where this process listens."""
        self._write("server.json", address)

    def _read(self, name: str) -> dict[str, Any] | None:
        return _document(self.path / name)

    def _write(self, name: str, value: dict[str, Any]) -> None:
        try:
            write_json_atomically(self.path / name, value)
        except OSError as exc:
            raise StorageError(f"cannot write {self.path / name} ({exc.strerror or exc}): free some space") from exc


def has_begun(run_dir: Path) -> bool:
    """Return whether a run has really started here, so that only --resume goes on with it."""
    return (run_dir / _IDENTITY).exists()


def recorded_identity(run_dir: Path) -> RunIdentity:
    """Return what a run wrote down of itself; takes no lock, for a process that only looks, also at a run that is going on.

    Raises:
        ConfigurationError: there is no run.
        StorageError: its record is damaged.

    """
    known = _document(run_dir / _IDENTITY)
    if known is None:
        raise ConfigurationError(f"{run_dir} holds no run: give the --run-dir of heron-server or heron simulate")
    if not isinstance(known.get("configuration"), dict) or "run_id" not in known:
        raise StorageError(f"{run_dir / 'run.json'} is damaged: restore it from a backup")
    return _identity(run_dir, known, known["configuration"])


def _written(name: str) -> str:
    """Return how an operator writes an option, or the table of a preset of their own."""
    return f"[{name}]" if "." in name else f"--{name.replace('_', '-')}"


def _identity(run_dir: Path, known: dict[str, Any], configuration: dict[str, Any]) -> RunIdentity:
    behaviour = known.get("behaviour", {})
    numbers = isinstance(behaviour, dict) and all(
        isinstance(values, list) and all(isinstance(value, int | float) for value in values) for values in behaviour.values()
    )
    if not numbers:
        raise StorageError(f"{run_dir / 'run.json'} is damaged: restore it from a backup")
    columns = known.get("columns")
    names = tuple(map(str, columns)) if isinstance(columns, list) else ()
    return RunIdentity(str(known["run_id"]), configuration, model_code=str(known.get("model_code", "")), behaviour=behaviour, columns=names)


def _document(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = dict(json.loads(read_plain(path, MOST_DOCUMENT_BYTES)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as exc:
        raise StorageError(f"{path} is damaged ({exc}): restore it from a backup or start a new run") from exc
    return value
