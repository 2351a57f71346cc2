"""Put a run together from its configuration, with a network or without: the composition root. Only here is configuration unpacked."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from prometheus_client import CollectorRegistry

from heron_common.algorithm.plan import Algorithm, HeadTraining
from heron_common.error_catalog import ErrorCode
from heron_common.numerics.base_layout import base_layout
from heron_common.numerics.tensors import num_parameters
from heron_common.process.clock import Clock
from heron_common.protocol.timing import Timing
from heron_server.configuration.config import MAY_CHANGE_ON_RESUME, ServerConfig, TrainingConfig
from heron_server.metrics import ServerMetrics
from heron_server.models.behaviour import behaviour, computes_otherwise
from heron_server.models.split_model import SplitModel, infinite_buffers
from heron_server.publication import Published, publish_run, write_frozen_weights
from heron_server.resumption import Resumption, open_rounds, resume
from heron_server.rounds.clients import ClientRegistry
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.outbox import Outbox
from heron_server.rounds.owner import RoundOwner
from heron_server.rounds.pacing import Pace
from heron_server.rounds.receiving import Receiver
from heron_server.rounds.run_state import RunState
from heron_server.rounds.state import RoundMachine, RoundRules, WithoutQuorum
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.service.server import NetworkServer
from heron_server.service.servicer import Servicer
from heron_server.storage.audit import AuditTrail
from heron_server.storage.blobs import BlobStore
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.storage.ledger import Ledger
from heron_server.storage.run_directory import RunDirectory, RunIdentity
from heron_server.storage.spool import Spool
from heron_server.summary import SUMMARY_VERSION, client_table, versions
from heron_server.training.alignment import HeadAlignment
from heron_server.training.best_checkpoint import BestCheckpoint
from heron_server.training.event_files import EventFiles
from heron_server.training.fronts import FrontAverage
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.held_out_score import HeldOutScore
from heron_server.training.open_round import InsideRound
from heron_server.training.stepping import Stepper
from heron_server.training.tallies import RunTallies
from heron_server.training.trainer import Trainer, TrainerSettings
from heron_server.training.worker import TrainWorker

if TYPE_CHECKING:
    from heron_server.service.tls import ServerTls

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """The running parts of a run, without a network; `ended` is set when the trainer has ended."""

    owner: RoundOwner
    receiver: Receiver
    spool: Spool
    queue: TrainerQueue
    worker: TrainWorker
    servicer: Servicer
    on_refusal: Callable[[ErrorCode], None]
    ended: threading.Event
    identity: RunIdentity
    facts: RunFacts
    ledger: Ledger
    inside: InsideRound | None
    """What to go on with inside a round, where a checkpoint was taken there."""
    begins: bool
    """Whether the run has no checkpoint yet."""

    def open(self) -> None:
        """Let rounds open, or the recorded one go on; before any client is let in, or one that comes back would hear that its round is over."""
        open_rounds(self.owner, self.worker, self.inside)


@dataclass(frozen=True)
class ServerAssembly(Assembly):
    """A run that clients reach over a network."""

    network: NetworkServer


def assemble(config: ServerConfig, directory: RunDirectory, registry: CollectorRegistry, clock: Clock) -> ServerAssembly:
    """Build everything; nothing is started, the port is bound.

    Raises:
        HeronError: see `run_server`.

    """
    # First: what stands in the way of TLS is known before minutes of compiling.
    tls = _tls(config.network.tls_dir)
    parts = assemble_run(config, directory, registry, clock, config.network.max_clients)
    network = NetworkServer(
        parts.servicer,
        config.network.host,
        config.network.port,
        config.network.max_clients,
        parts.facts.timing,
        clock,
        parts.owner.has_session,
        parts.on_refusal,
        parts.owner.flush,
        tls,
    )
    return ServerAssembly(**vars(parts), network=network)


def _tls(directory: Path | None) -> ServerTls | None:
    if directory is None:
        return None
    # Only servers with --tls-dir load `cryptography`.
    from heron_server.service.tls import open_tls

    return open_tls(directory)


def assemble_run(
    config: TrainingConfig,
    directory: RunDirectory,
    registry: CollectorRegistry,
    clock: Clock,
    max_clients: int,
    pace: Pace | None = None,
    durable: bool = True,
) -> Assembly:
    """Build everything but a network; `pace` says how soon clients without work ask again, `durable` whether a power cut may cost nothing.

    Raises:
        HeronError: see `run_server`.

    """
    # Before anything is computed: with more threads than this, proving the programs of a small model takes ten times as long.
    torch.set_num_threads(config.trainer.server_threads)
    identity = directory.identify(config.identity(), config.run.resume, MAY_CHANGE_ON_RESUME)
    event_files = EventFiles(config.storage.tensorboard_dir) if config.storage.tensorboard_dir is not None else None
    published = publish_run(config, identity.columns)
    identity = _with_code(identity, published.model, config.run.resume)
    identity = dataclasses.replace(identity, columns=published.data.columns)
    algorithm, data = published.algorithm, published.data
    trains_head = algorithm.plan.head_training is HeadTraining.SERVER
    trainer = Trainer(published.model, _trainer_settings(config), trains_head, algorithm.replicates_back)
    infinite = infinite_buffers(published.model)
    checkpoints = CheckpointStore(directory.checkpoints, config.storage.keep_checkpoints, keep_first=algorithm.plan.logs, infinite=infinite)
    ledger = Ledger(directory.ledger, identity.run_id, begins=not config.run.resume, durable=durable)
    metrics = ServerMetrics(registry, lambda: spool.used_bytes, directory.path)
    clients = ClientRegistry(max_clients)
    references = tuple(program.reference for program in published.programs)
    base = write_frozen_weights(published.model, directory.blobs, config.run.resume)
    held_out = config.run.held_out
    facts = RunFacts(
        run_id=identity.run_id,
        run_seed=config.run.seed,
        data=data,
        model=published.model.to_spec(),
        programs=references,
        algorithm=algorithm,
        timing=Timing(config.rounds.liveness_seconds),
        base=base,
        held_out=held_out,
        evaluation_batches=config.run.evaluation_batches if held_out > 0 else 0,
    )

    def client_rows() -> dict[str, Any]:
        return owner.look(lambda run: client_table(run.registry.records()))

    gatekeeper = Gatekeeper(config.gates.settings(), metrics)
    worker = _worker(
        published,
        facts,
        trainer=trainer,
        gatekeeper=gatekeeper,
        checkpoints=checkpoints,
        ledger=ledger,
        metrics=metrics,
        clock=clock,
        event_files=event_files,
        client_table=client_rows,
        directory=directory,
        summary_facts=_summary_facts(config, identity, published),
    )
    # Dropout is drawn from torch's generator, which publishing may have moved more or less, depending on what was cached.
    torch.manual_seed(config.run.seed)
    left = (
        resume(worker, checkpoints, ledger, clients, config.rounds.without_quorum is WithoutQuorum.SKIP)
        if config.run.resume
        else Resumption(begun=False)
    )
    gatekeeper.release(config.gates.released)
    needed = {name for attempt in left.recorded for name in attempt.files()}
    storage = config.storage
    spool = Spool(directory.spool, storage.spool_bytes, needed, durable, config.client_spool_bytes, storage.inbox_bytes)
    machine = RoundMachine(_round_rules(config), len(worker.rounds), ledger.begun_attempts())
    run = RunState(
        facts=facts,
        machine=machine,
        registry=clients,
        outbox=Outbox(ledger, spool),
        metrics=metrics,
        clock=clock,
        recorded=left.recorded,
        present=left.present,
    )
    owner = RoundOwner(run, _blobs(facts, published, directory), spool, pace)
    metrics.before_scrape = owner.add_up_bytes
    receiver = Receiver(owner, spool, facts.run_seed)
    servicer = Servicer(owner, receiver, data, facts.timing.heartbeat_seconds)
    _log_plan(algorithm, published.cost.num_parameters, facts)

    def on_refusal(code: ErrorCode) -> None:
        metrics.rejections.labels(reason=code.value).inc()

    return Assembly(
        owner=owner,
        receiver=receiver,
        spool=spool,
        queue=TrainerQueue(owner, spool, clock),
        worker=worker,
        servicer=servicer,
        on_refusal=on_refusal,
        ended=threading.Event(),
        identity=identity,
        facts=facts,
        ledger=ledger,
        inside=left.inside,
        begins=not left.begun,
    )


def _with_code(identity: RunIdentity, model: SplitModel, resumes: bool) -> RunIdentity:
    """Return the identity with the code that the run began with; a resumed run whose code is another one says so and goes on."""
    if not resumes:
        own = model.probes.x if model.probes is not None and not model.probes.are_made_up else None
        return dataclasses.replace(identity, model_code=model.code_digest, behaviour=behaviour(model), probes=own)
    difference = identity.code_difference(computes_otherwise(identity.model_code, identity.behaviour, model))
    if difference:
        log.warning(difference)
    return identity


def _worker(
    published: Published,
    facts: RunFacts,
    *,
    trainer: Trainer,
    gatekeeper: Gatekeeper,
    checkpoints: CheckpointStore,
    ledger: Ledger,
    metrics: ServerMetrics,
    clock: Clock,
    event_files: EventFiles | None,
    client_table: Callable[[], dict[str, Any]],
    directory: RunDirectory,
    summary_facts: dict[str, Any],
) -> TrainWorker:
    aligns = facts.algorithm.plan.head_training is HeadTraining.ALIGNMENT
    alignment = HeadAlignment(published.model, facts.algorithm.alignment) if aligns else None
    return TrainWorker(
        trainer=trainer,
        facts=facts,
        gatekeeper=gatekeeper,
        alignment=alignment,
        stepper=Stepper(facts, trainer=trainer, gatekeeper=gatekeeper, alignment=alignment, metrics=metrics, clock=clock),
        held_out=HeldOutScore(trainer, facts.model),
        tallies=RunTallies(client_table, ledger),
        best=BestCheckpoint(
            trainer=trainer,
            checkpoints=checkpoints,
            gatekeeper=gatekeeper,
            metrics=metrics,
            validation_source=published.validation_source,
        ),
        fronts=FrontAverage(facts, trainer, AuditTrail(directory.audit)),
        checkpoints=checkpoints,
        ledger=ledger,
        metrics=metrics,
        clock=clock,
        eval_source=published.eval_source,
        event_files=event_files,
        client_table=client_table,
        write_summary=directory.write_summary,
        summary_facts=summary_facts,
    )


def _summary_facts(config: TrainingConfig, identity: RunIdentity, published: Published) -> dict[str, Any]:
    spec = published.model.to_spec()
    return {
        "summary_version": SUMMARY_VERSION,
        "run_id": identity.run_id,
        "preset": config.run.preset,
        "algorithm": dataclasses.asdict(published.algorithm),
        "configuration": config.model_dump(mode="json"),
        "num_rounds": config.run.rounds,
        "model": {
            "client_model_weights": num_parameters(spec.client_model),
            "cut": list(spec.cut.shape),
            "base_bytes": base_layout(spec.base).total_bytes,
            "base_storage": published.model.base_storage.value,
            "base_error": published.model.base_error,
        },
        "parity": dataclasses.asdict(published.parity),
        "versions": versions(),
    }


def _trainer_settings(config: TrainingConfig) -> TrainerSettings:
    t = config.trainer
    return TrainerSettings(t.server_optimiser, t.server_learning_rate, t.server_weight_decay, t.server_momentum, t.device, t.precision)


def _blobs(facts: RunFacts, published: Published, directory: RunDirectory) -> BlobStore:
    blobs = BlobStore()
    for program in published.programs:
        blobs.put(program.data)
    if published.model.tokenizer is not None:
        blobs.put(published.model.tokenizer)
    if facts.base is not None:
        blobs.put_file(facts.base, directory.blobs / facts.base.sha256)
    return blobs


def _round_rules(config: TrainingConfig) -> RoundRules:
    rounds = config.rounds
    return RoundRules(
        config.run.clients,
        config.min_updates,
        config.run.rounds,
        rounds.round_deadline_seconds,
        rounds.liveness_seconds,
        rounds.cohort_wait_seconds,
        rounds.participation,
        config.run.seed,
        rounds.over_selection,
        rounds.without_quorum,
    )


def _log_plan(algorithm: Algorithm, num_parameters: int, facts: RunFacts) -> None:
    plan = algorithm.plan
    log.info(
        "plan",
        extra={
            "preset": plan.preset,
            "client_weights": num_parameters,
            "cut": "x".join(map(str, facts.model.cut.shape)),
            "local_steps": plan.local_steps,
            "batch_size": plan.batch_size,
            "direction_groups": plan.direction_groups,
            "micro_batch": plan.micro_batch,
            "upload_interval": plan.upload_interval,
            "schedule": algorithm.schedule.value,
        },
    )
