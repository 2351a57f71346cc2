"""Takes in what clients send: admission, room on disk, acceptance. Everything slow happens here, outside the owner's lock. Thread-safe."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import TracebackType
from typing import Generic

from heron_common.algorithm.plan import UpdateEncoding
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, SpoolFullError, StorageError
from heron_common.numerics.tensors import TensorSpec
from heron_common.protocol.messages import LocalStatistics
from heron_server.rounds.admission import Admission, AnyHeader, Cancel, UpdateHeader, UploadHeader
from heron_server.rounds.owner import Answered, RoundOwner
from heron_server.rounds.replay import replay_update
from heron_server.rounds.reported import check_reported, check_variances
from heron_server.storage.spool import Spool, SpoolEntry, SpoolWriter


class Incoming(Generic[AnyHeader]):
    """A stream that was admitted: a context that frees its room and its client's place, however it ends."""

    def __init__(self, owner: RoundOwner, spool: Spool, admitted: Admission[AnyHeader]) -> None:
        """Reserve room; raises RefusedError SPOOL_FULL if there is none now."""
        self.admitted, self._owner = admitted, owner
        self._writer: SpoolWriter | None = None
        if admitted.room_bytes:
            by_client = admitted.client.name if isinstance(admitted.header, UploadHeader) else ""
            self._writer = open_spool(spool, admitted.room_bytes, always=admitted.is_needed, owner=by_client)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors that come."""
        return self.admitted.specs

    def take(self, kind: str, data: bytes) -> None:
        """Write a checked chunk.

        Raises:
            RefusedError: the round is over, or the disk refuses.

        """
        self._owner.note(self.admitted.client, "up", kind=kind, size_bytes=len(data))
        self.admitted.stream.check_open()
        if self._writer is not None:
            try:
                self._writer.write(data)
            except StorageError as exc:
                raise RefusedError(ErrorCode.SPOOL_FULL, f"{exc}: send it again later", 1.0) from exc

    def commit(self) -> SpoolEntry | None:
        """Keep the payload, if this is the first time that it came; returns when it is durable."""
        return None if self._writer is None else commit(self._writer)

    def __enter__(self) -> Incoming[AnyHeader]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._writer is not None:
                self._writer.__exit__(kind, value, trace)
        finally:
            if kind is not None or self.admitted.client.stream is self.admitted.stream:
                self._owner.release(self.admitted.stream)


class Receiver:
    """Opens incoming streams and hands what arrived whole to the owner."""

    def __init__(self, owner: RoundOwner, spool: Spool, run_seed: int) -> None:
        self._owner, self._spool, self._run_seed = owner, spool, run_seed

    def open_upload(self, header: UploadHeader, cancel: Cancel = None) -> Incoming[UploadHeader]:
        """Admit an upload and reserve room for it; see `RoundOwner.admit_upload` for refusals, SPOOL_FULL beside them."""
        return self._incoming(self._owner.admit_upload(header, cancel))

    def open_update(self, header: UpdateHeader, cancel: Cancel = None) -> Incoming[UpdateHeader]:
        """Admit an update and reserve room for it; refuses like `open_upload`."""
        return self._incoming(self._owner.admit_update(header, cancel))

    def _incoming(self, admitted: Admission[AnyHeader]) -> Incoming[AnyHeader]:
        try:
            return Incoming(self._owner, self._spool, admitted)
        except BaseException:
            self._owner.release(admitted.stream)
            raise

    def accept_upload(self, incoming: Incoming[UploadHeader], sha256: str) -> Answered | None:
        """Acknowledge an upload that arrived whole; returns its answer, None where the trainer has to say more; see `RoundOwner.accept_upload`."""
        return self._owner.accept_upload(incoming.admitted, sha256, incoming.commit())

    def accept_update(self, incoming: Incoming[UpdateHeader], sha256: str, *, weights_sha256: bytes, statistics: LocalStatistics) -> None:
        """Accept an update that arrived whole; the same one again is fine. A log is replayed first, on this thread.

        Raises:
            RefusedError: CONFLICTING_UPLOAD if another one came before; LOG_MISMATCH if a log does not arrive at the weights that it names;
                NON_FINITE if what the client says of its round cannot be.

        """
        check_reported(statistics)
        admitted = incoming.admitted
        attempt = self._owner.attempt_of_update(admitted, sha256)
        if attempt is None:
            return
        entry, log_bytes = incoming.commit(), None
        try:
            check_variances(entry, attempt.facts.model)
        except RefusedError:
            if entry is not None:
                self._spool.release(entry)
            raise
        if entry is not None and admitted.header.encoding is UpdateEncoding.LOG:
            payload, end = bytes(entry.read()), admitted.specs[0].size_bytes
            self._spool.release(entry)
            log_bytes = payload[:end]
            try:
                weights = replay_update(
                    attempt, self._run_seed, client_id=admitted.client.name, log_bytes=log_bytes, weights_sha256=weights_sha256
                )
            except RefusedError:
                self._owner.log_mismatched(admitted.client)
                raise
            # The entry that a dense update would have: the weights that the log arrives at, and the statistics that came with it.
            payload = weights.tobytes() + payload[end:]
            with open_spool(self._spool, len(payload), always=True) as writer:
                writer.write(payload)
                entry = replace(commit(writer), sha256=hashlib.sha256(payload).hexdigest())
        self._owner.accept_update(admitted, sha256, entry=entry, statistics=statistics, log_bytes=log_bytes)


def open_spool(spool: Spool, size_bytes: int, *, always: bool, owner: str = "") -> SpoolWriter:
    """Reserve room and open a writer; raises RefusedError SPOOL_FULL."""
    try:
        return spool.open(size_bytes, always, owner)
    except (SpoolFullError, StorageError) as exc:
        raise RefusedError(ErrorCode.SPOOL_FULL, f"{exc}: send it again later", 0.5) from exc


def commit(writer: SpoolWriter) -> SpoolEntry:
    """Keep a payload; returns when it is durable; raises RefusedError SPOOL_FULL."""
    try:
        return writer.commit()
    except StorageError as exc:
        raise RefusedError(ErrorCode.SPOOL_FULL, f"{exc}: send it again later", 0.5) from exc
