"""Who a client is: names, identity keys, sessions, and the losses that it has not seen."""

from __future__ import annotations

import hashlib

import pytest

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.protocol.messages import PeakMemory, UploadLoss
from heron_server.rounds.clients import ClientRecord, ClientRegistry

KEY, OTHER_KEY = "k" * 16, "o" * 16


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def refusal(registry: ClientRegistry, name: str, key: str = KEY) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        registry.join(name, key)
    return caught.value


def test_each_join_opens_a_session_of_its_own() -> None:
    registry = ClientRegistry(4)
    a, b = registry.join("a", KEY), registry.join("b", KEY)
    assert a.session != b.session
    assert registry.of_session(a.session) is a and registry.of_session(b.session) is b
    assert registry.num_live == 2


def test_a_returning_client_replaces_its_session_and_keeps_its_tally() -> None:
    registry = ClientRegistry(1)
    record = registry.join("a", KEY)
    old = record.session
    record.bytes_up["control"] += 7
    again = registry.join("a", KEY)
    assert again is record and again.session != old and again.bytes_up["control"] == 7
    with pytest.raises(RefusedError) as caught:
        registry.of_session(old)
    assert caught.value.code is ErrorCode.SESSION_UNKNOWN


def test_a_live_name_is_refused_to_another_identity_and_its_session_stands() -> None:
    registry = ClientRegistry(4)
    session = registry.join("a", KEY).session
    assert refusal(registry, "a", OTHER_KEY).code is ErrorCode.NAME_IN_USE
    assert registry.of_session(session).identity_sha256 == digest_of(KEY)


def test_the_name_of_a_departed_client_is_free_for_another_identity() -> None:
    registry = ClientRegistry(4)
    old = registry.join("a", KEY).session
    registry.depart("a", forget_session=False)
    new = registry.join("a", OTHER_KEY)
    assert new.identity_sha256 == digest_of(OTHER_KEY)
    with pytest.raises(RefusedError):
        registry.of_session(old)


def test_an_expected_client_is_live_without_a_session_and_only_its_own_key_opens_one() -> None:
    before, after = ClientRegistry(2), ClientRegistry(2)
    after.expect("a", before.join("a", KEY).identity_sha256)
    assert after.num_live == 1 and after.by_name["a"].session == ""
    with pytest.raises(RefusedError) as caught:
        after.join("a", OTHER_KEY)
    assert caught.value.code is ErrorCode.NAME_IN_USE
    assert after.join("a", KEY).session != ""
    after.know("b", "digest")
    assert after.num_live == 1, "known is not live"


def test_a_silent_client_keeps_its_session_and_one_that_left_does_not() -> None:
    registry = ClientRegistry(4)
    silent, left = registry.join("silent", KEY), registry.join("left", KEY)
    registry.depart("silent", forget_session=False)
    registry.depart("left", forget_session=True)
    assert registry.of_session(silent.session) is silent
    with pytest.raises(RefusedError):
        registry.of_session(left.session)
    assert registry.num_live == 0


def test_the_server_is_full_with_max_clients_live_and_says_when_to_come_back() -> None:
    registry = ClientRegistry(1)
    registry.join("a", KEY)
    full = refusal(registry, "b")
    assert full.code is ErrorCode.TOO_MANY_CLIENTS and full.retry_after_seconds
    registry.depart("a", forget_session=True)
    assert registry.join("b", KEY).live
    assert refusal(registry, "a").code is ErrorCode.TOO_MANY_CLIENTS, "a known name takes a place too"


@pytest.mark.parametrize("name", ["", " ", "a b", "../a", "-a", ".a", "a/b", "ä", "a\n", "a" * 101])
def test_names_that_are_unfit_for_paths_and_logs_are_refused(name: str) -> None:
    assert refusal(ClientRegistry(4), name).code is ErrorCode.INVALID_NAME


@pytest.mark.parametrize("key", ["", "k" * 15, "k" * 129])
def test_identity_keys_have_a_sensible_length(key: str) -> None:
    assert refusal(ClientRegistry(4), "a", key).code is ErrorCode.INVALID_NAME


def test_a_refused_join_leaves_no_trace() -> None:
    registry = ClientRegistry(1)
    refusal(registry, "bad name")
    registry.join("a", KEY)
    refusal(registry, "b")
    assert list(registry.by_name) == ["a"]


def loss(number: int) -> UploadLoss:
    return UploadLoss(RoundReference(0, 0), number, server_loss=float(number), server_version=number)


def test_losses_are_repeated_until_they_were_seen() -> None:
    record = ClientRecord("a", KEY)
    record.open_session("s")
    for number in range(3):
        record.add_loss(loss(number))
    assert record.losses_after(0) == (loss(0), loss(1), loss(2))
    assert record.losses_after(0) == (loss(0), loss(1), loss(2))
    assert record.losses_after(2) == (loss(2),)
    record.add_loss(loss(3))
    assert record.losses_after(2) == (loss(2), loss(3))
    assert record.losses_after(4) == ()


def test_losses_are_counted_from_the_start_of_each_session() -> None:
    record = ClientRecord("a", KEY)
    record.open_session("s")
    record.add_loss(loss(0))
    record.losses_after(1)
    record.open_session("t")
    record.add_loss(loss(1))
    assert record.losses_after(0) == (loss(1),)


def test_the_largest_reported_memory_is_kept() -> None:
    record = ClientRecord("a", KEY)
    for peak in (PeakMemory(5, 1), PeakMemory(9, 2), PeakMemory(2, 4)):
        record.note_memory(peak)
    assert (record.peak_memory_bytes, record.peak_anonymous_bytes) == (9, 4)
