"""Where a run goes on after a restart: the newest checkpoint, and the recorded attempts that it does not cover."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from heron_server.rounds.clients import ClientRecord, ClientRegistry
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.storage.ledger import Ledger
from heron_server.storage.recorded import RecordedAttempt
from heron_server.summary import restore_clients
from heron_server.training.open_round import OpenRound
from heron_server.training.worker import TrainWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """What to go on with: recorded attempts in order, and what a checkpoint inside the first of them says, if there is one."""

    recorded: tuple[RecordedAttempt, ...] = ()
    inside: OpenRound | None = None


def resume(worker: TrainWorker, checkpoints: CheckpointStore, ledger: Ledger, clients: ClientRegistry, skips: bool = False) -> Resumption:
    """Load the newest checkpoint that is undamaged, settle what it covers, and return what is left to go on with.

    `skips` says that a round without a quorum counts as done.

    Raises:
        CheckpointError: there is no usable checkpoint.
        StorageError: the ledger cannot be used.

    """
    boundary = checkpoints.read_newest()
    without_quorum = [a for a in ledger.attempts() if a.outcome == "abandoned" and a.round.round_index == boundary.completed_rounds]
    recorded = _unfinished(ledger, boundary.completed_rounds)
    inside = _inside(checkpoints, boundary.completed_rounds, recorded)
    if recorded and _gave_payloads_up(recorded[0], inside):
        # What was given up stood in a checkpoint that is damaged: the attempt is undone and its round repeated.
        log.warning(
            "the checkpoint inside the open round is damaged: the round is repeated", extra={"round_index": recorded[0].round.round_index}
        )
        _undo(ledger, recorded, "the checkpoint inside it is damaged")
        recorded = ()
    opened = worker.restore_inside_round(inside) if inside is not None and recorded else None
    if opened is None:
        worker.restore(boundary)

    def make(name: str) -> ClientRecord:
        return clients.by_name.setdefault(name, ClientRecord(name, identity_sha256=""))

    restore_clients((inside or boundary).state["clients"], make)
    if skips and without_quorum and not recorded:
        worker.skip_round(without_quorum[-1].round, len(without_quorum[-1].cohort))
    log.info("resuming", extra={"rounds_completed": len(worker.rounds), "open_rounds": len(recorded)})
    return Resumption(recorded, opened)


def _unfinished(ledger: Ledger, completed_rounds: int) -> tuple[RecordedAttempt, ...]:
    """Settle what is over, and return the attempts to go on with: the first begins at the checkpoint, each other where the one before ends."""
    going_on: list[RecordedAttempt] = []
    for attempt in ledger.attempts():
        index = attempt.round.round_index
        if attempt.outcome == "abandoned":
            ledger.settled(attempt.round, "without a quorum")
        elif index < completed_rounds:
            ledger.settled(attempt.round, None if attempt.outcome == "closing" else "the round was closed by another attempt")
        elif index == completed_rounds + len(going_on):
            going_on.append(attempt)
        else:
            log.warning("an open round began from a checkpoint that is damaged: it is repeated", extra={"round_index": index})
            _undo(ledger, (attempt,), "the checkpoint that it began from is damaged")
    return tuple(going_on)


def _inside(checkpoints: CheckpointStore, completed_rounds: int, recorded: tuple[RecordedAttempt, ...]) -> Checkpoint | None:
    checkpoint = checkpoints.read_open(completed_rounds)
    if checkpoint is None or not recorded or tuple(checkpoint.state["open_round"]["round"]) != tuple(recorded[0].round):
        return None
    return checkpoint


def _gave_payloads_up(attempt: RecordedAttempt, inside: Checkpoint | None) -> bool:
    covered = int(inside.state["open_round"]["positions"]) if inside is not None else 0
    return any(
        upload.payload.name is None and not (upload.position is not None and upload.position < covered) for upload in attempt.uploads
    )


def _undo(ledger: Ledger, attempts: tuple[RecordedAttempt, ...], reason: str) -> None:
    for attempt in attempts:
        ledger.settled(attempt.round, reason)
