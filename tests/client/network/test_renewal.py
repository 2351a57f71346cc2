"""A new session inside a round: once for all threads that find the old one gone, of the same run, and never in a hurry."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from heron_client.network.renewal import Renewal, RunChanged
from heron_common.data.sources import parse_specification
from heron_common.error_catalog import ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.protocol.messages import Membership
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramReference

DATA: DataSpecification = parse_specification("1x4x4:3")
MODEL = ModelSpec((TensorSpec("w", DType.FLOAT32, (3,)),), (), cut=TensorSpec("activations", DType.FLOAT32, (2,)))
PROGRAM = ProgramReference("loss", BlobReference("a" * 64, 10), micro_batch=4)
JOINED = Membership(
    "run", "first session", run_seed=7, data_specification=DATA, model=MODEL, programs=(PROGRAM,), heartbeat_seconds=10.0, num_rounds=5
)

UNKNOWN = RefusedError(ErrorCode.SESSION_UNKNOWN, "join again")
CUT = TransportError("does not answer")


class Server:
    """Knows one session at a time; calls fail as scripted."""

    def __init__(self) -> None:
        self.session = "first session"
        self.held = "first session"
        self.joins = 0
        self.pauses = 0
        self.probe_errors: list[HeronError] = []
        self.join_errors: list[HeronError] = []
        self.answers = JOINED

    def restart(self) -> None:
        self.session = ""

    def probe(self) -> None:
        if self.probe_errors:
            raise self.probe_errors.pop(0)
        if self.held != self.session:
            raise UNKNOWN

    def join(self) -> Membership:
        self.joins += 1
        if self.join_errors:
            raise self.join_errors.pop(0)
        self.session = self.held = f"session {self.joins}"
        return replace(self.answers, session=self.session)

    def pause(self) -> None:
        self.pauses += 1


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def renewal(server: Server) -> Renewal:
    made = Renewal(server.probe, server.join, pause=server.pause)
    made.begin(JOINED)
    return made


@pytest.mark.parametrize("error", [CUT, RefusedError(ErrorCode.ROUND_OVER, "over"), RefusedError(ErrorCode.SPOOL_FULL, "later", 0.5)])
def test_other_errors_are_left_to_their_caller(error: HeronError, server: Server, renewal: Renewal) -> None:
    server.restart()
    assert renewal.after(error) is False
    assert server.joins == server.pauses == 0


def test_a_server_that_forgot_the_session_is_joined_again_after_a_pause(server: Server, renewal: Renewal) -> None:
    server.restart()
    assert renewal.after(UNKNOWN) is True
    assert (server.joins, server.pauses) == (1, 1)
    server.probe()


def test_the_session_may_be_renewed_again_and_again(server: Server, renewal: Renewal) -> None:
    for _ in range(3):
        server.restart()
        assert renewal.after(UNKNOWN) is True
    assert server.joins == 3


def test_a_thread_that_comes_late_finds_the_new_session_and_joins_no_second_time(server: Server, renewal: Renewal) -> None:
    server.restart()
    assert renewal.after(UNKNOWN) and renewal.after(UNKNOWN)
    assert server.joins == 1


def test_many_threads_at_once_open_one_session(server: Server, renewal: Renewal) -> None:
    server.restart()
    barrier = threading.Barrier(8)

    def meet() -> bool:
        barrier.wait()
        return renewal.after(UNKNOWN)

    with ThreadPoolExecutor(8) as pool:
        results = [future.result(20) for future in [pool.submit(meet) for _ in range(8)]]
    assert results == [True] * 8 and server.joins == 1


def test_a_probe_that_hears_of_the_round_is_in_a_session_and_joins_no_other(server: Server, renewal: Renewal) -> None:
    # The session stands and the round is over: the call that is made again hears so itself.
    server.probe_errors = [RefusedError(ErrorCode.ROUND_OVER, "over")]
    assert renewal.after(UNKNOWN) is True
    assert server.joins == 0


@pytest.mark.parametrize("where", ["probe_errors", "join_errors"])
def test_a_server_that_goes_away_again_meanwhile_is_tried_again_by_the_caller(where: str, server: Server, renewal: Renewal) -> None:
    server.restart()
    setattr(server, where, [CUT])
    assert renewal.after(UNKNOWN) is True
    assert renewal.after(UNKNOWN) is True
    server.probe()


def test_a_refusal_for_good_is_raised(server: Server, renewal: Renewal) -> None:
    server.restart()
    server.join_errors = [RefusedError(ErrorCode.NAME_IN_USE, "a live client is called so")]
    with pytest.raises(RefusedError, match="a live client is called so"):
        renewal.after(UNKNOWN)


CHANGES: list[Callable[[Membership], Membership]] = [
    lambda m: replace(m, run_id="another run"),
    lambda m: replace(m, run_seed=8),
    lambda m: replace(m, programs=(ProgramReference("loss", BlobReference("b" * 64, 10), micro_batch=4),)),
    lambda m: replace(m, held_out=0.5),
]


def test_a_run_that_got_more_rounds_is_the_same_run(server: Server, renewal: Renewal) -> None:
    server.restart()
    server.answers = replace(JOINED, num_rounds=50)
    assert renewal.after(UNKNOWN) is True


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_or_other_programs_end_what_the_client_was_doing(
    change: Callable[[Membership], Membership], server: Server, renewal: Renewal
) -> None:
    server.restart()
    server.answers = change(JOINED)
    with pytest.raises(RunChanged, match="another run or other programs"):
        renewal.after(UNKNOWN)


def test_a_client_that_never_joined_has_nothing_to_go_on_with(server: Server) -> None:
    server.restart()
    with pytest.raises(RunChanged):
        Renewal(server.probe, server.join, pause=server.pause).after(UNKNOWN)


def test_those_who_wait_to_send_again_are_woken_by_a_new_session_and_by_nothing_else(server: Server) -> None:
    woken: list[int] = []
    renewal = Renewal(server.probe, server.join, pause=server.pause, on_renewed=lambda: woken.append(server.joins))
    renewal.begin(JOINED)
    renewal.after(UNKNOWN)
    assert woken == [], "the session is there"
    server.restart()
    assert renewal.after(UNKNOWN) and woken == [1]
