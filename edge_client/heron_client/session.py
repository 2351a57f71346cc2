"""A client's life with a server: NEW, JOINED, TRAINING, LEFT; it comes back after anything but its own stop."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TypeVar

from heron_client.device.memory import return_freed_memory
from heron_client.metrics import ClientMetrics
from heron_client.network.assignment_checks import check_assignment
from heron_client.network.blob_fetcher import BlobFetcher
from heron_client.network.heartbeat import Heartbeat
from heron_client.network.memory_budget import memory_budget
from heron_client.network.renewal import RunChanged
from heron_client.network.retry_policy import Diagnose, RetryPolicy
from heron_client.network.server_session import ServerSession
from heron_client.network.sitting_out import SittingOut
from heron_client.network.transport import Transport
from heron_client.network.upload_pipeline import RoundStopped, UploadPipeline
from heron_client.round_report import RoundReport
from heron_client.state_directory import ClientState
from heron_client.training.held_out_sending import send_held_out
from heron_client.training.local_training import LocalContext, LocalRound
from heron_client.training.program_runs import ProgramRuns
from heron_client.training.run_loader import RunLoader
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.data.check import check_source
from heron_common.data.columns import named_columns
from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource
from heron_common.error_catalog import ErrorCode
from heron_common.errors import HeronError, Interrupted, RefusedError, TransportError
from heron_common.process.clock import Clock
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.process.process_memory import resident_memory
from heron_common.protocol.messages import Assignment, Finished, Membership, PeakMemory, UploadAnswer, UploadLoss, Wait
from heron_common.terminal.log_setup import TOLD

log = logging.getLogger(__name__)

T = TypeVar("T")

_ROUND_ENDED = {
    ErrorCode.ROUND_OVER,
    ErrorCode.NON_FINITE,
    ErrorCode.NOT_IN_COHORT,
    ErrorCode.CONFLICTING_UPLOAD,
    ErrorCode.BLOB_UNKNOWN,
}


class SessionState(Enum):
    """NEW: no session. JOINED: has one and asks for work. TRAINING: at work on a round. LEFT: done, for good."""

    NEW = "new"
    JOINED = "joined"
    TRAINING = "training"
    LEFT = "left"


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What the session needs to know of the configuration.

    `owns_process` says that this process is the client's alone: its peak memory is the client's, and freed memory goes back to the kernel at once.
    `sends_beside` says that there is a network to wait for, so that an upload has a thread of its own while the next pass computes.
    """

    client_name: str
    threads: int
    give_up_after_seconds: float
    window_bytes: int
    owns_process: bool = True
    sends_beside: bool = True


@dataclass(frozen=True)
class _Joined:
    """What a session has from its joining on."""

    membership: Membership
    reader: SampleReader
    context: LocalContext


class Session:
    """Runs until the server says that the run is over or `stop` is set."""

    def __init__(
        self,
        settings: SessionSettings,
        transport: Transport,
        source: DataSource,
        *,
        state: ClientState,
        metrics: ClientMetrics,
        clock: Clock,
        random: Random,
        stop: threading.Event,
        diagnose: Diagnose | None = None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._source = source
        self._state_directory = state
        self._metrics = metrics
        self._clock = clock
        self._retry_policy = RetryPolicy(stop, clock, random, give_up_after_seconds=settings.give_up_after_seconds, diagnose=diagnose)
        self._sitting_out = SittingOut(random)
        self._server = ServerSession(transport, self._retry_policy, random, open_session=self._open_session, on_lost=metrics.reconnects.inc)
        self._report = RoundReport(metrics, clock, waits_for_network=settings.owns_process)
        self.runs = ProgramRuns()
        fetcher = BlobFetcher(transport.fetch, self._server.call)
        self._loader = RunLoader(fetcher, state, clock=clock, give_memory_back=self._give_memory_back, runs=self.runs)
        self.state = SessionState.NEW
        self._stopping_lock, self._said_stopping = threading.Lock(), False

    def run(self) -> None:
        """Join, train and leave; returns when the run is finished or `stop` is set.

        Raises:
            RefusedError: the server refuses this client for good.
            TransportError: the server was out of reach for longer than `give_up_after_seconds`.
            DataError, ProgramError: data, a program, or what the server asks for does not fit.

        """
        joined: _Joined | None = None
        try:
            while self.state is not SessionState.LEFT:
                try:
                    if joined is None or self.state is SessionState.NEW:
                        joined = self._join()
                    self._work(joined)
                except RefusedError as exc:
                    if exc.code is not ErrorCode.SESSION_UNKNOWN:
                        raise
                    self._rejoin()
        except Interrupted:
            self.say_stopping()
            self._leave("stopped by a signal")
            log.info("left the run", extra={TOLD: "left the run; what was accepted counts, and this client may join again"})
        except TransportError:
            self._enter(SessionState.LEFT)
            raise
        except HeronError:
            self._leave("stopped by an error")
            raise

    def say_stopping(self) -> None:
        """Say, once, what a stop does: whichever thread hears of it first."""
        with self._stopping_lock:
            if not self._said_stopping:
                self._said_stopping = True
                told = "asked to stop: the round at work is given up and the server is told; a second signal ends this process at once"
                log.info("stopping", extra={TOLD: told})

    def _rejoin(self) -> None:
        self._enter(SessionState.NEW)
        self._server.pause_before_join()

    def _open_session(self) -> Membership:
        settings, identity = self._settings, self._state_directory.identity_key
        columns = named_columns(self._source.inputs)
        return self._transport.join(settings.client_name, identity, self._source.num_examples, columns=columns)

    def _enter(self, state: SessionState) -> None:
        self.state = state
        self._metrics.phase(state.value)

    def _join(self) -> _Joined:
        settings = self._settings
        membership = self._server.join()
        crash_point(CrashPoint.CLIENT_JOINED)
        specification = membership.data_specification
        reader = check_source(self._source, specification, self._loader.tokenizer(specification))
        self._state_directory.remember_run(membership.run_id)
        # Where hundreds of clients share a process, one computes at a time and the others would only hold their arenas.
        context = self._loader.context(
            settings.client_name, membership, reader=reader, threads=settings.threads, arenas=settings.owns_process
        )
        self._enter(SessionState.JOINED)
        log.info("joined", extra={"run_id": membership.run_id, "client": settings.client_name, "examples": reader.num_examples})
        return _Joined(membership, reader, context)

    def _work(self, joined: _Joined) -> None:
        while self.state is SessionState.JOINED:
            step, losses = self._server.call(lambda: self._transport.next_step(None), "ask for work")
            self._report.losses(losses)
            if isinstance(step, Assignment):
                self._train(joined, step)
            elif isinstance(step, Wait):
                self._metrics.status = step.reason
                self._retry_policy.pause(step.seconds)
            elif isinstance(step, Finished):
                log.info("the run is finished", extra={"reason": step.reason})
                self._leave("the run is finished")

    def _train(self, joined: _Joined, assignment: Assignment) -> None:
        check_assignment(assignment, joined.membership, memory_budget())
        self._enter(SessionState.TRAINING)
        self._report.round_started(assignment)
        left_early, after, pause_seconds = False, SessionState.JOINED, 0.0
        try:
            with self._server.training(assignment.round):
                self._take_part(joined, assignment)
        except RunChanged as exc:
            log.warning("giving this round up", extra={"round_index": assignment.round.round_index, "reason": str(exc)})
            after = SessionState.NEW
        except RoundStopped as exc:
            pause_seconds = self._sit_out(joined, assignment, str(exc))
        except RefusedError as exc:
            if exc.code not in _ROUND_ENDED:
                raise
            pause_seconds = self._sit_out(joined, assignment, exc.sentence)
            left_early = exc.code is ErrorCode.NON_FINITE
        self._enter(after)
        if left_early:
            # The same round would end in the same values, so the server must not wait for this client; the next round starts from others.
            self._transport.leave("its values were not finite", self._peak_memory())
            self._rejoin()
        elif pause_seconds:
            self._retry_policy.pause(pause_seconds)

    def _take_part(self, joined: _Joined, assignment: Assignment) -> None:
        """Take part in a round to its end; nothing of it is left behind, however it ends."""
        round_over = threading.Event()
        pipeline = UploadPipeline(
            self._transport.upload,
            self._retry_policy,
            clock=self._clock,
            round_over=round_over,
            on_answer=self._on_answer,
            window_bytes=self._settings.window_bytes,
            recover=self._server.recover,
            beside=self._settings.sends_beside,
        )
        heartbeat = Heartbeat(
            self._transport,
            assignment.round,
            period_seconds=joined.membership.heartbeat_seconds,
            round_over=round_over,
            on_losses=self._report.losses,
            recover=self._server.recover,
        )
        try:
            local_round = self._compute(joined.context, assignment, pipeline)
            self._submit(joined, assignment, local_round, waited_seconds=pipeline.wait_seconds)
        finally:
            heartbeat.stop()
            pipeline.abort()
            self._give_memory_back()

    def _compute(self, context: LocalContext, assignment: Assignment, pipeline: UploadPipeline) -> LocalRound:
        """Carry out every step of a round; returns when every upload is answered."""
        self._loader.load_weights(context.parameters, assignment)
        # What came over the wire was copied into buffers; a step needs the room.
        self._give_memory_back()
        crash_point(CrashPoint.CLIENT_WEIGHTS_LOADED)
        local_round = LocalRound(context, assignment, sender=pipeline, on_step=self._metrics.step_done)
        send_held_out(context, assignment, pipeline)
        for local_step in range(assignment.plan.local_steps):
            pipeline.check()
            crash_point(CrashPoint.CLIENT_STEP_BEGUN)
            local_round.run_step(local_step)
        local_round.finish()
        crash_point(CrashPoint.CLIENT_ROUND_COMPUTED)
        return local_round

    def _sit_out(self, joined: _Joined, assignment: Assignment, reason: str) -> float:
        """Say that a round goes on without this client; return how long to pause: one that is sent away again and again does not run in a circle."""
        pause_seconds = self._sitting_out.sent_away(joined.membership.heartbeat_seconds)
        again = {"pause_seconds": round(pause_seconds, 2)} if pause_seconds else {}
        log.warning("sitting this round out", extra={"round_index": assignment.round.round_index, "reason": reason, **again})
        return pause_seconds

    def _submit(self, joined: _Joined, assignment: Assignment, local_round: LocalRound, *, waited_seconds: float) -> None:
        statistics = local_round.meter.to_statistics(waited_seconds, self._peak_memory())
        steps = assignment.plan.local_steps

        def submit(encoding: UpdateEncoding | None) -> tuple[UploadLoss, ...]:
            submission = local_round.submission(encoding)
            return self._server.call(
                lambda: self._transport.submit(assignment.round, submission, steps=steps, statistics=statistics), "submit the update"
            )

        try:
            losses = submit(None)
        except RefusedError as exc:
            if exc.code is not ErrorCode.LOG_MISMATCH:
                raise
            log.warning("the server's replay arrived elsewhere, sending the weights", extra={"round_index": assignment.round.round_index})
            losses = submit(UpdateEncoding.DENSE)
        crash_point(CrashPoint.CLIENT_UPDATE_ANSWERED)
        self._report.losses(losses)
        self._server.took_part()
        self._sitting_out.took_part()
        self._report.round_done(assignment, statistics, reader=joined.reader, num_rounds=joined.membership.num_rounds)

    def _on_answer(self, answer: UploadAnswer) -> None:
        crash_point(CrashPoint.CLIENT_UPLOAD_ANSWERED)
        self._metrics.uploads_answered.inc()
        self._report.losses(answer.losses)

    def _leave(self, reason: str) -> None:
        if self.state is not SessionState.LEFT:
            self._enter(SessionState.LEFT)
            crash_point(CrashPoint.CLIENT_LEAVING)
            try:
                self._transport.leave(reason, self._peak_memory())
            except (TransportError, RefusedError) as exc:
                log.info("left without the server hearing it", extra={"reason": str(exc)})

    def _give_memory_back(self) -> None:
        if self._settings.owns_process:
            self.runs.memory.note()
            return_freed_memory()

    def _peak_memory(self) -> PeakMemory:
        return PeakMemory(resident_memory().peak_bytes, self.runs.memory.peak_bytes) if self._settings.owns_process else PeakMemory()
