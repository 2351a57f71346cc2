"""Random lives of a run, crashes included, against a dictionary of what was acknowledged: nothing acknowledged is lost, and nothing is trained twice.

Rounds, intake, worklist, ledger and spool are the server's own; only the network and the arithmetic are missing. A crash keeps the files and nothing
else. Where one is to happen inside an action, the files are copied at that very point, and the run goes on from the copy.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from heron_common.assignment import (
    Assignment,
    LocalStatistics,
    Membership,
    UploadKey,
    UploadPurpose,
    evaluation_specs,
    update_specs,
    upload_specs,
)
from heron_common.clock import ManualClock
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, StorageError
from heron_common.ids import RoundReference
from heron_common.plan import ServerSchedule, UpdateEncoding
from heron_common.tensors import total_bytes
from heron_server.rounds import coordinator, worklist
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.jobs import AbandonJob, CloseJob
from heron_server.rounds.state import WithoutQuorum
from heron_server.storage import ledger, spool
from tests.server.builders import MODEL
from tests.server.restartable_run import DEADLINE, LIVENESS, LOCAL_STEPS, Disk, RestartableRun, RunShape

DEVICES = ("a", "b", "c")
HELD_OUT_BATCHES = 1
SHAPES = [
    RunShape(clients=3, evaluation_batches=HELD_OUT_BATCHES),
    RunShape(schedule=ServerSchedule.LOCKSTEP, min_updates=2, evaluation_batches=HELD_OUT_BATCHES),
    RunShape(schedule=ServerSchedule.SHUFFLED, spool_bytes=300),
    RunShape("heron-server-loss", min_updates=2, without_quorum=WithoutQuorum.SKIP, spool_bytes=800),
    RunShape("sflv2", ServerSchedule.SEQUENTIAL, spool_bytes=300),
    RunShape("ho-sfl", min_updates=2, spool_bytes=500),
]


@dataclass
class Device:
    """What a client knows, as far as answers told it."""

    name: str
    session: str = ""
    assignment: Assignment | None = None
    next_step: int = 0
    """Of its round: how many uploads were acknowledged."""


@dataclass
class Acknowledged:
    """The dictionary model: everything that some client has an answer for."""

    uploads: dict[UploadKey, str] = field(default_factory=dict)
    updates: dict[tuple[RoundReference, str], str] = field(default_factory=dict)
    answers: dict[UploadKey, Any] = field(default_factory=dict)
    cohorts: dict[RoundReference, tuple[str, ...]] = field(default_factory=dict)
    """Attempts that some client was told of."""


@dataclass
class Snapshot:
    """The files of a run as a kill would leave them."""

    disk: Disk

    def restore(self, disk: Disk) -> None:
        shutil.rmtree(disk.directory)
        self.disk.directory.rename(disk.directory)
        disk.boundary, disk.inside = self.disk.boundary, self.disk.inside


class RunLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.known = Acknowledged()
        self.accepted: dict[UploadKey, str] = {}
        """Acknowledged, or about to be: what this process has, and the run if nothing is lost."""
        self.closed: dict[int, tuple[RoundReference, list[str]]] = {}
        """Rounds whose end some client may know of."""
        self.devices = {name: Device(name) for name in DEVICES}
        self.clock = ManualClock(1000.0)
        self.snapshot: Snapshot | None = None
        self.run: RestartableRun

    @initialize(shape=st.sampled_from(SHAPES))
    def begin(self, shape: RunShape) -> None:
        self.shape = shape
        self.disk = Disk(self.root / "run")
        self.disk.directory.mkdir()
        self.run = RestartableRun(self.disk, shape, self.clock, resumes=False)
        self.undone: set[RoundReference] = set()

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.kill()
        shutil.rmtree(self.root)

    # ---- calls as the network makes them ------------------------------------------------------------------------------------------

    def call(self, behaviour: Callable[[], Any]) -> Any:
        """Return the answer or the refusal that a client hears: either leaves only once the ledger is on disk; None if the disk refuses."""
        try:
            answer = behaviour()
        except RefusedError as exc:
            answer = exc
        self.note_ends()
        try:
            self.run.ledger.sync()
        except StorageError:
            return None
        self.note_committed()
        return answer

    def note_ends(self) -> None:
        """Remember an attempt that this process gave up."""
        closing = self.run.coordinator.closing
        if isinstance(closing, AbandonJob):
            self.undone.add(closing.round)

    def note_committed(self) -> None:
        closing = self.run.coordinator.closing
        if isinstance(closing, CloseJob):
            self.closed.setdefault(closing.round.round_index, (closing.round, sorted(u.client_id for u in closing.updates)))

    def record(self, device: Device) -> ClientRecord:
        return self.run.reception.client(device.session)

    def payload(self, size: int, *what: Any) -> bytes:
        digest = hashlib.sha256(repr(what).encode()).digest()
        return (digest * (size // len(digest) + 1))[:size]

    def send_upload(self, device: Device, purpose: UploadPurpose, step: int, variant: int) -> Any:
        """Send an upload of the round that a device knows, and hold the answer against what was answered before."""
        assert device.assignment is not None
        plan = device.assignment.plan
        specs = evaluation_specs(plan, MODEL, 2) if purpose is UploadPurpose.EVALUATE else upload_specs(plan, MODEL)
        key = UploadKey(device.assignment.round, device.name, purpose, step)
        data = self.payload(total_bytes(specs), key, variant)
        digest = hashlib.sha256(data).hexdigest()
        probes = 0 if purpose is UploadPurpose.EVALUATE else plan.num_probes

        def behaviour() -> Any:
            ticket = self.run.intake.admit_upload(self.record(device), "run", key, probes, specs, len(data))
            try:
                with ticket.writer or nullcontext():
                    if ticket.writer is not None:
                        ticket.writer.write(data)
                    self.run.intake.accept_upload(ticket, digest)
                    self.accepted.setdefault(key, digest)
            finally:
                self.run.intake.release(ticket)
            return self.answer(ticket)

        before = self.accepted.get(key)
        at_work = self.is_at_work(device)
        answer = self.call(behaviour)
        if before is not None and before != digest:
            assert not isinstance(answer, tuple), "other bytes for the same upload must not be acknowledged"
        if before == digest and at_work and isinstance(answer, RefusedError):
            assert "not kept" in answer.sentence, f"a repeated upload was refused: {answer.sentence}"
        if isinstance(answer, tuple):
            assert self.known.uploads.setdefault(key, digest) == digest
            if answer[1] is not None:
                assert self.known.answers.setdefault(key, answer[1:]) == answer[1:], "a repeated upload gets the stored answer"
        return answer

    def answer(self, ticket: Any) -> tuple[Any, ...]:
        """Return (accepted, version and losses, gradients); a plan whose steps need an answer that is not there yet leaves them None."""
        attempt = self.run.coordinator.attempt
        upload = attempt.uploads.get(ticket.key) if attempt is not None else None
        if attempt is None or upload is None or (attempt.assignment.plan.waits_for_answers and upload.answer is None):
            return ("accepted", None, None)
        said, gradient = self.run.intake.answer(ticket, 0)
        told = (said.server_version, said.probe_losses) if attempt.assignment.plan.waits_for_answers else None
        return ("accepted", told, bytes(gradient.read()) if gradient is not None else None)

    def send_update(self, device: Device, variant: int) -> Any:
        assert device.assignment is not None
        plan, reference = device.assignment.plan, device.assignment.round
        specs = update_specs(plan, MODEL, UpdateEncoding.DENSE)
        data = self.payload(total_bytes(specs), reference, device.name, variant)
        digest = hashlib.sha256(data).hexdigest()

        def behaviour() -> str:
            ticket = self.run.intake.admit_update(
                self.record(device), "run", reference, LOCAL_STEPS, UpdateEncoding.DENSE, specs, len(data)
            )
            try:
                with ticket.writer or nullcontext():
                    if ticket.writer is not None:
                        ticket.writer.write(data)
                    self.run.intake.accept_update(ticket, digest, b"", LocalStatistics(second_moment=1.0))
            finally:
                self.run.intake.release(ticket)
            return "accepted"

        answer = self.call(behaviour)
        if answer == "accepted":
            assert self.known.updates.setdefault((reference, device.name), digest) == digest
        return answer

    def is_at_work(self, device: Device) -> bool:
        """Whether the server counts a device as at work on the round that it knows."""
        run = self.run.coordinator
        if device.assignment is None or run.attempt is None or run.attempt.assignment.round != device.assignment.round:
            return False
        record = run.registry._by_session.get(device.session)
        return record is not None and run.machine.phase.value == "training" and run.status(record) == "training"

    # ---- what devices do ----------------------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        answer = self.call(lambda: self.run.reception.join(name, name * 16, 5, "test"))
        if isinstance(answer, Membership):
            self.devices[name].session = answer.session

    @rule(name=st.sampled_from(DEVICES), leaves=st.booleans())
    def leave_or_join_again(self, name: str, leaves: bool) -> None:
        device = self.devices[name]
        if leaves:
            self.call(lambda: self.run.reception.leave(self.record(device), "", 0))
        else:
            self.join(name)

    def ask(self, device: Device) -> None:
        """Ask what to do, joining first if the session is over."""
        answer = self.call(lambda: self.run.reception.next_step(self.record(device), None))
        if isinstance(answer, RefusedError) and answer.code is ErrorCode.SESSION_UNKNOWN:
            self.join(device.name)
            answer = self.call(lambda: self.run.reception.next_step(self.record(device), None))
        if not isinstance(answer, Assignment):
            return
        cohort = self.run.coordinator.attempt.cohort  # type: ignore[union-attr]
        assert self.known.cohorts.setdefault(answer.round, cohort) == cohort
        newest = max(reference for reference in self.known.cohorts if reference.round_index == answer.round.round_index)
        assert answer.round == newest, "numbers of attempts never go back"
        if device.assignment is None or device.assignment.round != answer.round:
            device.assignment, device.next_step = answer, 0

    def take_steps(self, device: Device, steps: int) -> None:
        """Go on where the device stands: its next uploads, and its update after the last."""
        self.ask(device)
        for _ in range(steps):
            if device.assignment is None:
                return
            if device.next_step == LOCAL_STEPS:
                self.send_update(device, 0)
                return
            if device.next_step == 0 and self.shape.evaluation_batches:
                self.send_upload(device, UploadPurpose.EVALUATE, 0, 0)
            answer = self.send_upload(device, self.purpose(device), device.next_step, 0)
            if isinstance(answer, tuple) and answer[1] is None and device.assignment.plan.waits_for_answers and self.run.work():
                self.note_ends()
                answer = self.send_upload(device, self.purpose(device), device.next_step, 0)
            if not isinstance(answer, tuple):
                return
            device.next_step += 1

    def purpose(self, device: Device) -> UploadPurpose:
        assert device.assignment is not None
        return UploadPurpose.PROBE if device.assignment.plan.num_probes else UploadPurpose.TRAIN

    @rule(name=st.sampled_from(DEVICES), steps=st.integers(1, 4))
    def go_on(self, name: str, steps: int) -> None:
        self.take_steps(self.devices[name], steps)

    @rule(names=st.sampled_from((("a", "b"), DEVICES)), in_turn=st.booleans(), rounds=st.integers(1, 2))
    def do_rounds(self, names: tuple[str, ...], in_turn: bool, rounds: int) -> None:
        """Several devices go on to the end of their round, in turn or one after the other."""
        for _ in range(rounds * (5 if in_turn else 2)):
            for name in names:
                self.take_steps(self.devices[name], 1 if in_turn else 4)
            self.work(40)

    @rule(name=st.sampled_from(DEVICES))
    def begin_the_round_again(self, name: str) -> None:
        """A device that lost its state sends everything once more."""
        device = self.devices[name]
        device.next_step = 0
        self.take_steps(device, 4)

    @precondition(lambda self: any(device.assignment for device in self.devices.values()))
    @rule(data=st.data(), step=st.integers(0, LOCAL_STEPS - 1), variant=st.sampled_from((0, 0, 0, 1)), evaluates=st.booleans())
    def send_anything(self, data: st.DataObject, step: int, variant: int, evaluates: bool) -> None:
        """Repeated, early, late, out of order, of a round that is over, or with other bytes."""
        device = self.devices[data.draw(st.sampled_from(sorted(name for name, d in self.devices.items() if d.assignment)))]
        self.send_upload(device, UploadPurpose.EVALUATE if evaluates else self.purpose(device), 0 if evaluates else step, variant)

    @precondition(lambda self: any(device.assignment for device in self.devices.values()))
    @rule(data=st.data(), variant=st.sampled_from((0, 0, 1)))
    def send_update_again(self, data: st.DataObject, variant: int) -> None:
        device = self.devices[data.draw(st.sampled_from(sorted(name for name, d in self.devices.items() if d.assignment)))]
        self.send_update(device, variant)

    # ---- what the server does ---------------------------------------------------------------------------------------------------

    @rule(jobs=st.sampled_from((1, 2, 3, 40)))
    def work(self, jobs: int) -> None:
        while jobs and self.run.work():
            self.note_ends()
            jobs -= 1

    @rule()
    def save_inside_round(self) -> None:
        self.run.save_inside_round()

    @rule(seconds=st.sampled_from((1.0, LIVENESS / 2, LIVENESS + 1, DEADLINE + 1)), heard=st.booleans())
    def time_passes(self, seconds: float, heard: bool) -> None:
        """With `heard`, members at work are heard of meanwhile, so that only the deadline passes."""
        while seconds > 0:
            self.clock.advance(min(seconds, LIVENESS / 2))
            seconds -= LIVENESS / 2
            for device in self.devices.values():
                if heard and self.is_at_work(device):
                    self.record(device)
            self.run.coordinator.tick()
            self.note_ends()

    # A round that is skipped while no checkpoint can be written is tried again after a crash, and later ones with it: see docs/reliability-memory.md.
    @precondition(lambda self: self.shape.without_quorum is WithoutQuorum.REPEAT)
    @rule(what=st.sampled_from(("nothing", "checkpoints", "anything")))
    def the_disk_refuses(self, what: str) -> None:
        self.disk.refuses, self.disk.refuses_checkpoints = what == "anything", what != "nothing"

    # ---- crashes ------------------------------------------------------------------------------------------------------------------

    @rule(drains=st.booleans())
    def crash_or_drain(self, drains: bool) -> None:
        self.note_ends()
        if drains:
            self.disk.refuses = False
            self.run.coordinator.drain()
            while self.run.work():
                pass
            self.run.ledger.sync()
        self.run.kill()
        self.come_back()

    @rule(name=st.sampled_from(DEVICES), hit=st.integers(0, 11), works=st.booleans())
    def crash_inside(self, name: str, hit: int, works: bool) -> None:
        """Die at one of the places where something was just done, or is about to be: in a device's calls, or in the trainer's jobs."""
        self.note_ends()
        before = copy.deepcopy((self.known, self.devices, self.closed, self.undone))
        self.snapshot, left = None, [hit]

        def at(*_: Any) -> None:
            if left[0] == 0:
                self.snapshot = self.take_snapshot()
            left[0] -= 1

        with (
            mock.patch.object(ledger, "crash_point", at),
            mock.patch.object(spool, "crash_point", at),
            mock.patch.object(coordinator, "crash_point", at),
            mock.patch.object(worklist, "crash_point", at),
        ):
            if works:
                self.work(6)
                self.run.save_inside_round()
            else:
                self.take_steps(self.devices[name], 2)
        undone = self.undone
        self.run.kill()
        if self.snapshot is not None:
            # Nobody heard what was said after the crash.
            self.known, self.devices, self.closed, self.undone = before
            self.undone |= undone
            self.snapshot.restore(self.disk)
        self.come_back()

    def take_snapshot(self) -> Snapshot:
        directory = self.root / "copy"
        shutil.copytree(self.disk.directory, directory)
        return Snapshot(Disk(directory, False, False, dict(self.disk.boundary), dict(self.disk.inside)))

    def come_back(self) -> None:
        self.disk.refuses = self.disk.refuses_checkpoints = False
        stood = self.run.trainer.undone_steps_stand
        self.run = RestartableRun(self.disk, self.shape, self.clock, resumes=True)
        self.run.trainer.undone_steps_stand = stood
        self.forget_what_was_lost()
        self.open_attempts_go_on()

    def forget_what_was_lost(self) -> None:
        """Read from the ledger what survived, and hold it against what was acknowledged."""
        rows = self.run.ledger._connection.execute("SELECT round_index, attempt, client_id, purpose, local_step, sha256 FROM uploads")
        survived = {UploadKey(RoundReference(r, a), c, UploadPurpose(p), s): digest for r, a, c, p, s, digest in rows}
        settled = self.run.ledger._connection.execute("SELECT round_index, attempt FROM attempts WHERE settled = 1").fetchall()
        over = {RoundReference(*row) for row in settled}
        assert survived.items() <= self.accepted.items(), "the ledger has what never came"
        self.accepted = {key: digest for key, digest in self.accepted.items() if key.round in over or key in survived}
        assert self.known.uploads.items() <= self.accepted.items(), "an acknowledged upload was lost in a crash"

    def open_attempts_go_on(self) -> None:
        """What clients were told of and did not end goes on, with the same number and cohort, in the same order."""
        if self.run.trainer.undone_steps_stand:
            # No checkpoint could be written, so an abandoned attempt was not undone; a restart undoes it, and what followed is repeated.
            return
        run = self.run.coordinator
        going_on = {a.round: tuple(a.cohort) for a in run._recorded}
        if run.attempt is not None:
            going_on[run.attempt.assignment.round] = run.attempt.cohort
        for reference, cohort in self.known.cohorts.items():
            if reference.round_index >= len(self.run.trainer.rounds) and reference not in self.undone:
                newer = [r for r in self.known.cohorts if r.round_index == reference.round_index and r > reference]
                assert newer or going_on.get(reference) == cohort, f"{reference} does not go on after a crash"

    # ---- what always holds --------------------------------------------------------------------------------------------------------

    @invariant()
    def everything_acknowledged_is_trained_exactly_once(self) -> None:
        trainer = self.run.trainer
        keys = [tuple(entry[:4]) for entry in trainer.lineage]
        assert len(set(keys)) == len(keys), "an upload was trained twice"
        trained = {tuple(entry[:4]): entry[4] for entry in trainer.lineage}
        accepted = {(*key.round, key.client_id, key.local_step): digest for key, digest in self.accepted.items() if _trains(key)}
        assert trained.items() <= accepted.items(), "something was trained that is not among what came"
        for round_index, attempt, taken, _ in trainer.rounds:
            if taken is None:
                continue
            reference = RoundReference(round_index, attempt)
            wanted = {(*k.round, k.client_id, k.local_step) for k in self.known.uploads if _trains(k) and k.round == reference}
            assert wanted <= trained.keys(), "an acknowledged upload of a closed round was not trained"
            updates = {name: digest for (of, name), digest in self.known.updates.items() if of == reference}
            assert updates.items() <= dict(taken).items(), "an acknowledged update of a closed round does not count"
            decided = self.closed.get(round_index, (reference, sorted(name for name, _ in taken)))
            assert decided == (reference, sorted(name for name, _ in taken)), "a round was closed otherwise than decided"

    @invariant()
    def rounds_follow_each_other(self) -> None:
        assert [entry[0] for entry in self.run.trainer.rounds] == list(range(len(self.run.trainer.rounds)))

    @invariant()
    def training_again_gives_what_was_told(self) -> None:
        """A trainer's answer depends on everything that was trained before, in its order."""
        assert self.run.trainer.undone_steps_stand or self.run.replay_mismatches == 0

    @invariant()
    def an_attempt_has_one_number_and_one_cohort(self) -> None:
        attempt = self.run.coordinator.attempt
        if attempt is not None:
            reference = attempt.assignment.round
            told = [r for r in self.known.cohorts if r.round_index == reference.round_index]
            assert all(reference >= r for r in told), "numbers of attempts never go back"
            assert self.known.cohorts.get(reference, attempt.cohort) == attempt.cohort

    @invariant()
    def the_spool_holds_what_is_needed(self) -> None:
        run = self.run.coordinator
        held = [entry for attempt in ([run.attempt] if run.attempt else []) + run._unsettled for entry in attempt.entries()]
        later = {name for attempt in run._recorded for name in attempt.files()}
        names = {entry.path.name: entry.size_bytes for entry in held}
        assert {name: size for name, size in self.run.files.items() if name not in later} == names
        assert self.run.spool.used_bytes == sum(names.values())

    @rule()
    def open_the_books(self) -> None:
        """The ledger's own account, and the files that it names."""
        self.disk.refuses = False
        run, balance = self.run.coordinator, self.run.ledger.balance()
        self.note_committed()
        assert balance.accepted == len(self.accepted)
        # A restart sets what no checkpoint covers back to accepted: it waits to be trained again, though its answer is kept and stands.
        waiting = [upload for upload in (run.attempt._all_uploads() if run.attempt else []) if not upload.trained]
        recorded = [upload for attempt in run._recorded for upload in attempt.uploads if upload.state == "accepted"]
        assert balance.waiting == len(waiting) + len(recorded), "the ledger counts something as waiting that nobody will train"
        assert {name for attempt in self.run.ledger.attempts() for name in attempt.files()} == set(self.run.files)


def _trains(key: UploadKey) -> bool:
    return key.purpose is not UploadPurpose.EVALUATE


QUICK = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_nothing_acknowledged_is_lost_and_nothing_trained_twice() -> None:
    run_state_machine_as_test(RunLife, settings=QUICK)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_many_more_lives() -> None:
    run_state_machine_as_test(RunLife, settings=settings(QUICK, max_examples=2000, stateful_step_count=60))
