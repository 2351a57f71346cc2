"""Where a run goes on after a restart: the newest checkpoint, and the recorded attempts that it does not cover."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field

from heron_common.errors import CheckpointError
from heron_common.files.plain_files import reading
from heron_common.ids import RoundReference
from heron_server.rounds.clients import ClientRegistry
from heron_server.rounds.owner import RoundOwner
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.storage.ledger import Ledger
from heron_server.storage.recorded import RecordedAttempt
from heron_server.summary import restore_clients
from heron_server.training.open_round import InsideRound
from heron_server.training.worker import TrainWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """What to go on with: recorded attempts in order, what a checkpoint inside the first of them says, if there is one, and who was there."""

    recorded: tuple[RecordedAttempt, ...] = ()
    inside: InsideRound | None = None
    _: KW_ONLY
    present: Mapping[str, str] = field(default_factory=dict)
    """Clients by name, with the digests of their identity keys."""
    begun: bool = True
    """Whether the run has a checkpoint already."""


def resume(
    worker: TrainWorker, checkpoints: CheckpointStore, *, ledger: Ledger, clients: ClientRegistry, skips: bool = False
) -> Resumption:
    """Do what `_resume` says.

    Raises:
        CheckpointError: there is no usable checkpoint, or it and the ledger do not hold what was expected.
        StorageError: the ledger cannot be used.

    """
    with reading("the newest checkpoint, or the ledger beside it,", CheckpointError):
        return _resume(worker, checkpoints, ledger=ledger, clients=clients, skips=skips)


def _resume(worker: TrainWorker, checkpoints: CheckpointStore, *, ledger: Ledger, clients: ClientRegistry, skips: bool) -> Resumption:
    """Load the newest checkpoint that is undamaged, settle what it covers, and return what is left to go on with.

    `skips` says that a round without a quorum counts as done.

    Raises:
        CheckpointError: there is no usable checkpoint.
        StorageError: the ledger cannot be used.

    """
    present = ledger.present_clients()
    if checkpoints.is_empty and not ledger.begun_attempts():
        # The first start was killed before its first checkpoint: the model is what it was then, for it follows from the configuration.
        log.info("the run had not begun yet")
        return Resumption(present=present, begun=False)
    boundary = checkpoints.read_newest()
    without_quorum = [a for a in ledger.attempts() if a.outcome == "abandoned" and a.round.round_index == boundary.completed_rounds]
    inside = _inside(checkpoints, boundary.completed_rounds, ledger.attempts())
    newest = inside or boundary
    recorded = _with_payloads(ledger, _unfinished(ledger, newest.completed_rounds), inside)
    opened = worker.restore_inside_round(inside) if inside is not None and recorded else None
    if opened is None:
        newest = boundary
        worker.restore(boundary)
    restore_clients(newest.state["clients"], clients.recall)
    if skips and without_quorum and not recorded:
        worker.skip_round(without_quorum[-1].round, len(without_quorum[-1].cohort))
    log.info("resuming", extra={"rounds_completed": len(worker.rounds), "open_rounds": len(recorded)})
    return Resumption(recorded, opened, present=present)


def open_rounds(owner: RoundOwner, worker: TrainWorker, inside: InsideRound | None) -> None:
    """Let rounds open, or the recorded one go on, inside it where a checkpoint was taken there.

    Raises:
        StorageError: the ledger's disk refuses.

    """
    inputs, covered = (inside.inputs, inside.positions) if inside is not None else (worker.inputs(), 0)
    if not owner.reopen(inputs, covered) and inside is not None:
        # The model has what the round had trained by then, and the round is repeated.
        worker.go_back()
        inputs = worker.inputs()
    owner.start(inputs)


def _inside(checkpoints: CheckpointStore, completed_rounds: int, attempts: tuple[RecordedAttempt, ...]) -> Checkpoint | None:
    """Return the checkpoint inside a round if that round can still be gone on with; it may be newer than any at a boundary, if the disk refused one."""
    checkpoint = checkpoints.read_open()
    if checkpoint is None or checkpoint.completed_rounds < completed_rounds:
        return None
    reference = RoundReference(*checkpoint.state["open_round"]["round"])
    return checkpoint if any(a.round == reference and a.outcome != "abandoned" for a in attempts) else None


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
            ledger.settled(attempt.round, "the checkpoint that it began from is damaged")
    return tuple(going_on)


def _with_payloads(ledger: Ledger, attempts: tuple[RecordedAttempt, ...], inside: Checkpoint | None) -> tuple[RecordedAttempt, ...]:
    """Return the attempts up to the first one that gave payloads up to a checkpoint that is damaged: it is undone, and so are those after it."""
    for place, attempt in enumerate(attempts):
        if _gave_payloads_up(attempt, inside if place == 0 else None):
            index = attempt.round.round_index
            log.warning("the checkpoint inside the open round is damaged: the round is repeated", extra={"round_index": index})
            for undone in attempts[place:]:
                ledger.settled(undone.round, "the checkpoint inside it is damaged")
            return attempts[:place]
    return attempts


def _gave_payloads_up(attempt: RecordedAttempt, inside: Checkpoint | None) -> bool:
    covered = int(inside.state["open_round"]["positions"]) if inside is not None else 0
    return any(
        upload.payload.name is None and not (upload.position is not None and upload.position < covered) for upload in attempt.uploads
    )
