"""Put a server together from its configuration: the composition root. Only here is configuration unpacked."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from heron_common.clock import Clock
from heron_common.data.check import check_source
from heron_common.data.sources import DataSource, open_source, parse_specification
from heron_common.plan import Algorithm, preset
from heron_server.config import MAY_CHANGE_ON_RESUME, PlanSection, ServerConfig
from heron_server.metrics import ServerMetrics
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.export import ProgramCache
from heron_server.programs.publish import PublishedProgram, complete_algorithm, publish
from heron_server.rounds.clients import ClientRecord, ClientRegistry
from heron_server.rounds.coordinator import Coordinator, RunFacts
from heron_server.rounds.intake import Intake
from heron_server.rounds.reception import Reception
from heron_server.rounds.state import RoundMachine, RoundRules
from heron_server.rounds.worklist import Worklist
from heron_server.service.server import NetworkServer
from heron_server.service.servicer import Servicer
from heron_server.storage.blobs import BlobStore
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.storage.run_directory import RunDirectory, RunIdentity
from heron_server.storage.spool import Spool
from heron_server.summary import SUMMARY_VERSION, client_table, restore_clients, versions
from heron_server.training.trainer import Trainer, TrainerSettings
from heron_server.training.worker import RunParts, TrainWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """The running parts of a server; `ended` is set when the trainer has ended."""

    coordinator: Coordinator
    reception: Reception
    worklist: Worklist
    worker: TrainWorker
    network: NetworkServer
    ended: threading.Event
    identity: RunIdentity


def assemble(config: ServerConfig, directory: RunDirectory, registry: CollectorRegistry, clock: Clock) -> Assembly:
    """Build everything; nothing is started, the port is bound.

    Raises:
        HeronError: see `run_server`.

    """
    # Before anything is computed: with more threads than this, proving the programs of a small model takes ten times as long.
    torch.set_num_threads(config.trainer.server_threads)
    data = parse_specification(config.run.data_spec)
    eval_source = _eval_source(config, data)
    algorithm = configured_algorithm(config.run.preset, config.plan)
    model = build_model(config.run.model, config.run.model_options, data, config.run.seed)
    algorithm, cost = complete_algorithm(algorithm, model)
    identity = directory.identify(config.identity(), config.run.resume, MAY_CHANGE_ON_RESUME)
    programs, parity = publish(algorithm, model, ProgramCache(config.storage.program_cache or default_program_cache()), config.run.seed)
    trains_head = algorithm.plan.head_training.value == "server"
    trainer = Trainer(model, _trainer_settings(config), trains_head)
    checkpoints = CheckpointStore(directory.checkpoints, config.storage.keep_checkpoints)
    spool = Spool(directory.spool, config.storage.spool_bytes)
    metrics = ServerMetrics(registry, lambda: spool.used_bytes)
    clients = ClientRegistry(config.network.max_clients)
    facts = RunFacts(identity.run_id, config.run.seed, data, model.to_spec(), tuple(p.reference for p in programs), algorithm)
    summary = {
        "summary_version": SUMMARY_VERSION,
        "run_id": identity.run_id,
        "preset": config.run.preset,
        "algorithm": dataclasses.asdict(algorithm),
        "configuration": config.model_dump(mode="json"),
        "num_rounds": config.run.rounds,
        "model": {
            "client_model_weights": cost.num_parameters - (_head_size(model) if algorithm.plan.needs_head else 0),
            "cut": list(facts.model.cut.shape),
        },
        "parity": dataclasses.asdict(parity),
        "versions": versions(),
    }
    run_parts = RunParts(
        trainer,
        algorithm,
        data,
        facts.model,
        eval_source,
        checkpoints,
        metrics,
        directory.write_summary,
        lambda: client_table(clients.by_name.values()),
        clock,
    )
    worker = TrainWorker(run_parts, summary)
    if config.run.resume:
        _resume(worker, checkpoints, clients)
    coordinator = _coordinator(config, facts, programs, clients, spool, metrics, clock, directory, len(worker.rounds))
    reception, intake = Reception(coordinator), Intake(coordinator)
    servicer = Servicer(reception, intake, metrics, data.num_classes)
    network = NetworkServer(
        servicer,
        config.network.host,
        config.network.port,
        config.network.max_clients,
        lambda code: metrics.rejections.labels(reason=code.value).inc(),
    )
    _log_plan(algorithm, cost.num_parameters, facts)
    return Assembly(coordinator, reception, Worklist(coordinator), worker, network, threading.Event(), identity)


def configured_algorithm(name: str, section: PlanSection) -> Algorithm:
    """Return a preset with the options that were given in its place.

    Raises:
        ConfigurationError: there is no such preset.

    """
    algorithm = preset(name)
    changes = {key: value for key, value in section.model_dump().items() if value is not None}
    renamed = {"client_learning_rate": "learning_rate", "client_optimiser": "optimiser", "server_schedule": "schedule"}
    changes = {renamed.get(key, key): value for key, value in changes.items()}
    around = {key: changes.pop(key) for key in ("schedule", "weighting", "warmup_rounds", "direction_scale") if key in changes}
    return dataclasses.replace(algorithm, plan=dataclasses.replace(algorithm.plan, **changes), **around)


def default_program_cache() -> Path:
    """Return the directory for compiled programs by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heron" / "programs"


def _eval_source(config: ServerConfig, data: Any) -> DataSource | None:
    if config.run.eval_data is None:
        return None
    source = open_source(config.run.eval_data)
    check_source(source, data)
    return source


def _trainer_settings(config: ServerConfig) -> TrainerSettings:
    t = config.trainer
    return TrainerSettings(
        t.server_optimiser, t.server_learning_rate, t.server_weight_decay, t.server_momentum, t.device, t.precision, t.server_threads
    )


def _resume(worker: TrainWorker, checkpoints: CheckpointStore, clients: ClientRegistry) -> None:
    checkpoint = checkpoints.read_newest()
    worker.restore(checkpoint)

    def make(name: str) -> ClientRecord:
        return clients.by_name.setdefault(name, ClientRecord(name, identity_key=""))

    restore_clients(checkpoint.state["clients"], make)
    log.info("resuming", extra={"rounds_completed": checkpoint.completed_rounds})


def _coordinator(
    config: ServerConfig,
    facts: RunFacts,
    programs: list[PublishedProgram],
    clients: ClientRegistry,
    spool: Spool,
    metrics: ServerMetrics,
    clock: Clock,
    directory: RunDirectory,
    completed_rounds: int,
) -> Coordinator:
    blobs = BlobStore()
    for program in programs:
        blobs.put(program.data)
    rounds = config.rounds
    rules = RoundRules(
        config.run.clients,
        config.min_updates,
        config.run.rounds,
        rounds.round_deadline_seconds,
        rounds.liveness_seconds,
        rounds.cohort_wait_seconds,
    )
    return Coordinator(
        facts,
        RoundMachine(rules, completed_rounds, directory.begun_attempts()),
        clients,
        spool,
        blobs,
        metrics,
        clock,
        directory.begin_attempt,
    )


def _head_size(model: SplitModel) -> int:
    return sum(p.numel() for p in model.auxiliary_head.parameters())


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
