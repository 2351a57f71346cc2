"""What clients ask: to join, what to do next, for blobs, to leave. Changes the owner's state, under its lock."""

from __future__ import annotations

import dataclasses
import time
from random import Random

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.protocol.messages import Assignment, Finished, Membership, NextStep, PeakMemory, Wait
from heron_server.rounds.clients import ClientRecord, session_over
from heron_server.rounds.pacing import Pace, ask_again_seconds
from heron_server.rounds.run_state import RunState
from heron_server.rounds.state import MemberStatus, Phase


def join(
    run: RunState, name: str, identity_key: str, *, num_examples: int, version: str, speaker: str, columns: tuple[str, ...]
) -> Membership:
    """Open a session for a client that proved to be `speaker`, or proved nothing; see `ClientRegistry.join` for refusals.

    The names of its columns become the run's, for good, where that has none and they fit.
    """
    run.refuse_if_draining()
    record = run.registry.join(name, identity_key, speaker)
    run.orphan_stream(record, session_over())
    run.outbox.ledger.joined(name, record.identity_sha256)
    run.registry.forget_departed(but=run.attempt.cohort if run.attempt is not None else ())
    record.num_examples, record.version, record.heard_at = num_examples, version, run.clock.now()
    run.learn_columns(name, columns)
    run.outbox.info("client joined", client=name, examples=num_examples, version=version)
    run.advance(lambda now: run.machine.seen(name, now))
    return _membership(run, record)


def visit(run: RunState, speaker: str, address: str) -> Membership:
    """Open a session for a client that only checks its data or its device: no round waits for it or takes it in.

    It is told the plan of a round that trains, and what the clock says here, for it will see no assignment.
    """
    run.refuse_if_draining()
    membership = _membership(run, run.visits.open(speaker, address))
    return dataclasses.replace(membership, plan=run.facts.algorithm.plan, server_time_seconds=time.time())


def client_of(run: RunState, session: str, speaker: str) -> ClientRecord:
    """Return the client of a session and count the call as a sign of life; refuses unknown sessions, and those that another speaker opened."""
    visitor = run.visits.of_session(session)
    record = visitor or run.registry.of_session(session)
    run.registry.check_speaker(record, speaker)
    if visitor is None:
        run.heard(record)
    return record


def next_step(run: RunState, record: ClientRecord, training: RoundReference | None, *, pace: Pace, random: Random) -> NextStep:
    """Return what a client should do: its assignment, a wait, or that the run is finished.

    Raises:
        RefusedError: ROUND_OVER if it is at work on a round that is over for it; DRAINING.

    """
    if run.machine.phase is Phase.FINISHED:
        return Finished(run.machine.end_reason)
    run.refuse_if_draining()
    assignment = assignment_of(run, record)
    if training is not None and (assignment is None or training != assignment.round):
        raise RefusedError(ErrorCode.ROUND_OVER, f"{training.in_words} is over for this client")
    if assignment is not None:
        return assignment
    phase = run.machine.phase
    opens_soon = phase is Phase.CLOSING or (phase is Phase.TRAINING and run.status(record) is not None)
    at_least = pace.closing_seconds if opens_soon else pace.idle_seconds
    return Wait(
        ask_again_seconds(at_least, run.registry.num_live, random),
        run.waiting_for() if phase is Phase.WAITING else f"the run is {phase.value}",
    )


def has_news(run: RunState, record: ClientRecord) -> bool:
    """Whether there is anything to say to a client but that it should wait."""
    return run.draining or run.machine.phase is Phase.FINISHED or assignment_of(run, record) is not None


def assignment_of(run: RunState, record: ClientRecord) -> Assignment | None:
    """Return a client's assignment, if it is at work."""
    if run.attempt is None or run.machine.phase is not Phase.TRAINING or run.status(record) is not MemberStatus.TRAINING:
        return None
    return run.attempt.assignment_for(record.name)


def check_blob(run: RunState, record: ClientRecord, sha256: str) -> str:
    """Return the kind of a blob for the byte count: what stays over the run by its kind, the weights of a round otherwise.

    Raises:
        RefusedError: BLOB_UNKNOWN: neither this client's join nor its assignment named it.

    """
    kinds = run.facts.blob_kinds
    if sha256 in kinds:
        return kinds[sha256]
    for attempt in (run.attempt, run.previous):
        if attempt is not None and record.name in attempt.cohort:
            assignment = attempt.assignment_for(record.name)
            if sha256 in {blob.sha256 for blob in (assignment.client_model, assignment.auxiliary_head, assignment.statistics) if blob}:
                return "weights"
    raise unknown_blob(sha256)


def unknown_blob(sha256: str) -> RefusedError:
    """Return the refusal of a blob that nobody named, or that is not kept any more."""
    return RefusedError(
        ErrorCode.BLOB_UNKNOWN,
        f"blob {sha256[:12]!r} was not named in this client's join or assignment: ask for the next assignment",
    )


def leave(run: RunState, record: ClientRecord, *, reason: str, peak: PeakMemory) -> None:
    """A client says goodbye."""
    if run.visits.of_session(record.session) is not None:
        run.visits.end(record.session)
        return
    run.orphan_stream(record, session_over())
    record.note_memory(peak)
    run.depart(record, forget_session=True)
    run.outbox.info("client left", client=record.name, reason=reason[:200])
    run.advance(lambda now: run.machine.departed(record.name, now, "left"))


def _membership(run: RunState, record: ClientRecord) -> Membership:
    facts, rules = run.facts, run.machine.rules
    return Membership(
        facts.run_id,
        record.session,
        run_seed=facts.run_seed,
        data_specification=facts.data,
        model=facts.model,
        programs=facts.programs,
        heartbeat_seconds=facts.timing.heartbeat_seconds,
        num_rounds=rules.num_rounds,
        base=facts.base,
        held_out=facts.held_out,
        evaluation_batches=facts.evaluation_batches,
    )
