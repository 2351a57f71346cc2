"""What a client keeps on disk: its identity, the run it knows, programs by digest. One process at a time."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Protocol

from heron_common.errors import ConfigurationError, HeronError, ProgramError, StorageError
from heron_common.files.atomic import write_atomically
from heron_common.files.directory_lock import DirectoryLock
from heron_common.ids import new_token
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.specification.model_spec import BlobReference

KEPT_PROGRAM_BYTES = 256 << 20
"""Of programs and tokenizers: those of a dozen runs or more. Frozen weights are kept until they are deleted by hand."""


class ClientState(Protocol):
    """What a session keeps between runs, wherever it is kept."""

    @property
    def identity_key(self) -> str:
        """The random key that tells this client from another with its name."""
        ...

    def remember_run(self, run_id: str) -> None:
        """Keep the id of the run that was joined."""
        ...

    def cached_program(self, blob: BlobReference) -> bytes | None:
        """Return a program if it was fetched before and is undamaged."""
        ...

    def keep_program(self, blob: BlobReference, data: bytes) -> None:
        """Keep a program for next time."""
        ...

    def large_blob_path(self, blob: BlobReference) -> Path:
        """Return where a blob that is too large for memory is kept, or will be; its name is its digest."""
        ...


class StateDirectory:
    """Opened for the life of the process; a second process on the same directory is refused."""

    def __init__(self, path: Path, client_name: str) -> None:
        """Create or open the directory and lock it.

        Raises:
            ConfigurationError: another client uses it, or it belongs to a client of another name.
            StorageError: it cannot be written.

        """
        self._path = path
        self._lock = DirectoryLock(path, "heron-client", "give this one another --name or --state-dir")
        try:
            for folder in ("programs", "blobs"):
                (path / folder).mkdir(exist_ok=True)
            self._known = self._identify(client_name)
            self._write()
        except (OSError, HeronError) as exc:
            self._lock.close()
            if isinstance(exc, HeronError):
                raise
            raise StorageError(f"cannot write the state directory {path} ({exc.strerror or exc}): choose another --state-dir") from exc

    @property
    def identity_key(self) -> str:
        """The random key that tells this client from another with its name."""
        return self._known["identity_key"]

    def _identify(self, client_name: str) -> dict[str, str]:
        known = self._read()
        if known.get("name", client_name) != client_name:
            raise ConfigurationError(
                f"{self._path} belongs to client {known['name']!r}, not {client_name!r}: give another --state-dir or the same --name"
            )
        return {"name": client_name, "identity_key": known.get("identity_key") or new_token(), "run_id": known.get("run_id", "")}

    def remember_run(self, run_id: str) -> None:
        """Keep the id of the run that was joined."""
        if self._known["run_id"] != run_id:
            self._known["run_id"] = run_id
            self._write()

    def cached_program(self, blob: BlobReference) -> bytes | None:
        """Return a program if it was fetched before and is undamaged."""
        try:
            data = self._program_path(blob).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == blob.sha256 else None

    def keep_program(self, blob: BlobReference, data: bytes) -> None:
        """Keep a program for next time; the oldest ones make room, so that no server fills this disk with one after the other."""
        self._replace(self._program_path(blob), data)
        _forget_oldest(self._path / "programs", KEPT_PROGRAM_BYTES)

    def large_blob_path(self, blob: BlobReference) -> Path:
        """Return where a blob that is too large for memory is kept, or will be; its name is its digest."""
        return self._path / "blobs" / _file_name(blob)

    def close(self) -> None:
        """Release the lock; safe to repeat."""
        self._lock.close()

    def _program_path(self, blob: BlobReference) -> Path:
        return self._path / "programs" / f"{_file_name(blob)}.onnx"

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads((self._path / "client.json").read_text(encoding="utf-8"))
            return {str(k): str(v) for k, v in known.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, RecursionError) as exc:
            raise StorageError(f"{self._path / 'client.json'} is damaged ({exc}): delete it to start with a new identity") from exc

    def _write(self) -> None:
        self._replace(self._path / "client.json", (json.dumps(self._known, indent=2) + "\n").encode())

    def _replace(self, path: Path, data: bytes) -> None:
        try:
            write_atomically(path, data)
            crash_point(CrashPoint.CLIENT_STATE_WRITTEN)
        except OSError as exc:
            raise StorageError(f"cannot write {path} ({exc.strerror or exc}): free some space or choose another --state-dir") from exc


def _file_name(blob: BlobReference) -> str:
    # The name is computed, never taken from the wire: a digest with a slash in it must not name a path.
    if re.fullmatch(r"[0-9a-f]{64}", blob.sha256) is None:
        raise ProgramError(f"a digest is 64 hexadecimal digits, not {blob.sha256[:80]!r}: what it names is refused")
    return blob.sha256


def _forget_oldest(folder: Path, budget_bytes: int) -> None:
    """Delete the files that were written first until the rest fit; the newest stays whatever its size."""
    kept = 0
    try:
        files = [(path, path.stat()) for path in folder.iterdir()]
    except OSError:
        # Deleted by hand at this moment: there is room.
        return
    for place, (path, state) in enumerate(sorted(files, key=lambda entry: entry[1].st_mtime_ns, reverse=True)):
        kept += state.st_size
        if place and kept > budget_bytes:
            path.unlink(missing_ok=True)


def has_digest(path: Path, blob: BlobReference) -> bool:
    """Whether a file holds the blob; a piece of it is in memory at a time."""
    with path.open("rb") as file:
        return path.stat().st_size == blob.size_bytes and hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
