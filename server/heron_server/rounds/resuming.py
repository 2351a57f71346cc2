"""Going on with the attempts that an earlier process recorded. Changes the owner's state, under its lock."""

from __future__ import annotations

from heron_server.rounds.reopening import RecoveredFiles, member_statuses, refill
from heron_server.rounds.run_state import RunState
from heron_server.storage.recorded import RecordedAttempt


def go_on(run: RunState, files: RecoveredFiles | None, covered: int) -> bool:
    """Go on with the next recorded attempt, whose payloads are `files`; returns False if there is one and it cannot be.

    Then it is undone with all after it, and its round is repeated.
    """
    if files is None or not run.recorded:
        return True
    recorded = run.recorded.popleft()
    if _reopen(run, recorded, files=files, covered=covered):
        return True
    for later in (recorded, *run.recorded):
        run.outbox.ledger.settled(later.round, "it could not be gone on with after a restart")
        run.outbox.delete(sorted(later.files() - files.entries.keys()))
    run.outbox.delete(files.entries.values())
    run.recorded.clear()
    return False


def _reopen(run: RunState, recorded: RecordedAttempt, *, files: RecoveredFiles, covered: int) -> bool:
    reference = recorded.round
    attempt, digest = run.begin(reference, tuple(recorded.cohort))
    problem = files.problem if digest == recorded.inputs_sha256 else "its plan or its weights are not what they were"
    if problem:
        run.outbox.warn("an open round cannot be gone on with and is repeated", round_index=reference.round_index, reason=problem)
        return False
    refill(attempt, recorded, files=files, covered=covered, now=run.clock.now())
    run.attempt = attempt
    run.outbox.ledger.gone_on_with(reference, covered)
    # Killed between a checkpoint inside the round and what it makes room for, the earlier process left payloads that nobody needs.
    run.outbox.delete(sorted(recorded.files() - {entry.path.name for entry in attempt.entries()}))
    for name, identity in recorded.cohort.items():
        run.registry.know(name, identity)
    run.outbox.info(
        "going on inside a round",
        round_index=reference.round_index,
        attempt=reference.attempt,
        uploads=len(recorded.uploads),
        to_train=sum(not upload.trained for upload in attempt.uploads.values()),
        updates=len(recorded.updates),
    )
    run.machine.reopen(reference, member_statuses(recorded), run.clock.now())
    for record in run.registry.live_records():
        record.heard_at = max(record.heard_at, run.clock.now())
    run.show_round(reference, len(recorded.cohort))
    if recorded.submitted is not None:
        run.apply(run.machine.repeat_close(recorded.submitted))
    return True
