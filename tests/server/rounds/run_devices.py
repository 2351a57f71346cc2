"""A run's clients, driven by hand or at random, and a dictionary of what they were told; only the network and the arithmetic are missing."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heron_common.algorithm.payload_shapes import evaluation_specs, update_specs, upload_specs
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, StorageError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import total_bytes
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import Assignment, LocalStatistics, Membership, UploadKey, UploadPurpose
from heron_server.rounds.admission import UpdateHeader, UploadHeader
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.jobs import AbandonJob, CloseJob
from heron_server.rounds.owner import Answered
from tests.server.builders import MODEL
from tests.server.rounds.restartable_run import LOCAL_STEPS, Disk, RestartableRun, RunShape

DEVICES = ("a", "b", "c")


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


class DrivenRun:
    """A run, its devices, and what they know; `start` opens the run."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.known = Acknowledged()
        self.accepted: dict[UploadKey, str] = {}
        """Acknowledged, or about to be: what this process has, and the run if nothing is lost."""
        self.closed: dict[int, tuple[RoundReference, list[str]]] = {}
        """Rounds whose end some client may know of."""
        self.undone: set[RoundReference] = set()
        """Attempts that were given up."""
        self.devices = {name: Device(name) for name in DEVICES}
        self.clock = ManualClock(1000.0)
        self.disk = Disk(self.root / "run")
        self.run: RestartableRun

    def start(self, shape: RunShape) -> None:
        """Begin a run of this kind."""
        self.shape = shape
        self.disk.directory.mkdir()
        self.run = RestartableRun(self.disk, shape, self.clock, resumes=False)

    def end(self) -> None:
        """Remove everything."""
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
        closing = self.run.state.closing
        if isinstance(closing, AbandonJob):
            self.undone.add(closing.round)

    def note_committed(self) -> None:
        closing = self.run.state.closing
        if isinstance(closing, CloseJob):
            self.closed.setdefault(closing.round.round_index, (closing.round, sorted(u.client_id for u in closing.updates)))

    def record(self, device: Device) -> ClientRecord:
        return self.run.owner.client(device.session)

    def payload(self, size: int, *what: Any) -> bytes:
        digest = hashlib.sha256(repr(what).encode()).digest()
        return (digest * (size // len(digest) + 1))[:size]

    def upload_of(self, device: Device, purpose: UploadPurpose, step: int, variant: int) -> tuple[UploadKey, UploadHeader, bytes]:
        """Return the key, the header and the payload of an upload of the round that a device knows."""
        assert device.assignment is not None
        plan = device.assignment.plan
        specs = evaluation_specs(plan, MODEL, 2) if purpose is UploadPurpose.EVALUATE else upload_specs(plan, MODEL)
        key = UploadKey(device.assignment.round, device.name, purpose=purpose, local_step=step)
        data = self.payload(total_bytes(specs), key, variant)
        header = UploadHeader(
            session=device.session,
            speaker="",
            run_id="run",
            round=key.round,
            tensors=specs,
            total_bytes=len(data),
            purpose=purpose,
            local_step=step,
            num_probes=0 if purpose is UploadPurpose.EVALUATE else plan.num_probes,
        )
        return key, header, data

    def receive(self, header: UploadHeader, data: bytes) -> Answered | None:
        """Do what the network does with an upload, up to its answer, which has not left yet."""
        with self.run.receiver.open_upload(header) as incoming:
            incoming.take("activations", data)
            return self.run.receiver.accept_upload(incoming, hashlib.sha256(data).hexdigest())

    def send_upload(self, device: Device, purpose: UploadPurpose, step: int, variant: int) -> Any:
        """Send an upload of the round that a device knows, and hold the answer against what was answered before."""
        key, header, data = self.upload_of(device, purpose, step, variant)
        digest = hashlib.sha256(data).hexdigest()

        def behaviour() -> Any:
            answered = self.receive(header, data)
            self.accepted.setdefault(key, digest)
            return self.answer(key, answered)

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

    def answer(self, key: UploadKey, answered: Answered | None) -> tuple[Any, ...]:
        """Return (accepted, version and losses, gradients); a plan whose steps need an answer that is not there yet leaves them None."""
        attempt = self.run.state.attempt
        if attempt is None or answered is None or key not in attempt.uploads:
            return ("accepted", None, None)
        said, gradient = answered
        told = (said.server_version, said.probe_losses) if attempt.assignment.plan.waits_for_answers else None
        return ("accepted", told, bytes(gradient.read()) if gradient is not None else None)

    def send_update(self, device: Device, variant: int) -> Any:
        assert device.assignment is not None
        plan, reference = device.assignment.plan, device.assignment.round
        specs = update_specs(plan, MODEL, UpdateEncoding.DENSE)
        data = self.payload(total_bytes(specs), reference, device.name, variant)
        digest = hashlib.sha256(data).hexdigest()

        header = UpdateHeader(
            session=device.session,
            speaker="",
            run_id="run",
            round=reference,
            tensors=specs,
            total_bytes=len(data),
            steps=LOCAL_STEPS,
            encoding=UpdateEncoding.DENSE,
        )

        def behaviour() -> str:
            with self.run.receiver.open_update(header) as incoming:
                incoming.take("update", data)
                statistics = LocalStatistics(second_moment=1.0)
                self.run.receiver.accept_update(incoming, digest, weights_sha256=b"", statistics=statistics)
            return "accepted"

        answer = self.call(behaviour)
        if answer == "accepted":
            assert self.known.updates.setdefault((reference, device.name), digest) == digest
        return answer

    def is_at_work(self, device: Device) -> bool:
        """Whether the server counts a device as at work on the round that it knows."""
        run = self.run.state
        if device.assignment is None or run.attempt is None or run.attempt.assignment.round != device.assignment.round:
            return False
        record = run.registry._by_session.get(device.session)
        return record is not None and run.machine.phase.value == "training" and run.status(record) == "training"

    # ---- what devices do ----------------------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        answer = self.call(lambda: self.run.owner.join(name, name * 16, num_examples=5, version="test"))
        if isinstance(answer, Membership):
            self.devices[name].session = answer.session

    def ask(self, device: Device) -> None:
        """Ask what to do, joining first if the session is over."""
        answer = self.call(lambda: self.run.owner.next_step(device.session, None)[1])
        if isinstance(answer, RefusedError) and answer.code is ErrorCode.SESSION_UNKNOWN:
            self.join(device.name)
            answer = self.call(lambda: self.run.owner.next_step(device.session, None)[1])
        if not isinstance(answer, Assignment):
            return
        cohort = self.run.state.attempt.cohort  # type: ignore[union-attr]
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
