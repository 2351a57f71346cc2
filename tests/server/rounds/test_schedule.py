"""The order in which the server trains on uploads, against naive twins under random arrivals and drops."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_common.algorithm.algorithm import ServerSchedule
from heron_server.rounds.schedule import STEPS_AHEAD, TrainingOrder, UploadSlot

CLIENTS = ("a", "b", "c")
STEPS = (0, 2, 4, 6, 8)


def nested_loops(schedule: ServerSchedule) -> list[UploadSlot]:
    """The order of a full round, written as the loops of the papers."""
    if schedule is ServerSchedule.SEQUENTIAL:
        return [UploadSlot(client, step) for client in CLIENTS for step in STEPS]
    return [UploadSlot(client, step) for step in STEPS for client in CLIENTS]


@st.composite
def arrivals(draw: Any) -> list[UploadSlot]:
    """Each client's uploads come in its own order, interleaved at random; a client may stop early."""
    left = {client: list(STEPS[: draw(st.integers(0, len(STEPS)))]) for client in CLIENTS}
    order = draw(st.lists(st.sampled_from(CLIENTS), min_size=40, max_size=40))
    found = [UploadSlot(client, left[client].pop(0)) for client in order if left[client]]
    return found + [UploadSlot(client, step) for client in CLIENTS for step in left[client]]


def taken(order: TrainingOrder) -> list[UploadSlot]:
    found = []
    while slots := order.take():
        found += slots
    return found


@settings(max_examples=100, deadline=None)
@given(arrivals(), st.data())
def test_arrival_trains_in_the_order_of_acceptance_whatever_is_dropped(came: list[UploadSlot], data: st.DataObject) -> None:
    order = TrainingOrder(ServerSchedule.ARRIVAL, CLIENTS, STEPS)
    trained: list[UploadSlot] = []
    for slot in came:
        order.arrived(slot)
        if data.draw(st.booleans()):
            order.ended(data.draw(st.sampled_from(CLIENTS)))
        if data.draw(st.booleans()):
            trained += taken(order)
    assert trained + taken(order) == came


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([ServerSchedule.SEQUENTIAL, ServerSchedule.LOCKSTEP]), arrivals(), st.data())
def test_fixed_orders_are_the_nested_loops_over_what_arrived(schedule: ServerSchedule, came: list[UploadSlot], data: st.DataObject) -> None:
    order = TrainingOrder(schedule, CLIENTS, STEPS)
    trained: list[UploadSlot] = []
    for position, slot in enumerate(came):
        order.arrived(slot)
        if slot.client_id not in {later.client_id for later in came[position + 1 :]} and data.draw(st.booleans()):
            order.ended(slot.client_id)
        if data.draw(st.booleans()):
            trained += taken(order)
        assert order.pending == position + 1 - len(trained)
    for client in data.draw(st.permutations(CLIENTS)):
        order.ended(client)
        trained += taken(order)
    assert trained == [slot for slot in nested_loops(schedule) if slot in came], "nothing lost, nothing twice, in order"
    assert order.pending == 0 and order.needed_next() is None


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([ServerSchedule.SEQUENTIAL, ServerSchedule.LOCKSTEP]), arrivals(), st.data())
def test_nothing_is_taken_ahead_of_an_upload_that_may_still_come(
    schedule: ServerSchedule, came: list[UploadSlot], data: st.DataObject
) -> None:
    order, expected = TrainingOrder(schedule, CLIENTS, STEPS), nested_loops(schedule)
    for slot in came:
        order.arrived(slot)
        for found in taken(order):
            assert found == expected.pop(0)
        assert order.needed_next() == (expected[0] if expected else None)


@pytest.mark.parametrize("schedule", list(ServerSchedule))
def test_an_upload_is_not_taken_twice(schedule: ServerSchedule) -> None:
    order = TrainingOrder(schedule, ("a",), (0, 1))
    order.arrived(UploadSlot("a", 0))
    assert order.take() == (UploadSlot("a", 0),)
    assert order.take() == ()


def test_what_a_dropped_client_sent_before_is_still_trained_in_its_place() -> None:
    order = TrainingOrder(ServerSchedule.LOCKSTEP, ("a", "b"), (0, 1))
    for slot in (UploadSlot("b", 0), UploadSlot("b", 1)):
        order.arrived(slot)
    order.arrived(UploadSlot("a", 0))
    order.ended("a")
    assert taken(order) == [UploadSlot("a", 0), UploadSlot("b", 0), UploadSlot("b", 1)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=60), st.data())
def test_lockstep_admits_at_most_two_ahead_and_always_the_needed_one(wishes: list[str], data: st.DataObject) -> None:
    order = TrainingOrder(ServerSchedule.LOCKSTEP, CLIENTS, STEPS)
    sent = dict.fromkeys(CLIENTS, 0)
    for client in wishes:
        if sent[client] == len(STEPS):
            continue
        needed = order.needed_next()
        assert needed is not None and order.admits(needed)
        ahead = sent[client] - STEPS.index(needed.local_step)
        slot = UploadSlot(client, STEPS[sent[client]])
        assert order.admits(slot) == (ahead <= STEPS_AHEAD)
        if order.admits(slot):
            order.arrived(slot)
            sent[client] += 1
        if data.draw(st.booleans()):
            order.take()
    assert order.pending <= len(CLIENTS) * (STEPS_AHEAD + 1), "what waits is bounded however fast some clients are"


@pytest.mark.parametrize("schedule", [ServerSchedule.ARRIVAL, ServerSchedule.SEQUENTIAL])
def test_other_schedules_admit_everything(schedule: ServerSchedule) -> None:
    order = TrainingOrder(schedule, CLIENTS, STEPS)
    assert all(order.admits(slot) for slot in nested_loops(schedule))


def test_lockstep_keeps_pace_with_the_members_that_are_left() -> None:
    order = TrainingOrder(ServerSchedule.LOCKSTEP, ("a", "b"), STEPS)
    for step in STEPS[: STEPS_AHEAD + 1]:
        order.arrived(UploadSlot("b", step))
    assert not order.admits(UploadSlot("b", STEPS[STEPS_AHEAD + 1]))
    order.ended("a")
    taken(order)
    assert order.admits(UploadSlot("b", STEPS[STEPS_AHEAD + 1]))
