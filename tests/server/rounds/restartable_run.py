"""The server's real rounds and storage around a trainer that only writes down what it was given; killed and started again on the same files."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.algorithm.payload_shapes import cut_gradient_specs
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.algorithm.presets import preset
from heron_common.errors import CheckpointError, StorageError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import total_bytes
from heron_common.process.clock import ManualClock
from heron_server.metrics import ServerMetrics
from heron_server.resumption import Resumption, open_rounds, resume
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.clients import ClientRegistry
from heron_server.rounds.jobs import AbandonJob, CloseJob, Job, RoundInputs, SaveJob, ScoreJob, TrainJob
from heron_server.rounds.outbox import Outbox
from heron_server.rounds.owner import RoundOwner
from heron_server.rounds.progress import inputs_of_open_round
from heron_server.rounds.receiving import Receiver
from heron_server.rounds.run_state import RunState
from heron_server.rounds.state import RoundMachine, RoundRules, WithoutQuorum
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.storage.blobs import BlobStore
from heron_server.storage.checkpoint import Checkpoint
from heron_server.storage.ledger import Ledger
from heron_server.storage.spool import Spool
from heron_server.summary import client_table
from heron_server.training.open_round import InsideRound
from tests.server.builders import MODEL, run_facts

RUN_ID = "run"
LOCAL_STEPS = 3
LIVENESS, DEADLINE = 30.0, 100.0


@dataclass
class Disk:
    """A run's files, and whether the disk takes more; checkpoints are JSON texts here, and outlive the process as files do."""

    directory: Path
    refuses: bool = False
    refuses_checkpoints: bool = False
    """They are large, so that a full disk refuses them first."""
    boundary: dict[int, str] = field(default_factory=dict)
    inside: dict[int, str] = field(default_factory=dict)


class FakeCheckpoints:
    """What the trainer and `resume` ask of a checkpoint store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def write(self, checkpoint: Checkpoint) -> None:
        self._refuse()
        self._disk.boundary[checkpoint.completed_rounds] = json.dumps(checkpoint.state)
        self.drop_open()

    def write_open(self, checkpoint: Checkpoint) -> None:
        self._refuse()
        self._disk.inside = {checkpoint.completed_rounds: json.dumps(checkpoint.state)}

    def read_newest(self) -> Checkpoint:
        newest = max(self._disk.boundary)
        return Checkpoint(newest, {}, json.loads(self._disk.boundary[newest]))

    @property
    def is_empty(self) -> bool:
        return not self._disk.boundary

    def read_open(self) -> Checkpoint | None:
        found = list(self._disk.inside.items())
        return Checkpoint(found[0][0], {}, json.loads(found[0][1])) if found else None

    def drop_open(self) -> None:
        self._disk.inside = {}

    def _refuse(self) -> None:
        if self._disk.refuses or self._disk.refuses_checkpoints:
            raise CheckpointError("the disk is full")


class WatchedLedger(Ledger):
    """A ledger whose disk may refuse, that counts its commits, and that can be killed with what is queued."""

    def __init__(self, disk: Disk, begins: bool) -> None:
        self.disk = disk
        self.commits = 0
        super().__init__(disk.directory / "ledger.sqlite", RUN_ID, begins=begins, durable=False)

    def _commit(self, batch: list[tuple[str, tuple[Any, ...]]]) -> None:
        if self.disk.refuses:
            raise sqlite3.OperationalError("database or disk is full")
        super()._commit(batch)
        self.commits += 1

    def kill(self) -> None:
        self._connection.close()


class FakeTrainer:
    """Everything it was given, in order: `lineage` has an entry for each upload, `rounds` one for each round. Both are all that the next round depends on."""

    def __init__(self, checkpoints: FakeCheckpoints, ledger: Ledger, registry: ClientRegistry) -> None:
        self._checkpoints, self._ledger, self._registry = checkpoints, ledger, registry
        self.lineage: list[list[Any]] = []
        self.rounds: list[list[Any]] = []
        self._unwritten: Checkpoint | None = None

    # What `resume` asks of a trainer.

    def restore(self, checkpoint: Checkpoint) -> None:
        self.lineage, self.rounds = checkpoint.state["lineage"], checkpoint.state["rounds"]

    def restore_inside_round(self, checkpoint: Checkpoint) -> InsideRound:
        self.restore(checkpoint)
        was = checkpoint.state["open_round"]
        inputs = RoundInputs(bytes.fromhex(was["front"]), bytes.fromhex(was["head"]), scales=(1.0, 1.0), second_moment=0.0)
        return InsideRound(RoundReference(*was["round"]), inputs, was["positions"])

    def skip_round(self, reference: RoundReference, num_members: int) -> bool:
        self.rounds.append([*reference, None, []])
        return self.save()

    # What the trainer's thread does.

    def inputs(self) -> RoundInputs:
        seed = int(self._state_digest()[:8], 16)
        numbers = np.random.default_rng(seed).standard_normal(14).astype("<f4")
        return RoundInputs(numbers[:9].tobytes(), numbers[9:].tobytes(), scales=(1.0, 1.0), second_moment=0.0)

    def save(self) -> bool:
        checkpoint = Checkpoint(len(self.rounds), {}, self._state())
        written = self._written(lambda: self._checkpoints.write(checkpoint))
        self._unwritten = None if written else copy.deepcopy(checkpoint)
        return written

    def run(self, job: Job, queue: TrainerQueue) -> None:
        if isinstance(job, TrainJob):
            self._train(job, queue)
        elif isinstance(job, ScoreJob):
            _read(job.upload)
            queue.upload_scored(job.upload)
        elif isinstance(job, SaveJob):
            queue.open_round_saved(self._save_inside(job))
        elif isinstance(job, CloseJob):
            taken = [[update.client_id, hashlib.sha256(update.entry.read()).hexdigest()] for update in job.updates if update.entry]
            assert [digest for _, digest in taken] == [update.sha256 for update in job.updates]
            self.rounds.append([*job.round, taken, list(job.cohort)])
            queue.round_done(self.inputs(), self.save())
        elif isinstance(job, AbandonJob):
            self.go_back()
            covered = job.skips and self.skip_round(job.round, job.num_members)
            queue.round_done(self.inputs(), covered)

    def _train(self, job: TrainJob, queue: TrainerQueue) -> None:
        version = len(self.lineage)
        for upload in job.uploads:
            key = upload.key
            self.lineage.append([*key.round, key.client_id, key.local_step, _read(upload)])
        digest = self._state_digest()
        for upload in job.uploads:
            probes = (float(int(digest[8:16], 16)),) * (1 + job.plan.num_probes) if job.plan.num_probes else None
            size = total_bytes(cut_gradient_specs(job.plan, MODEL))
            queue.upload_trained(
                upload,
                float(int(digest[:8], 16)),
                probes,
                server_version=version,
                cut_gradient=(bytes.fromhex(digest) * size)[:size] if size else None,
            )

    def _save_inside(self, job: SaveJob) -> bool:
        was = {"round": list(job.round), "positions": job.positions, "front": job.inputs.front.hex(), "head": job.inputs.head.hex()}
        state = {**self._state(), "open_round": was}
        return self._written(lambda: self._checkpoints.write_open(Checkpoint(len(self.rounds), {}, state)))

    def go_back(self) -> None:
        checkpoint = self._unwritten or self._checkpoints.read_newest()
        assert checkpoint.completed_rounds == len(self.rounds), "the abandoned attempt's steps would stand"
        self.lineage = copy.deepcopy(checkpoint.state["lineage"])
        if self._unwritten is None:
            self._checkpoints.drop_open()

    def _written(self, write: Any) -> bool:
        try:
            self._ledger.sync()
            write()
        except StorageError:
            return False
        return True

    def _state(self) -> dict[str, Any]:
        return {"lineage": self.lineage, "rounds": self.rounds, "clients": client_table(self._registry.records())}

    def _state_digest(self) -> str:
        return hashlib.sha256(json.dumps([self.lineage, self.rounds]).encode()).hexdigest()


def _read(upload: AcceptedUpload) -> str:
    digest = hashlib.sha256(upload.payload().read()).hexdigest()
    assert digest == upload.sha256, "the spool has other bytes than were acknowledged"
    return digest


@dataclass(frozen=True)
class RunShape:
    """What kind of run it is."""

    preset: str = "heron"
    schedule: ServerSchedule = ServerSchedule.ARRIVAL
    clients: int = 2
    min_updates: int = 1
    rounds: int = 12
    without_quorum: WithoutQuorum = WithoutQuorum.REPEAT
    spool_bytes: int = 1 << 20
    evaluation_batches: int = 0


class RestartableRun:
    """One process of a run: `kill` it, and make another with the same disk."""

    def __init__(self, disk: Disk, shape: RunShape, clock: ManualClock, resumes: bool) -> None:
        self.disk, self.clock = disk, clock
        algorithm = preset(shape.preset)
        steps = {"local_steps": LOCAL_STEPS, "batch_size": 2, "direction_groups": 2, "micro_batch": 1}
        plan = dataclasses.replace(algorithm.plan, update_encoding=UpdateEncoding.DENSE, **steps)
        algorithm = dataclasses.replace(algorithm, plan=plan, schedule=shape.schedule, warmup_rounds=0)
        self.facts = dataclasses.replace(run_facts(evaluation_batches=shape.evaluation_batches), run_id=RUN_ID, algorithm=algorithm)
        self.ledger = WatchedLedger(disk, begins=not resumes)
        registry = ClientRegistry(10)
        self.trainer = FakeTrainer(FakeCheckpoints(disk), self.ledger, registry)
        skips = shape.without_quorum is WithoutQuorum.SKIP
        checkpoints: Any = FakeCheckpoints(disk)
        trainer: Any = self.trainer
        left = resume(trainer, checkpoints, ledger=self.ledger, clients=registry, skips=skips) if resumes else Resumption()
        self.spool = Spool(disk.directory / "spool", shape.spool_bytes, needed={n for a in left.recorded for n in a.files()}, durable=False)
        self.metrics = CollectorRegistry()
        rules = RoundRules(
            shape.clients,
            shape.min_updates,
            num_rounds=shape.rounds,
            round_deadline_seconds=DEADLINE,
            liveness_seconds=LIVENESS,
            cohort_wait_seconds=0.0,
            run_seed=7,
            without_quorum=shape.without_quorum,
        )
        self.state = RunState(
            facts=self.facts,
            machine=RoundMachine(rules, len(self.trainer.rounds), self.ledger.begun_attempts()),
            registry=registry,
            outbox=Outbox(self.ledger, self.spool),
            metrics=ServerMetrics(self.metrics, lambda: self.spool.used_bytes, disk.directory),
            clock=clock,
            recorded=left.recorded,
            present=left.present,
        )
        self.owner = RoundOwner(self.state, BlobStore(), spool=self.spool)
        self.receiver = Receiver(self.owner, self.spool, run_seed=7)
        self.queue = TrainerQueue(self.owner, self.spool, clock)
        if not resumes:
            self.trainer.save()
        open_rounds(self.owner, self.trainer, left.inside)  # type: ignore[arg-type]
        self.owner._outbox.delete_given_up()

    @property
    def replay_mismatches(self) -> float:
        """How many uploads were trained again with another result than before."""
        return self.metrics.get_sample_value("heron_server_replay_mismatches_total") or 0.0

    @property
    def files(self) -> dict[str, int]:
        """Files of the spool and their sizes."""
        return {path.name: path.stat().st_size for path in (self.disk.directory / "spool").iterdir()}

    def work(self) -> bool:
        """Do one job of the trainer, if there is one."""
        job = self.queue.ready_job()
        if job is not None:
            self.trainer.run(job, self.queue)
        self.owner._outbox.delete_given_up()
        return job is not None

    def save_inside_round(self) -> None:
        """Do what a full spool would ask for."""
        attempt = self.state.attempt
        if attempt is not None and self.state.closing is None and self.state.start_is_saved:
            inputs = inputs_of_open_round(self.state)
            self.trainer.run(SaveJob(attempt.assignment.round, attempt.cohort, positions=attempt.positions, inputs=inputs), self.queue)
            self.owner._outbox.delete_given_up()

    def kill(self) -> None:
        """Forget everything but the files; what the ledger has not committed is lost."""
        self.ledger.kill()
