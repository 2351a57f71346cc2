"""The trainer's side of a run: what to do next, and what was done. What is slow happens here, outside the owner's lock; `next_job` waits."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from dataclasses import replace

from heron_common.errors import StorageError
from heron_common.process.clock import Clock
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.jobs import Job, RoundInputs
from heron_server.rounds.owner import RoundOwner
from heron_server.storage.recorded import StoredAnswer
from heron_server.storage.spool import Spool, SpoolEntry

log = logging.getLogger(__name__)

SAVE_PAUSE_SECONDS = 10.0
"""After a checkpoint inside a round that the disk refused; training goes on meanwhile."""

SAVE_SHARE = 0.25
"""A checkpoint inside a round has to free so much of what the spool holds, or it is not worth its time."""


class TrainerQueue:
    """Hands jobs to the one thread that touches the model; it reports a job before it asks for the next."""

    def __init__(self, owner: RoundOwner, spool: Spool, clock: Clock) -> None:
        self._owner, self._spool, self._clock = owner, spool, clock
        self._save_not_before = -math.inf
        self._pause = threading.Event()

    def next_job(self) -> Job | None:
        """Wait for work and return it; None once the run drains or is finished."""
        while True:
            job = self.ready_job(wait_seconds=1.0)
            if job is not None:
                return job
            if self._owner.is_over:
                return self.ready_job()

    def ready_job(self, wait_seconds: float = 0.0) -> Job | None:
        """Return the next job if there is one, or one comes in time."""
        may_save = self._spool.is_half_full and self._clock.now() >= self._save_not_before
        return self._owner.next_job(wait_seconds, SAVE_SHARE * self._spool.used_bytes if may_save else math.inf)

    def upload_trained(
        self,
        upload: AcceptedUpload,
        loss: float | None,
        probe_losses: tuple[float, ...] | None,
        *,
        server_version: int,
        cut_gradient: bytes | memoryview | None = None,
    ) -> None:
        """An upload was judged and trained on; `loss` is None if its step is not an upload step. lambda goes to disk until its round ends."""
        crash_point(CrashPoint.STEP_TAKEN)
        entry = upload.cut_gradient
        if cut_gradient is not None and entry is None:
            entry = self._spooled(bytes(cut_gradient))
        self._owner.trained(upload, StoredAnswer(server_version, loss, probe_losses), entry)
        crash_point(CrashPoint.STEP_RECORDED)

    def _spooled(self, cut_gradient: bytes) -> SpoolEntry:
        """Return lambda's place on disk; while the disk refuses training waits, for the step is taken and its client cannot go on without.

        Raises:
            StorageError: the run drains before there is room; the step is not recorded, so that a restart takes it again.

        """
        told = False
        while True:
            try:
                with self._spool.open(len(cut_gradient), always=True) as writer:
                    writer.write(cut_gradient)
                    return replace(writer.commit(), sha256=hashlib.sha256(cut_gradient).hexdigest())
            except StorageError as exc:
                if self._owner.is_over:
                    raise
                if not told:
                    log.error("training waits for room on the disk", extra={"reason": str(exc)})
                told = True
                self._pause.wait(0.2)

    def upload_scored(self, upload: AcceptedUpload) -> None:
        """An upload of held-out samples was scored."""
        self._owner.scored(upload)

    def upload_rejected(self, upload: AcceptedUpload, reason: str, sets_apart: bool = False) -> None:
        """An upload is not trained on; its client hears of it as of a trained one."""
        self._owner.rejected(upload, reason, sets_apart)

    def open_round_saved(self, succeeded: bool) -> None:
        """A SaveJob was carried out: what it covers is given up, unless the disk refused."""
        if succeeded:
            self._owner.saved()
        else:
            self._save_not_before = self._clock.now() + SAVE_PAUSE_SECONDS

    def round_done(self, inputs: RoundInputs, covered: bool) -> None:
        """A CloseJob or AbandonJob was carried out; `inputs` are what the next round starts from, `covered` says whether a checkpoint holds them."""
        self._owner.close_attempt(inputs, covered)
