"""What one attempt expects: headers are checked before anything is read, updates follow their uploads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.algorithm.payload_shapes import update_specs
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, TensorSpec, total_bytes
from heron_common.protocol.messages import UploadKey, UploadPurpose
from heron_server.rounds.accepted import AcceptedUpdate
from heron_server.rounds.attempt import Attempt
from heron_server.storage.spool import SpoolEntry
from tests.server.builders import MODEL, ROUND, attempt, key, upload

ENTRY = SpoolEntry(Path("nowhere"), 10)


def dense(of: Attempt) -> tuple[TensorSpec, ...]:
    return update_specs(of.assignment.plan, MODEL)


def header_refusal(of: Attempt, k: UploadKey, **changes: Any) -> RefusedError:
    fields = {"num_probes": 0, "tensors": of.upload_specs, "announced_bytes": total_bytes(of.upload_specs), **changes}
    with pytest.raises(RefusedError) as caught:
        of.check_upload(k, **fields)
    return caught.value


def test_a_header_as_planned_is_admitted() -> None:
    a = attempt(upload_interval=2)
    for step in (0, 2, 4):
        a.check_upload(key(step=step), 0, tensors=a.upload_specs, announced_bytes=total_bytes(a.upload_specs))


@pytest.mark.parametrize("reference", [RoundReference(2, 1), RoundReference(3, 0), RoundReference(3, 2), RoundReference(4, 1)])
def test_other_rounds_and_attempts_are_over(reference: RoundReference) -> None:
    a = attempt()
    assert header_refusal(a, key(reference=reference)).code is ErrorCode.ROUND_OVER


@pytest.mark.parametrize(
    ("k", "probes"),
    [(key(step=1), 0), (key(step=6), 0), (key(), 1), (key(purpose=UploadPurpose.PROBE), 0), (key(purpose=UploadPurpose.PROBE), 1)],
)
def test_what_the_plan_does_not_ask_for_is_refused(k: UploadKey, probes: int) -> None:
    assert header_refusal(attempt(upload_interval=2), k, num_probes=probes).code is ErrorCode.UNEXPECTED_UPLOAD


def test_probes_are_expected_at_every_step_where_the_server_judges() -> None:
    a = attempt(preset_name="heron-server-loss", upload_interval=3)
    assert a.purpose is UploadPurpose.PROBE
    for step in range(6):
        a.check_upload(key(step=step, purpose=UploadPurpose.PROBE), 1, tensors=a.upload_specs, announced_bytes=total_bytes(a.upload_specs))
    assert a.upload_specs[0].shape == (2 * 4, *MODEL.cut.shape)
    assert header_refusal(a, key()).code is ErrorCode.UNEXPECTED_UPLOAD


def test_tensors_and_sizes_must_be_those_of_the_round() -> None:
    a = attempt()
    z, y = a.upload_specs
    wrong = [
        (z,),
        (y, z),
        (z, y, y),
        (TensorSpec("smashed", z.dtype, z.shape), y),
        (TensorSpec(z.name, DType.INT64, z.shape), y),
        (TensorSpec(z.name, z.dtype, (5, 2, 2)), y),
        (),
    ]
    for tensors in wrong:
        assert header_refusal(a, key(), tensors=tensors).code is ErrorCode.INVALID_TENSOR
    exact = total_bytes(a.upload_specs)
    assert header_refusal(a, key(), announced_bytes=exact + 1).code is ErrorCode.OVERSIZED
    assert header_refusal(a, key(), announced_bytes=2**63).code is ErrorCode.OVERSIZED
    assert header_refusal(a, key(), announced_bytes=exact - 1).code is ErrorCode.INVALID_TENSOR


def test_lockstep_refuses_what_is_too_far_ahead_with_a_retry_hint_but_not_a_repeat() -> None:
    a = attempt(schedule=ServerSchedule.LOCKSTEP)
    for step in range(3):
        a.check_upload(key("b", step), 0, tensors=a.upload_specs, announced_bytes=total_bytes(a.upload_specs))
        a.accept_upload(upload(key("b", step), ENTRY))
    early = header_refusal(a, key("b", 3))
    assert early.code is ErrorCode.TOO_FAR_AHEAD and early.retry_after_seconds
    a.check_upload(key("b", 2), 0, tensors=a.upload_specs, announced_bytes=total_bytes(a.upload_specs))
    assert a.is_needed_next(key("a", 0)) and not a.is_needed_next(key("b", 0))


def test_under_arrival_no_single_upload_is_waited_for() -> None:
    assert not attempt().is_needed_next(key())


def test_uploads_are_taken_once() -> None:
    a = attempt()
    first, second = upload(key("b", 0), ENTRY), upload(key("a", 0), ENTRY)
    for accepted in (first, second):
        a.accept_upload(accepted)
    assert a.known_digest(first.key) == "d" and a.known_digest(key("a", 1)) is None
    assert a.take_uploads() == (first,)
    first.trained = True
    assert a.take_uploads() == (second,) and a.take_uploads() == ()


def test_an_attempt_holds_the_entries_of_uploads_that_no_checkpoint_covers_and_of_updates() -> None:
    a = attempt()
    entries = [SpoolEntry(Path(str(n)), n) for n in range(3)]
    accepted = [upload(key("a", step), entries[step]) for step in range(2)]
    for item in accepted:
        a.accept_upload(item)
    accepted[0].trained = True
    a.updates["a"] = AcceptedUpdate("a", "d", entry=entries[2], statistics=None)  # type: ignore[arg-type]
    a.updates["b"] = AcceptedUpdate("b", "d", entry=None, statistics=None)  # type: ignore[arg-type]
    assert a.entries() == entries
    assert a.give_up_covered() == ([accepted[0]], [], [entries[0]])
    assert a.entries() == [entries[1], entries[2]]


def with_uploads(count: int, **changes: Any) -> Attempt:
    a = attempt(upload_interval=2, **changes)
    for step in a.assignment.plan.sending_steps[:count]:
        a.accept_upload(upload(key("a", step, a.purpose), ENTRY))
    return a


@pytest.mark.parametrize(("uploads", "steps"), [(2, 6), (0, 6), (3, 5), (3, 7), (3, 0)])
def test_an_update_follows_all_its_steps_and_uploads(uploads: int, steps: int) -> None:
    a = with_uploads(uploads)
    with pytest.raises(RefusedError) as caught:
        a.check_update("a", steps, encoding=UpdateEncoding.DENSE, tensors=dense(a), announced_bytes=total_bytes(dense(a)))
    assert caught.value.code is ErrorCode.UPDATE_INCOMPLETE


def test_an_update_counts_its_own_clients_uploads_only() -> None:
    a = with_uploads(3)
    with pytest.raises(RefusedError) as caught:
        a.check_update("b", 6, encoding=UpdateEncoding.DENSE, tensors=dense(a), announced_bytes=total_bytes(dense(a)))
    assert caught.value.code is ErrorCode.UPDATE_INCOMPLETE


@pytest.mark.parametrize(
    ("preset_name", "names", "sizes"),
    [("heron", ["client_model"], [9]), ("heron-paper", ["client_model", "auxiliary_head"], [9, 5]), ("frozen", [], [])],
)
def test_an_update_holds_what_the_client_trained(preset_name: str, names: list[str], sizes: list[int]) -> None:
    a = with_uploads(3, preset_name=preset_name, direction_groups=1)
    assert [spec.name for spec in dense(a)] == names
    assert [spec.num_elements for spec in dense(a)] == sizes
    a.check_update("a", 6, encoding=UpdateEncoding.DENSE, tensors=dense(a), announced_bytes=total_bytes(dense(a)))
    for announced, code in ((total_bytes(dense(a)) + 4, ErrorCode.OVERSIZED), (2**62, ErrorCode.OVERSIZED)):
        with pytest.raises(RefusedError) as caught:
            a.check_update("a", 6, encoding=UpdateEncoding.DENSE, tensors=dense(a), announced_bytes=announced)
        assert caught.value.code is code


def test_rows_are_those_that_the_server_trains_on() -> None:
    a = attempt(preset_name="heron-server-loss", upload_interval=3)
    for step in range(4):
        a.accept_upload(upload(key("a", step, UploadPurpose.PROBE), ENTRY))
    a.accept_upload(upload(key("b", 0, UploadPurpose.PROBE), ENTRY))
    assert a.rows_of("a") == 2 * 4, "steps 0 and 3 of batch 4"
    assert a.rows_of("b") == 4
    assert a.rows_of("c") == 0
    assert a.assignment.round == ROUND
