"""The ledger: every upload, update and decision of a run in SQLite, written in order and durable before anything leaves the server that depends on it.

Writing an entry only appends it to a queue and takes no lock: the round's owner does so under its own. `sync` commits everything queued so far, and
whoever comes first commits for all. The one rule that makes this exact: an answer leaves the server only after `sync`, and so does a checkpoint.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from heron_common.errors import StorageError
from heron_common.files.plain_files import is_plain
from heron_common.ids import RoundReference
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.protocol.messages import LocalStatistics, UploadKey
from heron_server.storage import ledger_schema as sql
from heron_server.storage.recorded import RecordedAttempt, StoredAnswer, StoredFile, answer_to_json, read_attempts, read_drops

log = logging.getLogger(__name__)

LOCKED_SECONDS = 10.0
"""How long another process may have the ledger locked before that is an error."""

T = TypeVar("T")


@dataclass(frozen=True)
class Balance:
    """Uploads of a whole run by what became of them."""

    accepted: int
    trained: int
    scored: int
    rejected: int

    @property
    def waiting(self) -> int:
        """Acknowledged, and neither trained nor scored nor rejected yet."""
        return self.accepted - self.trained - self.scored - self.rejected


class Ledger:
    """One run's ledger. Entries are written by one thread at a time, in the order in which they take effect; everything else is thread-safe."""

    def __init__(self, path: Path, run_id: str, *, begins: bool, durable: bool = True) -> None:
        """Open or create the ledger of a run.

        Args:
            path: the database file.
            run_id: whose ledger it is.
            begins: the run starts now: what an earlier start that failed left behind is removed.
            durable: wait for the disk with every commit. Without, a crash of the process loses nothing, a power cut may.

        Raises:
            StorageError: it is damaged, of another run or version, or cannot be written.

        """
        self._path = path
        self._commit_lock = threading.Lock()
        self._queue: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.num_written = self.num_durable = 0
        """How many entries were written, and how many of these, the first ones, are on disk."""
        try:
            if begins:
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            elif not is_plain(path):
                raise StorageError(
                    f"the ledger {path} is gone: restore it, a plain file, from the backup that the other files came from, or start a new run"
                )
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCKED_SECONDS)
        except (sqlite3.Error, OSError) as exc:
            raise self._unusable(exc) from exc
        try:
            self._prepare(run_id, begins, durable)
        except sqlite3.Error as exc:
            self._connection.close()
            raise self._unusable(exc) from exc
        except StorageError:
            self._connection.close()
            raise

    def _prepare(self, run_id: str, begins: bool, durable: bool) -> None:
        # A ledger that came from elsewhere may have views and triggers; nothing in them is trusted.
        self._connection.execute("PRAGMA trusted_schema = OFF")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        if begins:
            self._connection.executescript(f"BEGIN;{sql.SCHEMA}")
            self._connection.execute("INSERT INTO run VALUES (?, ?)", (run_id, sql.SCHEMA_VERSION))
            self._connection.execute("COMMIT")
        self._check(run_id)
        self._connection.execute(sql.DIGESTS)
        self._connection.execute(sql.COLUMNS)
        self._sequence = self._first("SELECT coalesce(max(sequence), -1) + 1 FROM uploads")

    def _check(self, run_id: str) -> None:
        # Pages that rotted would be met one by one, some only when they are written.
        found = self._first("PRAGMA quick_check(1)")
        if found != "ok":
            raise StorageError(f"the ledger {self._path} is damaged ({found}): restore it from a backup or start a new run")
        known, version = self._connection.execute("SELECT run_id, schema_version FROM run").fetchone() or ("", 0)
        if (known, version) != (run_id, sql.SCHEMA_VERSION):
            raise StorageError(
                f"the ledger {self._path} was expected to be of run {run_id[:8]!r}, version {sql.SCHEMA_VERSION}, but is of run {known[:8]!r}, "
                f"version {version}: restore it from the backup that the other files came from"
            )

    def _unusable(self, error: Exception) -> StorageError:
        full = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
        what = "free some space" if full else "restore it from a backup or start a new run"
        return self._locked(error) or StorageError(f"the ledger {self._path} cannot be used ({error}): {what}")

    def _locked(self, error: Exception) -> StorageError | None:
        # The extended codes of SQLite have the plain one in their lowest byte.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return None
        return StorageError(
            f"the ledger {self._path} is locked by another process ({error}): end what has it open to write, such as a shell of sqlite3 or a backup"
        )

    def close(self) -> None:
        """Commit what is queued, if the disk allows, and close; safe to repeat."""
        try:
            self.sync()
        except StorageError as exc:
            log.error(str(exc))
        with self._commit_lock:
            self._connection.close()

    def sync(self) -> None:
        """Return when everything written before is on disk.

        Raises:
            StorageError: the disk refuses; what is queued stays queued, and the next call tries again.

        """
        wanted = self.num_written
        if self.num_durable >= wanted:
            return
        with self._commit_lock:
            if self.num_durable >= wanted:
                return
            batch = [self._queue.popleft() for _ in range(len(self._queue))]
            crash_point(CrashPoint.LEDGER_COMMITTING)
            try:
                self._commit(batch)
            except sqlite3.Error as exc:
                self._queue.extendleft(reversed(batch))
                cannot = StorageError(f"the ledger {self._path} cannot be written ({exc}): free some space")
                raise self._locked(exc) or cannot from exc
            self.num_durable += len(batch)
            crash_point(CrashPoint.LEDGER_COMMITTED)

    def _commit(self, batch: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in batch:
                self._connection.execute(statement, values)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _write(self, statement: str, *values: Any) -> None:
        self._queue.append((statement, values))
        self.num_written += 1

    def round_opened(self, reference: RoundReference, cohort: Mapping[str, str], inputs_sha256: str) -> None:
        """An attempt begins with this cohort (name -> digest of its identity key), from these inputs."""
        self._write(sql.OPEN, *reference, json.dumps(dict(cohort)), inputs_sha256)

    def member_dropped(self, reference: RoundReference, client_id: str, reason: str) -> None:
        """Nothing more is expected of a member in this attempt."""
        self._write(sql.DROP, *reference, client_id, reason)

    def round_closing(self, reference: RoundReference, submitted: tuple[str, ...]) -> None:
        """The attempt ends with these members' updates."""
        self._write(sql.CLOSE, json.dumps(submitted), *reference)

    def round_abandoned(self, reference: RoundReference, reason: str) -> None:
        """The attempt ends without a quorum."""
        self._write(sql.ABANDON, reason, *reference)

    def upload_accepted(self, key: UploadKey, sha256: str, *, payload: StoredFile, length: int = 0) -> None:
        """An upload came whole, with texts of this length if it has any, and will be trained on, scored or rejected."""
        self._write(sql.ACCEPT_UPLOAD, *_values(key), self._sequence, sha256, length, payload.name, payload.size_bytes)
        self._sequence += 1

    def upload_trained(self, key: UploadKey, position: int, *, answer: StoredAnswer, cut_gradient: StoredFile | None) -> None:
        """An upload was the `position`-th that the attempt's training took."""
        gradient = (cut_gradient.name, cut_gradient.size_bytes) if cut_gradient is not None else (None, None)
        self._write(sql.TRAIN_UPLOAD, position, answer_to_json(answer), *gradient, *_values(key))
        self._note_digest(key.round, cut_gradient)

    def upload_scored(self, key: UploadKey, position: int) -> None:
        """An upload of held-out samples was scored."""
        self._write(sql.SCORE_UPLOAD, position, *_values(key))

    def upload_rejected(self, key: UploadKey, position: int, reason: str) -> None:
        """An acknowledged upload is not trained on, and why."""
        self._write(sql.REJECT_UPLOAD, position, *_values(key))
        # After a restart the same upload may be judged again.
        self._write(sql.FORGET_REJECTION, *_values(key))
        self._write(sql.NOTE_REJECTION, *_values(key), reason)

    def update_accepted(
        self,
        reference: RoundReference,
        client_id: str,
        *,
        sha256: str,
        payload: StoredFile | None,
        statistics: LocalStatistics,
        log_bytes: bytes | None,
    ) -> None:
        """A client's update of the attempt came whole."""
        name, size = (payload.name, payload.size_bytes) if payload is not None else (None, 0)
        self._write(sql.ACCEPT_UPDATE, *reference, client_id, sha256, name, size, json.dumps(asdict(statistics)), log_bytes)
        self._note_digest(reference, payload)

    def _note_digest(self, reference: RoundReference, file: StoredFile | None) -> None:
        if file is not None and file.sha256:
            self._write(sql.NOTE_DIGEST, *reference, file.name, file.sha256)

    def gone_on_with(self, reference: RoundReference, covered: int) -> None:
        """An attempt goes on after a restart: payloads that a checkpoint covers are not needed any more, the others wait, perhaps for another order."""
        self._write(sql.FORGET_COVERED, *reference, covered)
        self._write(sql.FORGET_REJECTIONS, *reference, covered)
        self._write(sql.WAIT_AGAIN, *reference, covered)

    def payload_forgotten(self, key: UploadKey) -> None:
        """A checkpoint holds what came of an upload: its payload is not needed any more."""
        self._write(sql.FORGET_PAYLOAD, *_values(key))

    def gradient_forgotten(self, key: UploadKey) -> None:
        """The gradients that answered an upload are not kept any more."""
        self._write(sql.FORGET_GRADIENT, *_values(key))

    def joined(self, client_id: str, identity_sha256: str) -> None:
        """A client is there, with this digest of its identity key."""
        self._write(sql.JOIN, client_id, identity_sha256)

    def departed(self, client_id: str) -> None:
        """A client left or went silent."""
        self._write(sql.DEPART, client_id)

    def columns_learnt(self, names: tuple[str, ...]) -> None:
        """A client's names of columns are the run's from now on."""
        for place, name in enumerate(names):
            self._write(sql.LEARN_COLUMN, place, name)

    def quarantined(self, client_id: str, round_index: int, reason: str) -> None:
        """A client is set apart from this round on; for how long is the gates' affair, whose state is in checkpoints."""
        self._write(sql.QUARANTINE, client_id, round_index, reason)

    def settled(self, reference: RoundReference, abandoned_because: str | None = None) -> None:
        """A checkpoint covers an attempt, or it is undone: count its uploads and forget its details."""
        if abandoned_because is None:
            self._write(sql.SETTLE_CLOSED, *reference * 5)
        else:
            self._write(sql.SETTLE_ABANDONED, abandoned_because, *reference * 3)
        for statement in sql.CLEAR:
            self._write(statement, *reference)

    def attempts(self) -> tuple[RecordedAttempt, ...]:
        """Return the attempts that are not settled, in order; commits first, and raises StorageError like every question here."""
        return self._ask(read_attempts)

    def begun_attempts(self) -> dict[int, int]:
        """Return the last attempt that was begun at each round."""
        return self._pairs("SELECT round_index, max(attempt) FROM attempts GROUP BY round_index")

    def present_clients(self) -> dict[str, str]:
        """Return the clients that are there, with the digests of their identity keys."""
        return self._pairs("SELECT client_id, identity_sha256 FROM clients WHERE present = 1")

    def columns(self) -> tuple[str, ...]:
        """Return the names of columns that the run learnt from a client; none if it learnt none."""
        return self._ask(lambda connection: tuple(_text(name) for (name,) in connection.execute(sql.COLUMNS_LEARNT)))

    def quarantines(self) -> dict[str, str]:
        """Return the clients that were set apart, and why the last time; commits first."""
        return self._pairs("SELECT client_id, reason FROM quarantines")

    def drops(self) -> dict[str, dict[str, int]]:
        """Count how often members were dropped over the whole run, by reason and client; commits first."""
        return self._ask(read_drops)

    def abandoned(self) -> dict[str, int]:
        """Count the attempts that ended without a quorum, by reason; commits first."""
        return self._pairs(sql.ABANDONED)

    def balance(self) -> Balance:
        """Count the uploads of the whole run by what became of them."""

        def count(connection: sqlite3.Connection) -> Balance:
            settled = connection.execute("SELECT sum(accepted), sum(trained), sum(scored), sum(rejected) FROM attempts").fetchone()
            states = dict(connection.execute("SELECT state, count(*) FROM uploads GROUP BY state").fetchall())
            open_counts = (sum(states.values()), *(states.get(state, 0) for state in ("trained", "scored", "rejected")))
            return Balance(*((done or 0) + now for done, now in zip(settled, open_counts, strict=True)))

        return self._ask(count)

    def _pairs(self, statement: str) -> dict[Any, Any]:
        return self._ask(lambda connection: dict(connection.execute(statement).fetchall()))

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        self.sync()
        with self._commit_lock:
            try:
                return question(self._connection)
            except (sqlite3.Error, ValueError, TypeError) as exc:
                raise self._unusable(exc) from exc

    def _first(self, statement: str) -> Any:
        return self._connection.execute(statement).fetchone()[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a text is expected")
    return value


def _values(key: UploadKey) -> tuple[Any, ...]:
    return (*key.round, key.client_id, key.purpose.value, key.local_step)
