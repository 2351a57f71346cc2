"""The owner of the round: one lock, and the few verbs by which others change what lies behind it.

Each verb does one whole thing and returns a value. Under the lock nothing blocks, logs, draws, touches a file or takes another lock: what is slow, and
what others see, goes to the outbox. Whoever sends something away calls `flush` first, so that no client and no checkpoint knows what a crash could
make the server forget. Thread-safe.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TypeVar

from heron_common.ids import RoundReference
from heron_common.protocol.messages import LocalStatistics, Membership, NextStep, PeakMemory, UploadAnswer, UploadLoss
from heron_server.rounds import admission, membership, progress, resuming
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.admission import Admission, Cancel, UpdateHeader, UploadHeader
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.beginning import prepare
from heron_server.rounds.clients import ClientRecord, ClientStream
from heron_server.rounds.jobs import Job, RoundInputs
from heron_server.rounds.keeping import kept_or_released
from heron_server.rounds.owner_lock import OwnerLock
from heron_server.rounds.pacing import Pace
from heron_server.rounds.reopening import RecoveredFiles, recover
from heron_server.rounds.run_state import RunState
from heron_server.rounds.snapshot import RunSnapshot
from heron_server.rounds.state import Phase
from heron_server.storage.blobs import BlobStore
from heron_server.storage.recorded import StoredAnswer
from heron_server.storage.spool import Spool, SpoolEntry

LookedUp = TypeVar("LookedUp")

DELETIONS_PER_TICK = 500
"""Deleting takes a system call a file, and deadlines are looked at in between."""

Answered = tuple[UploadAnswer, SpoolEntry | None]


class RoundOwner:
    """Owns a run's state; see the module's docstring."""

    def __init__(self, run: RunState, blobs: BlobStore, *, spool: Spool, pace: Pace | None = None) -> None:
        """Nobody else may touch `run` from here on."""
        self.pace = pace or Pace()
        self.snapshot: RunSnapshot = run.snapshot()
        """What a console may read without a lock: as of the last tick."""
        self._run, self._blobs, self._spool = run, blobs, spool
        self._outbox, self._clock = run.outbox, run.clock
        self._lock = OwnerLock()
        self._work = threading.Condition(self._lock)  # type: ignore[arg-type]
        """There may be a job."""
        self._progress = threading.Condition(self._lock)  # type: ignore[arg-type]
        """An upload was trained or rejected, a client's turn may have come, a round opened or ended."""
        self._random = Random()

    @contextmanager
    def _stay(self) -> Iterator[RunState]:
        try:
            with self._lock:
                try:
                    yield self._run
                finally:
                    # Whoever waits for a job, a turn or a round looks again, whichever verb it was that moved them.
                    if self._run.has_moved:
                        self._run.has_moved = False
                        self._wake()
        finally:
            self._outbox.run_notes()

    def _wake(self) -> None:
        self._work.notify()
        self._progress.notify_all()

    # The process.

    def reopen(self, inputs: RoundInputs, covered: int = 0) -> bool:
        """Go on with the first recorded attempt, which began from `inputs`, without its first `covered` uploads to train.

        Returns False if it cannot be gone on with: then it is undone, as are those after it, and its round will be repeated.
        """
        prepared, recovered = prepare(inputs, self._blobs), self._recovered(covered)
        with self._stay() as run:
            run.prepared = prepared
            return resuming.go_on(run, recovered, covered)

    def start(self, inputs: RoundInputs) -> None:
        """Give what the open round, or else the next one, starts from; rounds may open from now on."""
        prepared = prepare(inputs, self._blobs)
        metrics, rules = self._run.metrics, self._run.machine.rules
        metrics.planned_rounds.set(rules.num_rounds)
        metrics.expected_clients.set(rules.num_clients)
        metrics.spool_budget_bytes.set(self._spool.budget_bytes)
        with self._stay() as run:
            run.start(prepared)
            self._wake()

    def tick(self) -> None:
        """Let time pass; call a few times a second. What waits for the disk alone is tried again."""
        with self._stay() as run:
            run.tick()
            self.snapshot = run.snapshot()
        self._run.orphaned_streams.cancel_stalled()
        self._outbox.delete_given_up(DELETIONS_PER_TICK)

    def close(self) -> None:
        """Delete what was given up and make the ledger durable, if the disk allows; nothing may be called after it."""
        self._outbox.run_notes()
        self._outbox.delete_given_up()
        self._outbox.ledger.close()

    def drain(self) -> None:
        """Admit nothing more: a round that is closing is closed, an open one is left for --resume; returns at once."""
        with self._stay() as run:
            run.drain()
            self.snapshot = run.snapshot()
            self._work.notify_all()
            self._progress.notify_all()

    def flush(self) -> None:
        """Return when everything that was decided before is durable.

        Raises:
            StorageError: the disk refuses.

        """
        self._outbox.flush()

    def wait_until_empty(self, timeout_seconds: float, expected_seconds: float | None = None) -> None:
        """Wait until every live client has left, so that each has heard that the run is finished; at most `timeout_seconds`.

        Those that this process only expects, because an earlier one had them, may have left already: for them alone it waits `expected_seconds`.
        """
        first = timeout_seconds if expected_seconds is None else min(expected_seconds, timeout_seconds)
        registry = self._run.registry
        with self._lock:
            if not self._progress.wait_for(lambda: registry.num_live == 0, first):
                self._progress.wait_for(lambda: not any(r.session for r in registry.live_records()), timeout_seconds - first)

    def look(self, question: Callable[[RunState], LookedUp]) -> LookedUp:
        """Return what a question that changes nothing finds; it must copy what it returns."""
        with self._stay() as run:
            run.add_up_bytes()
            return question(run)

    def add_up_bytes(self) -> None:
        """Add what was noted to the metrics: call before they are read."""
        with self._stay() as run:
            run.add_up_bytes()

    # Clients.

    def join(
        self, name: str, identity_key: str, *, num_examples: int, version: str, speaker: str = "", columns: tuple[str, ...] = ()
    ) -> Membership:
        """Open a session for a client that proved to be `speaker`, or proved nothing; see `ClientRegistry.join` for refusals."""
        with self._stay() as run:
            return membership.join(run, name, identity_key, num_examples=num_examples, version=version, speaker=speaker, columns=columns)

    def has_session(self, session: str) -> bool:
        """Whether a client of the run has this session; takes no lock."""
        return self._run.registry.has_session(session)

    def visit(self, speaker: str = "", address: str = "") -> Membership:
        """Open a session for a client that only checks its data or its device: no round waits for it or takes it in."""
        with self._stay() as run:
            return membership.visit(run, speaker, address)

    def client(self, session: str, speaker: str = "") -> ClientRecord:
        """Return the client of a session and count the call as a sign of life; refuses unknown sessions, and those that another speaker opened."""
        with self._stay() as run:
            return membership.client_of(run, session, speaker)

    def next_step(
        self, session: str, training: RoundReference | None, *, losses_seen: int = 0, speaker: str = ""
    ) -> tuple[ClientRecord, NextStep, tuple[UploadLoss, ...]]:
        """Return who asks, what to do (assignment, wait, or that the run is finished), and the losses after those it has seen. Waits first if the pace says so.

        Raises:
            RefusedError: ROUND_OVER if it is at work on a round that is over for it; DRAINING; what `client` refuses.

        """
        with self._stay() as run:
            record = membership.client_of(run, session, speaker)
            if training is None and self.pace.hold_seconds:
                self._progress.wait_for(lambda: membership.has_news(run, record), self.pace.hold_seconds)
            step = membership.next_step(run, record, training, pace=self.pace, random=self._random)
            return record, step, record.losses_after(losses_seen)

    def losses_for(self, record: ClientRecord, seen: int) -> tuple[UploadLoss, ...]:
        """Return the losses of this client's uploads after the first `seen`."""
        with self._lock:
            return record.losses_after(seen)

    def blob(self, record: ClientRecord, sha256: str) -> tuple[memoryview, str]:
        """Return a blob that this client's join or assignment named, and its kind for the byte count; refuses others with BLOB_UNKNOWN."""
        with self._lock:
            kind = membership.check_blob(self._run, record, sha256)
        data = self._blobs.get(sha256)
        if data is None:
            raise membership.unknown_blob(sha256)
        return memoryview(data), kind

    def note(self, record: ClientRecord, direction: str, *, kind: str, size_bytes: int) -> None:
        """Count bytes, "up" or "down", and a sign of life; takes no lock."""
        record.heard_at = self._clock.now()
        self._run.bytes_counted.append((record, direction, kind, size_bytes))

    def leave(self, record: ClientRecord, reason: str, peak: PeakMemory) -> None:
        """A client says goodbye."""
        with self._stay() as run:
            membership.leave(run, record, reason=reason, peak=peak)

    # Uploads and updates.

    def admit_upload(self, header: UploadHeader, cancel: Cancel = None) -> Admission[UploadHeader]:
        """Check an upload's header and open its client's one stream, until it is released; see `admission.admit_upload` for refusals.

        One that comes too early waits for its turn if the pace holds calls.
        """
        with self._stay() as run:
            if self.pace.hold_seconds:
                self._progress.wait_for(lambda: admission.is_in_turn(run, header), self.pace.hold_seconds)
            return admission.admit_upload(run, header, cancel)

    def accept_upload(self, admitted: Admission[UploadHeader], sha256: str, entry: SpoolEntry | None) -> Answered | None:
        """Acknowledge an upload that arrived whole and end its stream; returns what `answer` does at once. A payload that came before is deleted.

        Raises:
            RefusedError: see `admission.accept_upload`.

        """
        with kept_or_released(self._spool, entry) as keep, self._stay() as run:
            keep.is_taken_over = admission.accept_upload(run, admitted, sha256=sha256, entry=entry)
            admission.release(admitted.stream)
            self._work.notify()
            return admission.answer_upload(run, admitted)

    def answer(self, admitted: Admission[UploadHeader], patience_seconds: float) -> Answered | None:
        """Return the answer to an accepted upload, and where lambda lies if the plan needs it.

        Waits for the trainer only where the step does, and at most `patience_seconds`: None means not yet.

        Raises:
            RefusedError: ROUND_OVER, NOT_IN_COHORT or DRAINING while it waited.

        """
        until = self._clock.now() + patience_seconds
        with self._stay() as run:
            while (answered := admission.answer_upload(run, admitted)) is None and self._clock.now() < until:
                self._progress.wait(min(1.0, patience_seconds))
            return answered

    def admit_update(self, header: UpdateHeader, cancel: Cancel = None) -> Admission[UpdateHeader]:
        """Check an update's header and open its client's one stream, until it is released; refuses like `admit_upload`."""
        with self._stay() as run:
            return admission.admit_update(run, header, cancel)

    def attempt_of_update(self, admitted: Admission[UpdateHeader], sha256: str) -> Attempt | None:
        """Return the attempt that an update belongs to, whose constants may be read; None if the same update was accepted before."""
        with self._stay() as run:
            return admission.attempt_of_update(run, admitted, sha256)

    def accept_update(
        self,
        admitted: Admission[UpdateHeader],
        sha256: str,
        *,
        entry: SpoolEntry | None,
        statistics: LocalStatistics,
        log_bytes: bytes | None,
    ) -> None:
        """Accept an update that arrived whole; the same one again is fine; see `admission.attempt_of_update` for refusals."""
        with kept_or_released(self._spool, entry) as keep, self._stay() as run:
            keep.is_taken_over = admission.accept_update(run, admitted, sha256, entry=entry, statistics=statistics, log_bytes=log_bytes)
            self._wake()

    def log_mismatched(self, record: ClientRecord) -> None:
        """A client's log does not arrive at the weights that it names."""
        with self._stay() as run:
            record.log_mismatches += 1
            run.outbox.then(lambda: run.metrics.log_mismatches.inc())

    def release(self, stream: ClientStream) -> None:
        """A stream ended, however it ended; another that its client opened since is not touched; safe to repeat."""
        with self._lock:
            admission.release(stream)

    # The trainer.

    def next_job(self, wait_seconds: float, worth_bytes: float = math.inf) -> Job | None:
        """Return the next job, waiting for one at most so long; a checkpoint inside the round is worth it if it frees so many bytes."""
        with self._stay() as run:
            if (job := progress.ready_job(run, worth_bytes)) is None and wait_seconds and not self._is_over(run):
                self._work.wait(wait_seconds)
                job = progress.ready_job(run, worth_bytes)
            return job

    @property
    def is_over(self) -> bool:
        """Whether no more jobs will come once `next_job` has none."""
        with self._lock:
            return self._is_over(self._run)

    @staticmethod
    def _is_over(run: RunState) -> bool:
        return run.draining or run.machine.phase is Phase.FINISHED

    def trained(self, upload: AcceptedUpload, answer: StoredAnswer, gradient: SpoolEntry | None) -> None:
        """An upload was judged and trained on; `gradient` is where lambda lies until its round ends."""
        with self._stay() as run:
            progress.trained(run, upload, answer=answer, gradient=gradient)
            self._progress.notify_all()

    def scored(self, upload: AcceptedUpload) -> None:
        """An upload of held-out samples was scored."""
        with self._stay() as run:
            progress.scored(run, upload)
            self._progress.notify_all()

    def rejected(self, upload: AcceptedUpload, reason: str, sets_apart: bool) -> None:
        """An upload is not trained on; see `progress.rejected`."""
        with self._stay() as run:
            progress.rejected(run, upload, reason=reason, sets_apart=sets_apart)
            self._progress.notify_all()

    def saved(self) -> None:
        """A checkpoint inside the round covers what was trained."""
        with self._stay() as run:
            progress.saved(run)

    def close_attempt(self, inputs: RoundInputs, covered: bool) -> None:
        """The round was closed or abandoned; `inputs` are what the next one starts from, `covered` says whether a checkpoint holds them."""
        prepared, recovered = prepare(inputs, self._blobs), self._recovered(0)
        with self._stay() as run:
            run.close_attempt(prepared, covered)
            resuming.go_on(run, recovered, 0)
            run.let_open()
            self.snapshot = run.snapshot()
            self._wake()

    def _recovered(self, covered: int) -> RecoveredFiles | None:
        # Only the trainer's thread, and before it the process's start, take recorded attempts.
        recorded = self._run.recorded
        return recover(recorded[0], self._spool, covered) if recorded else None
