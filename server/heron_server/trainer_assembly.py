"""Put the trainer's side of a run together: model, steps, gates, checkpoints, and the one thread that uses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from heron_common.algorithm.plan import HeadTraining
from heron_common.numerics.base_layout import base_layout
from heron_common.numerics.tensors import num_parameters
from heron_common.process.clock import Clock
from heron_server.configuration.config import TrainingConfig
from heron_server.configuration.section import value_of
from heron_server.metrics import ServerMetrics
from heron_server.models.split_model import infinite_buffers
from heron_server.publication import Published
from heron_server.rounds.facts import RunFacts
from heron_server.storage.audit import AuditTrail
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.storage.ledger import Ledger
from heron_server.storage.run_directory import RunDirectory, RunIdentity
from heron_server.summary import SUMMARY_VERSION, versions
from heron_server.training.alignment import HeadAlignment
from heron_server.training.best_checkpoint import BestCheckpoint
from heron_server.training.early_end import EarlyEnd, EndRules
from heron_server.training.event_files import EventFiles
from heron_server.training.fronts import FrontAverage
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.held_out_score import HeldOutScore
from heron_server.training.stepping import Stepper
from heron_server.training.tallies import RunTallies
from heron_server.training.trainer import Trainer, TrainerSettings
from heron_server.training.worker import TrainWorker


@dataclass(frozen=True)
class RunParts:
    """What both sides of a run use, the trainer's and the clients'."""

    identity: RunIdentity
    published: Published
    _: KW_ONLY
    trainer: Trainer
    ledger: Ledger
    facts: RunFacts
    metrics: ServerMetrics
    clock: Clock
    event_files: EventFiles | None


@dataclass(frozen=True)
class TrainerSide:
    """What trains, and what it goes back to."""

    worker: TrainWorker
    gatekeeper: Gatekeeper
    checkpoints: CheckpointStore


def make_trainer(config: TrainingConfig, published: Published) -> Trainer:
    """Return what steps the server's part of the model. Raises ConfigurationError where its device is not there."""
    algorithm = published.algorithm
    trains_head = algorithm.plan.head_training is HeadTraining.SERVER
    return Trainer(
        published.model, value_of(config.trainer, TrainerSettings), trains_head=trains_head, replicates_back=algorithm.replicates_back
    )


def assemble_trainer(
    config: TrainingConfig, directory: RunDirectory, *, parts: RunParts, client_table: Callable[[], dict[str, Any]]
) -> TrainerSide:
    """Build everything that the trainer's thread uses; it is not started."""
    published, trainer, metrics = parts.published, parts.trainer, parts.metrics
    facts, algorithm = parts.facts, parts.facts.algorithm
    infinite = infinite_buffers(published.model)
    checkpoints = CheckpointStore(directory.checkpoints, config.storage.keep_checkpoints, keep_first=algorithm.plan.logs, infinite=infinite)
    gatekeeper = Gatekeeper(config.gates.settings(), metrics)
    aligns = algorithm.plan.head_training is HeadTraining.ALIGNMENT
    alignment = HeadAlignment(published.model, algorithm.alignment) if aligns else None
    worker = TrainWorker(
        trainer=trainer,
        gatekeeper=gatekeeper,
        metrics=metrics,
        facts=facts,
        alignment=alignment,
        stepper=Stepper(facts, trainer=trainer, gatekeeper=gatekeeper, metrics=metrics, alignment=alignment, clock=parts.clock),
        held_out=HeldOutScore(trainer, facts.model),
        tallies=RunTallies(client_table, parts.ledger),
        best=BestCheckpoint(
            trainer=trainer, gatekeeper=gatekeeper, metrics=metrics, checkpoints=checkpoints, validation_source=published.validation_source
        ),
        fronts=FrontAverage(facts, trainer, AuditTrail(directory.audit)),
        ending=EarlyEnd(value_of(config.rounds, EndRules), config.run.rounds),
        checkpoints=checkpoints,
        ledger=parts.ledger,
        clock=parts.clock,
        eval_source=published.eval_source,
        event_files=parts.event_files,
        client_table=client_table,
        write_summary=directory.write_summary,
        summary_facts=_summary_facts(config, parts.facts.run_id, published),
    )
    return TrainerSide(worker, gatekeeper, checkpoints)


def _summary_facts(config: TrainingConfig, run_id: str, published: Published) -> dict[str, Any]:
    spec = published.model.to_spec()
    return {
        "summary_version": SUMMARY_VERSION,
        "run_id": run_id,
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
