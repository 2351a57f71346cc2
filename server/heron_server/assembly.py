"""Put a run together from its configuration, with a network or without: the composition root. Only here is configuration unpacked."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from prometheus_client import CollectorRegistry

from heron_common.data.columns import with_names
from heron_common.error_catalog import ErrorCode
from heron_common.errors import StorageError
from heron_common.numerics.tensors import num_parameters
from heron_common.process.clock import Clock
from heron_common.protocol.timing import Timing
from heron_common.specification.data_specification import DataSpecification
from heron_server.configuration.config import MAY_CHANGE_ON_RESUME, ServerConfig, TrainingConfig
from heron_server.configuration.section import value_of
from heron_server.metrics import ServerMetrics
from heron_server.models.behaviour import behaviour, computes_otherwise
from heron_server.models.split_model import SplitModel
from heron_server.objects import NO_OBJECTS, Objects
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
from heron_server.storage.blobs import BlobStore
from heron_server.storage.ledger import Ledger
from heron_server.storage.run_directory import RunDirectory, RunIdentity
from heron_server.storage.spool import Spool
from heron_server.summary import client_table
from heron_server.trainer_assembly import RunParts, TrainerSide, assemble_trainer, make_trainer
from heron_server.training.event_files import EventFiles
from heron_server.training.open_round import InsideRound
from heron_server.training.worker import TrainWorker

if TYPE_CHECKING:
    from heron_server.service.tls import ServerTls

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """The running parts of a run, without a network; `ended` is set when the trainer has ended."""

    owner: RoundOwner
    receiver: Receiver
    _: KW_ONLY
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


def assemble(
    config: ServerConfig,
    directory: RunDirectory,
    *,
    registry: CollectorRegistry,
    clock: Clock,
    stop: threading.Event | None = None,
    objects: Objects = NO_OBJECTS,
) -> ServerAssembly:
    """Build everything; nothing is started, the port is bound.

    Raises:
        Interrupted, HeronError: see `run_server`.

    """
    # First: what stands in the way of TLS is known before minutes of compiling.
    tls = _tls(config.network.tls_dir)
    parts = assemble_run(
        config, directory, registry=registry, clock=clock, max_clients=config.network.max_clients, stop=stop, objects=objects
    )
    network = NetworkServer(
        parts.servicer,
        config.network.host,
        port=config.network.port,
        max_clients=config.network.max_clients,
        timing=parts.facts.timing,
        clock=clock,
        is_member=parts.owner.has_session,
        on_refusal=parts.on_refusal,
        before_answer=parts.owner.flush,
        tls=tls,
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
    *,
    registry: CollectorRegistry,
    clock: Clock,
    max_clients: int,
    pace: Pace | None = None,
    durable: bool = True,
    stop: threading.Event | None = None,
    objects: Objects = NO_OBJECTS,
) -> Assembly:
    """Build everything but a network; `pace` says how soon clients without work ask again, `durable` whether a power cut may cost nothing.

    `objects` are what was handed over in the place of names.

    Raises:
        Interrupted, HeronError: see `run_server`.

    """
    # Before anything is computed: with more threads than this, proving the programs of a small model takes ten times as long.
    torch.set_num_threads(config.trainer.server_threads)
    metrics = ServerMetrics(registry, lambda: spool.used_bytes, directory.path)
    parts = _begin(config, directory, metrics=metrics, clock=clock, durable=durable, stop=stop, objects=objects)
    clients = ClientRegistry(max_clients)

    def client_rows() -> dict[str, Any]:
        return owner.look(lambda run: client_table(run.registry.records()))

    side = assemble_trainer(config, directory, parts=parts, client_table=client_rows)
    left = _resumed(config, side, ledger=parts.ledger, clients=clients)
    spool = _spool(config, directory, left=left, durable=durable)
    machine = RoundMachine(_round_rules(config), len(side.worker.rounds), parts.ledger.begun_attempts())
    state = _run_state(parts, directory, machine=machine, clients=clients, spool=spool, left=left)
    owner = RoundOwner(state, _blobs(parts, directory), spool=spool, pace=pace)
    metrics.before_scrape = owner.add_up_bytes
    receiver = Receiver(owner, spool, parts.facts.run_seed)
    _log_plan(parts)
    return Assembly(
        owner=owner,
        receiver=receiver,
        spool=spool,
        queue=TrainerQueue(owner, spool, clock),
        worker=side.worker,
        servicer=Servicer(owner, receiver, data=parts.facts.data, heartbeat_seconds=parts.facts.timing.heartbeat_seconds),
        on_refusal=lambda code: metrics.rejections.labels(reason=code.value).inc(),
        ended=threading.Event(),
        identity=parts.identity,
        facts=parts.facts,
        ledger=parts.ledger,
        inside=left.inside,
        begins=not left.begun,
    )


def _begin(
    config: TrainingConfig,
    directory: RunDirectory,
    *,
    metrics: ServerMetrics,
    clock: Clock,
    durable: bool,
    stop: threading.Event | None,
    objects: Objects,
) -> RunParts:
    """Publish the run and open its ledger; nothing is written before everything fits."""
    resumes = config.run.resume
    identity = directory.identify(config.identity(), resumes, MAY_CHANGE_ON_RESUME)
    event_files = EventFiles(config.storage.tensorboard_dir) if config.storage.tensorboard_dir is not None else None
    published = publish_run(config, identity.columns, stop=stop, objects=objects)
    identity = _with_code(identity, published.model, resumes)
    trainer = make_trainer(config, published)
    ledger = Ledger(directory.ledger, identity.run_id, begins=not resumes, durable=durable)
    published = dataclasses.replace(published, data=_with_learnt(published.data, ledger.columns()))
    identity = dataclasses.replace(identity, columns=published.data.columns)
    facts = _run_facts(config, directory, run_id=identity.run_id, published=published)
    return RunParts(identity, published, trainer=trainer, ledger=ledger, facts=facts, metrics=metrics, clock=clock, event_files=event_files)


def _run_state(
    parts: RunParts, directory: RunDirectory, *, machine: RoundMachine, clients: ClientRegistry, spool: Spool, left: Resumption
) -> RunState:
    return RunState(
        facts=parts.facts,
        machine=machine,
        registry=clients,
        outbox=Outbox(parts.ledger, spool),
        metrics=parts.metrics,
        clock=parts.clock,
        recorded=left.recorded,
        present=left.present,
        keep_columns=lambda names: _keep_columns(directory, dataclasses.replace(parts.identity, columns=names)),
    )


def _run_facts(config: TrainingConfig, directory: RunDirectory, *, run_id: str, published: Published) -> RunFacts:
    run = config.run
    return RunFacts(
        run_id=run_id,
        run_seed=run.seed,
        data=published.data,
        model=published.model.to_spec(),
        programs=tuple(program.reference for program in published.programs),
        algorithm=published.algorithm,
        timing=Timing(config.rounds.liveness_seconds),
        base=write_frozen_weights(published.model, directory.blobs, run.resume),
        held_out=run.held_out,
        evaluation_batches=run.evaluation_batches if run.held_out > 0 else 0,
    )


def _resumed(config: TrainingConfig, side: TrainerSide, *, ledger: Ledger, clients: ClientRegistry) -> Resumption:
    """Go back to where a run that is resumed had come, and hear those again whom the operator releases."""
    # Dropout is drawn from torch's generator, which publishing may have moved more or less, depending on what was cached.
    torch.manual_seed(config.run.seed)
    left = Resumption(begun=False)
    if config.run.resume:
        skips = config.rounds.without_quorum is WithoutQuorum.SKIP
        left = resume(side.worker, side.checkpoints, ledger=ledger, clients=clients, skips=skips)
    side.gatekeeper.release(config.gates.released)
    return left


def _spool(config: TrainingConfig, directory: RunDirectory, *, left: Resumption, durable: bool) -> Spool:
    needed = {name for attempt in left.recorded for name in attempt.files()}
    return Spool(
        directory.spool,
        config.storage.spool_bytes,
        needed=needed,
        durable=durable,
        owner_bytes=config.client_spool_bytes,
        inbox_bytes=config.storage.inbox_bytes,
    )


def _with_learnt(data: DataSpecification, columns: tuple[str, ...]) -> DataSpecification:
    """Return the specification with the names of columns that the run has learnt from a client, if it has; its record may have them already."""
    return with_names(dataclasses.replace(data, columns=()), columns, of_client=True) if columns else data


def _keep_columns(directory: RunDirectory, identity: RunIdentity) -> None:
    """Write down names that the run has learnt, for those who read its directory; the ledger has them, and a restart writes them too."""
    try:
        directory.record(identity)
    except StorageError as exc:
        log.warning(str(exc))


def _with_code(identity: RunIdentity, model: SplitModel, resumes: bool) -> RunIdentity:
    """Return the identity with the code that the run began with; a resumed run whose code is another one says so and goes on."""
    if not resumes:
        own = model.probes.x if model.probes is not None and not model.probes.are_made_up else None
        return dataclasses.replace(identity, model_code=model.code_digest, behaviour=behaviour(model), probes=own)
    difference = identity.code_difference(computes_otherwise(identity.model_code, identity.behaviour, model))
    if difference:
        log.warning(difference)
    return identity


def _blobs(parts: RunParts, directory: RunDirectory) -> BlobStore:
    blobs, base = BlobStore(), parts.facts.base
    for program in parts.published.programs:
        blobs.put(program.data)
    if parts.published.model.tokenizer is not None:
        blobs.put(parts.published.model.tokenizer)
    if base is not None:
        blobs.put_file(base, directory.blobs / base.sha256)
    return blobs


def _round_rules(config: TrainingConfig) -> RoundRules:
    run = config.run
    return value_of(
        config.rounds, RoundRules, num_clients=run.clients, min_updates=config.min_updates, num_rounds=run.rounds, run_seed=run.seed
    )


def _log_plan(parts: RunParts) -> None:
    algorithm, plan = parts.facts.algorithm, parts.facts.algorithm.plan
    log.info(
        "plan",
        extra={
            "preset": plan.preset,
            "client_model_weights": num_parameters(parts.facts.model.client_model),
            "cut": "x".join(map(str, parts.facts.model.cut.shape)),
            "local_steps": plan.local_steps,
            "batch_size": plan.batch_size,
            "direction_groups": plan.direction_groups,
            "micro_batch": plan.micro_batch,
            "upload_interval": plan.upload_interval,
            "schedule": algorithm.schedule.value,
        },
    )
