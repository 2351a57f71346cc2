"""Tables that must be complete: refusals with real gRPC statuses, exit codes with help, and an error tree that its page draws truly."""

from __future__ import annotations

import inspect
import re

import grpc
import pytest

from heron_common import errors
from heron_common.error_catalog import CATALOG, ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.errors import HeronError, RefusedError
from heron_common.exit_codes import EXIT_HELP, ExitCode
from heron_common.protocol.grpc_options import MAX_MESSAGE_BYTES, channel_options, server_options
from heron_common.protocol.timing import Timing


def test_every_error_code_has_an_entry_and_every_entry_a_code() -> None:
    assert list(CATALOG) == list(ErrorCode)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_refusal_maps_to_a_real_status_and_says_what_it_means(code: ErrorCode) -> None:
    entry = CATALOG[code]
    assert entry.grpc_status in grpc.StatusCode.__members__
    assert entry.grpc_status not in ("OK", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED")
    assert len(entry.meaning) > 10
    assert entry.meaning[0].islower()
    assert not entry.meaning.endswith(".")


def test_meanings_are_told_apart() -> None:
    assert len({entry.meaning for entry in CATALOG.values()}) == len(CATALOG)


def test_statuses_that_speak_of_a_passing_state_are_retryable_and_mistakes_are_not() -> None:
    for code, entry in CATALOG.items():
        if entry.grpc_status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DATA_LOSS"):
            assert entry.retryable, code
        if entry.grpc_status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "ALREADY_EXISTS", "NOT_FOUND", "ABORTED"):
            assert not entry.retryable, code


def test_metadata_keys_are_lower_case_as_http2_demands() -> None:
    for key in (ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA):
        assert re.fullmatch(r"[a-z0-9._-]+", key)


def test_every_exit_code_has_help() -> None:
    assert set(EXIT_HELP) == set(ExitCode)
    assert len(set(EXIT_HELP.values())) == len(ExitCode)


def test_exit_codes_fit_a_process_status_and_do_not_look_like_a_crash() -> None:
    assert all(0 <= code <= 255 for code in ExitCode)
    assert ExitCode.OK == 0
    # 126 and 127 are the shell's own; 128 + n stands for death by signal n, and FORCED is what an interrupt (2) would give.
    assert all(code < 126 for code in ExitCode if code is not ExitCode.FORCED)
    assert ExitCode.FORCED == 128 + 2


def error_classes() -> list[type[HeronError]]:
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, HeronError) and c.__module__ == errors.__name__]


def test_the_error_trees_page_draws_every_class_below_its_parent() -> None:
    drawn: dict[str, str | None] = {}
    ancestors: list[tuple[int, str]] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"( +)([A-Z]\w+)(  |$)", line)
        if match:
            indent, name = len(match[1]), match[2]
            ancestors = [a for a in ancestors if a[0] < indent]
            drawn[name] = ancestors[-1][1] if ancestors else None
            ancestors.append((indent, name))
    real = {c.__name__: c.__base__.__name__ if c is not HeronError else None for c in error_classes()}  # type: ignore[union-attr]
    assert drawn == real


def test_every_error_says_in_its_docstring_what_it_is() -> None:
    assert all(inspect.getdoc(c) and c.__doc__ for c in error_classes())


def test_a_refusal_carries_code_sentence_and_hint() -> None:
    refusal = RefusedError(ErrorCode.SPOOL_FULL, "the spool is full: try again", 2.5)
    assert (refusal.code, refusal.sentence, refusal.retry_after_seconds) == (ErrorCode.SPOOL_FULL, str(refusal), 2.5)
    assert RefusedError(ErrorCode.INTERNAL, "x").retry_after_seconds is None


def test_both_sides_agree_on_the_message_cap_and_refuse_compression() -> None:
    for options in (dict(channel_options()), dict(server_options(Timing()))):
        assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == MAX_MESSAGE_BYTES
        # Bit 0 stands for "no compression"; no other algorithm is enabled.
        assert options["grpc.compression_enabled_algorithms_bitset"] == 1
        assert options["grpc.per_message_decompression"] == 0


@pytest.mark.parametrize("liveness", [3.0, 9.0, 30.0, 600.0])
def test_the_server_tolerates_the_pings_of_clients_that_do_not_know_its_timing_yet_and_of_those_that_do(liveness: float) -> None:
    server = dict(server_options(Timing(liveness)))
    for channel in (dict(channel_options()), dict(channel_options(Timing(liveness)))):
        assert server["grpc.http2.min_recv_ping_interval_without_data_ms"] < channel["grpc.keepalive_time_ms"]
        assert channel["grpc.keepalive_permit_without_calls"] == server["grpc.keepalive_permit_without_calls"] == 1


@pytest.mark.parametrize("liveness", [3.0, 9.0, 30.0, 600.0])
def test_a_dead_connection_is_noticed_before_its_client_counts_as_departed(liveness: float) -> None:
    for options in (dict(channel_options(Timing(liveness))), dict(server_options(Timing(liveness)))):
        # gRPC's pings have a timeout apart from keepalive's, a minute unless it is set too.
        assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]
        assert options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"] <= liveness * 1000 * 2 / 3
    assert Timing.from_heartbeat(Timing(liveness).heartbeat_seconds) == Timing(liveness)


def test_options_have_no_key_twice() -> None:
    for options in (channel_options(), server_options(Timing())):
        assert len(dict(options)) == len(options)
