"""What a ledger tells of attempts that no checkpoint covers yet: enough to go on with them as if nothing had happened."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import KW_ONLY, dataclass, field

from heron_common.ids import RoundReference
from heron_common.protocol.messages import LocalStatistics, UploadKey, UploadPurpose
from heron_common.protocol.reported_ranges import within_ranges


@dataclass(frozen=True)
class StoredFile:
    """A payload in the spool, by its file's name; no name once a checkpoint holds what came of it.

    `sha256` is that of its bytes, empty where an earlier version did not record it.
    """

    name: str | None
    size_bytes: int
    sha256: str = field(default="", compare=False)


@dataclass(frozen=True)
class StoredAnswer:
    """What the trainer said of an upload: the number of server steps before it, its loss if its step is an upload step, and the losses of its probes."""

    server_version: int
    loss: float | None
    probe_losses: tuple[float, ...] | None


@dataclass(frozen=True)
class RecordedUpload:
    """An acknowledged upload; `position` is its place in the order of training, None while it waits."""

    key: UploadKey
    sha256: str
    _: KW_ONLY
    payload: StoredFile
    state: str
    position: int | None
    answer: StoredAnswer | None
    cut_gradient: StoredFile | None
    length: int = 0
    """Of its texts; 0 where a run has one shape."""


@dataclass(frozen=True)
class RecordedUpdate:
    """An acknowledged update."""

    client_id: str
    sha256: str
    _: KW_ONLY
    payload: StoredFile | None
    statistics: LocalStatistics
    log: bytes | None


@dataclass(frozen=True)
class RecordedAttempt:
    """An attempt that was opened: `submitted` once its end was decided."""

    round: RoundReference
    cohort: dict[str, str]
    """Client name -> digest of its identity key."""
    _: KW_ONLY
    inputs_sha256: str
    outcome: str
    submitted: tuple[str, ...] | None
    dropped: dict[str, str]
    uploads: tuple[RecordedUpload, ...]
    """In the order of acceptance."""
    updates: tuple[RecordedUpdate, ...]

    def files(self) -> set[str]:
        """Return the names of every file in the spool that this attempt needs."""
        stored = [upload.payload for upload in self.uploads]
        stored += [upload.cut_gradient for upload in self.uploads if upload.cut_gradient]
        stored += [update.payload for update in self.updates if update.payload]
        return {file.name for file in stored if file.name is not None}


def read_attempts(connection: sqlite3.Connection) -> tuple[RecordedAttempt, ...]:
    """Return the attempts that are not settled, in order."""
    rows = connection.execute(
        "SELECT round_index, attempt, cohort, inputs_sha256, outcome, submitted FROM attempts WHERE settled = 0 ORDER BY round_index, attempt"
    ).fetchall()
    attempts = []
    for round_index, attempt, cohort, inputs, outcome, submitted in rows:
        reference = RoundReference(round_index, attempt)
        drops = connection.execute("SELECT client_id, reason FROM drops WHERE round_index = ? AND attempt = ?", reference)
        attempts.append(
            RecordedAttempt(
                reference,
                dict(json.loads(cohort)),
                inputs_sha256=inputs,
                outcome=outcome,
                submitted=tuple(json.loads(submitted)) if submitted is not None else None,
                dropped=dict(drops.fetchall()),
                uploads=_uploads(connection, reference),
                updates=_updates(connection, reference),
            )
        )
    return tuple(attempts)


def read_drops(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Return how often each client was dropped, by reason and client."""
    counts: dict[str, dict[str, int]] = {}
    rows = connection.execute("SELECT reason, client_id, count(*) FROM drops GROUP BY reason, client_id ORDER BY reason, client_id")
    for reason, client_id, count in rows:
        counts.setdefault(reason, {})[client_id] = count
    return counts


def _uploads(connection: sqlite3.Connection, reference: RoundReference) -> tuple[RecordedUpload, ...]:
    digests = _digests(connection, reference)
    rows = connection.execute(
        "SELECT client_id, purpose, local_step, sha256, file, size_bytes, state, position, answer, gradient_file, gradient_bytes, length "
        "FROM uploads WHERE round_index = ? AND attempt = ? ORDER BY sequence",
        reference,
    )
    return tuple(
        RecordedUpload(
            UploadKey(reference, client_id, purpose=UploadPurpose(purpose), local_step=local_step),
            sha256,
            payload=StoredFile(file, size_bytes, sha256),
            state=state,
            position=position,
            answer=answer_from_json(answer) if answer is not None else None,
            cut_gradient=StoredFile(gradient_file, gradient_bytes, digests.get(gradient_file, "")) if gradient_bytes is not None else None,
            length=length,
        )
        for client_id, purpose, local_step, sha256, file, size_bytes, state, position, answer, gradient_file, gradient_bytes, length in rows
    )


def _updates(connection: sqlite3.Connection, reference: RoundReference) -> tuple[RecordedUpdate, ...]:
    digests = _digests(connection, reference)
    rows = connection.execute(
        "SELECT client_id, sha256, file, size_bytes, statistics, log FROM updates WHERE round_index = ? AND attempt = ?", reference
    )
    return tuple(
        RecordedUpdate(
            client_id,
            sha256,
            # What a log arrived at is not what came, and has a digest of its own.
            payload=StoredFile(file, size_bytes, digests.get(file, "" if log is not None else sha256)) if file is not None else None,
            statistics=within_ranges(LocalStatistics(**json.loads(statistics))),
            log=log,
        )
        for client_id, sha256, file, size_bytes, statistics, log in rows
    )


def _digests(connection: sqlite3.Connection, reference: RoundReference) -> dict[str, str]:
    return dict(connection.execute("SELECT file, sha256 FROM digests WHERE round_index = ? AND attempt = ?", reference).fetchall())


def answer_to_json(answer: StoredAnswer) -> str:
    """Return an answer as JSON; a loss may be NaN, which Python's JSON keeps."""
    return json.dumps([answer.server_version, answer.loss, answer.probe_losses])


def answer_from_json(text: str) -> StoredAnswer:
    """Return the answer again, bit for bit."""
    version, loss, probes = json.loads(text)
    return StoredAnswer(version, loss, tuple(probes) if probes is not None else None)
