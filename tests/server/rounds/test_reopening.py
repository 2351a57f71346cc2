"""A recorded attempt is filled again with what was acknowledged, and only what no checkpoint covers is trained again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.protocol.messages import LocalStatistics, UploadKey, UploadPurpose
from heron_common.specification.model_spec import BlobReference
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.reopening import inputs_digest, member_statuses, recover, refill
from heron_server.rounds.state import MemberStatus
from heron_server.storage.recorded import RecordedAttempt, RecordedUpdate, RecordedUpload, StoredAnswer, StoredFile
from heron_server.storage.spool import Spool
from tests.server.builders import ROUND, attempt, key

STATISTICS = LocalStatistics(**dict.fromkeys(LocalStatistics.__dataclass_fields__, 0))
ANSWER = StoredAnswer(3, 0.5, None)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number:09d}.upload").write_bytes(b"x" * 10)
    return tmp_path


def file(number: int) -> StoredFile:
    return StoredFile(f"{number:09d}.upload", 10)


def upload(of: UploadKey, number: int, state: str = "accepted", position: int | None = None, **changes: object) -> RecordedUpload:
    answer = ANSWER if state == "trained" else None
    made = RecordedUpload(of, f"digest {number}", payload=file(number), state=state, position=position, answer=answer, cut_gradient=None)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def recorded(*uploads: RecordedUpload, updates: tuple[RecordedUpdate, ...] = (), dropped: dict[str, str] | None = None) -> RecordedAttempt:
    cohort = {"a": "key of a", "b": "key of b", "c": "key of c"}
    return RecordedAttempt(
        ROUND, cohort, inputs_sha256="inputs", outcome="open", submitted=None, dropped=dropped or {}, uploads=uploads, updates=updates
    )


def taken(filled: object) -> list[tuple[str, int]]:
    found = []
    while uploads := filled.take_uploads():  # type: ignore[attr-defined]
        found += [(u.key.client_id, u.key.local_step) for u in uploads]
    return found


def fill(filled: Attempt, attempt_before: RecordedAttempt, spool: Spool, covered: int, now: float) -> None:
    """Take up the payloads of an attempt, and put everything into another."""
    found = recover(attempt_before, spool, covered)
    assert not found.problem
    refill(filled, attempt_before, files=found, covered=covered, now=now)


def test_what_waits_is_trained_in_the_order_of_the_schedule_or_of_acceptance(files: Path) -> None:
    uploads = [upload(key("b", 1), 0), upload(key("a", 0), 1), upload(key("b", 0), 2)]
    for schedule, order in (
        (ServerSchedule.ARRIVAL, [("b", 1), ("a", 0), ("b", 0)]),
        (ServerSchedule.LOCKSTEP, [("a", 0), ("b", 0)]),
    ):
        filled = attempt(("a", "b", "c"), schedule)
        fill(filled, recorded(*uploads), Spool(files, 1000, needed={file(n).name or "" for n in range(8)}), 0, 5.0)
        assert taken(filled) == order, schedule


def test_what_a_checkpoint_covers_is_not_trained_again_and_what_it_does_not_cover_is(files: Path) -> None:
    filled = attempt(("a", "b", "c"), ServerSchedule.LOCKSTEP)
    spool = Spool(files, 1000, needed={file(n).name or "" for n in range(8)})
    uploads = (
        upload(key("a", 0), 0, "trained", 0, payload=StoredFile(None, 10)),
        upload(key("b", 0), 1, "trained", 1),
        upload(key("c", 0), 2, "trained", 2, cut_gradient=file(3)),
        upload(key("a", 1), 4),
    )
    fill(filled, recorded(*uploads), spool, 2, 5.0)
    assert [u.trained for u in filled.uploads.values()] == [True, True, False, False]
    assert filled.positions == 2
    assert taken(filled) == [("c", 0), ("a", 1)]
    assert [u.answer for u in filled.uploads.values()] == [ANSWER, ANSWER, ANSWER, None], "what was told stands"
    # Payloads that nothing needs are not held: only those that wait, and lambda.
    assert spool.used_bytes == 30
    assert filled.known_digest(key("a", 0)) == "digest 0"


def test_a_rejection_that_is_covered_has_an_answer_to_give(files: Path) -> None:
    filled = attempt(("a", "b", "c"))
    fill(filled, recorded(upload(key("a", 0), 0, "rejected", 0)), Spool(files, 1000, needed={file(0).name or ""}), 1, 0.0)
    (rejected,) = filled.uploads.values()
    assert rejected.trained and rejected.answer == StoredAnswer(0, None, None)


@pytest.mark.parametrize("missing", [0, 3, 5, 6])
def test_a_payload_that_is_gone_is_an_error_and_nothing_is_held(missing: int, files: Path) -> None:
    spool = Spool(files, 1000, needed={file(n).name or "" for n in range(8)})
    (files / str(file(missing).name)).unlink()
    uploads = (upload(key("a", 0), 0), upload(key("b", 0), 5, cut_gradient=file(3)))
    update = RecordedUpdate("a", "digest", payload=file(6), statistics=STATISTICS, log=None)
    found = recover(recorded(*uploads, updates=(update,)), spool, covered=0)
    assert f"{missing:09d}.upload is gone" in found.problem
    assert spool.used_bytes == 0 and found.entries == {}


def test_members_stand_where_they_stood() -> None:
    update = RecordedUpdate("a", "digest", payload=None, statistics=STATISTICS, log=None)
    statuses = member_statuses(recorded(updates=(update,), dropped={"a": "went silent after its update", "b": "left"}))
    assert statuses == {"a": MemberStatus.SUBMITTED, "b": MemberStatus.DROPPED, "c": MemberStatus.TRAINING}


def test_training_waits_for_members_at_work_and_for_no_others(files: Path) -> None:
    filled = attempt(("a", "b", "c"), ServerSchedule.LOCKSTEP)
    update = RecordedUpdate("a", "digest", payload=file(1), statistics=STATISTICS, log=b"log")
    spool = Spool(files, 100, needed={file(0).name or "", file(1).name or ""})
    fill(filled, recorded(upload(key("c", 0), 0), updates=(update,), dropped={"b": "left"}), spool, 0, 0.0)
    # Of a and b nothing is missing, so c's is next; then c's own next step is awaited.
    assert taken(filled) == [("c", 0)]
    assert filled.is_needed_next(key("c", 1))
    assert filled.updates["a"].log == b"log"


def test_held_out_samples_that_were_scored_are_scored_no_second_time(files: Path) -> None:
    filled = attempt(("a", "b", "c"))
    purpose = UploadPurpose.EVALUATE
    uploads = (upload(key("a", 0, purpose), 0, "scored", 0), upload(key("b", 0, purpose), 1, "scored", 1))
    fill(filled, recorded(*uploads), Spool(files, 100, needed={file(0).name or "", file(1).name or ""}), 1, 0.0)
    again = filled.held_out.take()
    assert again is not None and again.key.client_id == "b" and filled.held_out.take() is None


def test_the_digest_of_inputs_changes_with_each_of_them() -> None:
    assignment = attempt().assignment
    base = inputs_digest(assignment, {"a": "head"})
    assert inputs_digest(dataclasses.replace(assignment), {"a": "head"}) == base
    changed = [
        inputs_digest(dataclasses.replace(assignment, client_model=BlobReference("1" * 64, 36)), {"a": "head"}),
        inputs_digest(dataclasses.replace(assignment, auxiliary_head=BlobReference("2" * 64, 36)), {"a": "head"}),
        inputs_digest(dataclasses.replace(assignment, direction_scales=(1.0, 2.0)), {"a": "head"}),
        inputs_digest(dataclasses.replace(assignment, second_moment=5e-324), {"a": "head"}),
        inputs_digest(dataclasses.replace(assignment, derivative_quantile=1.0), {"a": "head"}),
        inputs_digest(dataclasses.replace(assignment, plan=dataclasses.replace(assignment.plan, learning_rate=0.123)), {"a": "head"}),
        inputs_digest(assignment, {"a": "other head"}),
        inputs_digest(assignment, {}),
    ]
    assert len({base, *changed}) == 1 + len(changed)
