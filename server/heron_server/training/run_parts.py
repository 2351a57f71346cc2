"""What the trainer's thread works with, put together once by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heron_common.assignment import DataSpecification, ModelSpec
from heron_common.clock import Clock
from heron_common.data.reading import SampleReader
from heron_common.plan import Algorithm
from heron_server.metrics import ServerMetrics
from heron_server.storage.audit import AuditTrail
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.storage.ledger import Ledger
from heron_server.training.alignment import HeadAlignment
from heron_server.training.event_files import EventFiles
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.trainer import Trainer


@dataclass(frozen=True)
class RunParts:
    """The model and what surrounds it; `alignment` only where clients have heads of their own."""

    trainer: Trainer
    algorithm: Algorithm
    data: DataSpecification
    model: ModelSpec
    eval_source: SampleReader | None
    checkpoints: CheckpointStore
    metrics: ServerMetrics
    write_summary: Callable[[dict[str, Any]], None]
    client_table: Callable[[], dict[str, Any]]
    clock: Clock
    run_seed: int
    audit: AuditTrail
    ledger: Ledger
    gatekeeper: Gatekeeper
    alignment: HeadAlignment | None
    event_files: EventFiles | None
    validation_source: SampleReader | None = None
    """What the best checkpoint is chosen by; None for the loss of server steps."""
