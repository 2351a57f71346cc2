"""Log lines: one line an event, extras as key=value, quoting that cannot be forged, tracebacks after the line."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from heron_common.terminal.log_setup import TOLD, HumanFormatter, StructuredFormatter, redirect_logs, set_up_logging

LOGGERS = ("", "heron_server", "heron_client", "heron_common", "heron_cli")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Put handlers and levels back."""
    root, levels = logging.getLogger(), [logging.getLogger(name).level for name in LOGGERS]
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers
    for name, level in zip(LOGGERS, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def entry(
    message: str = "round closed", *arguments: Any, name: str = "heron_server", level: int = logging.INFO, **extra: Any
) -> logging.LogRecord:
    record = logging.getLogger(name).makeRecord(name, level, "file.py", 1, message, arguments, None, extra=extra)
    record.created, record.msecs = 1_769_860_800.25, 250.0
    return record


def line(*arguments: Any, **named: Any) -> str:
    return StructuredFormatter().format(entry(*arguments, **named))


def told(*arguments: Any, **named: Any) -> str:
    """Return what people read, without its time."""
    stamp, text = HumanFormatter().format(entry(*arguments, **named)).split("  ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", stamp)
    return text


def test_a_line_has_time_level_package_event_and_pairs_in_the_order_given() -> None:
    expected = "2026-01-31T12:00:00.250Z WARNING heron_server: round 3 closed clients=4 attempt=0"
    assert line("round %d closed", 3, name="heron_server.rounds.state", level=logging.WARNING, clients=4, attempt=0) == expected


def test_a_line_without_extras_ends_after_its_event() -> None:
    assert line().endswith("heron_server: round closed")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (True, "True"), (None, "None"), ("plain-1.2", "plain-1.2"), (1 / 3, "0.333333"), (1e-12, "1e-12"), (float("nan"), "nan")],
)
def test_plain_values_are_written_as_they_are(value: Any, text: str) -> None:
    assert line(key=value).endswith(f" key={text}")


@pytest.mark.parametrize(
    "value", ["", "two words", 'a"b', "a=b", "line\nbreak", "tab\tstop", "x\n2026-01-31T12:00:00.000Z INFO forged: line"]
)
def test_values_that_could_be_misread_are_quoted_as_json(value: str) -> None:
    text = line(key=value)
    assert "\n" not in text
    assert json.loads(text.split(" key=", 1)[1]) == value


@pytest.mark.parametrize("value", ["a\rb", "a\x1b[2Kb", "a\x0bb", "a\u2028b", "a\x00b"])
def test_control_characters_are_quoted_too(value: str) -> None:
    text = line(key=value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert json.loads(text.split(" key=", 1)[1]) == value


def test_people_read_rounds_from_1_shares_in_percent_and_units_that_fit() -> None:
    fields = {
        "round_index": 0,
        "attempt": 1,
        "clients": 2,
        "test_accuracy": 0.6555,
        "seconds": 200.0,
        "inbox_bytes": 1 << 20,
        "weights": 1048576.0,
    }
    assert (
        told(**fields) == "round closed: round 1, attempt 2, clients 2, test accuracy 65.5%, 3 min 20 s, inbox 1.05 MB, weights 1,048,576"
    )
    assert line(**fields).endswith("round_index=0 attempt=1 clients=2 test_accuracy=0.6555 seconds=200 inbox_bytes=1048576 weights=1048576")


def test_people_read_the_level_where_something_is_wrong_and_the_reason_without_its_name() -> None:
    assert told("no room", level=logging.ERROR, reason="disk full") == "ERROR: no room: disk full"


def test_where_a_record_has_a_sentence_for_people_it_stands_for_event_and_fields_and_machines_do_not_read_it() -> None:
    fields = {"live": 1, TOLD: "waiting for 3 of 4 clients (quorum 2)"}
    assert told("waiting for clients", **fields) == "waiting for 3 of 4 clients (quorum 2)"
    assert line("waiting for clients", **fields).endswith("heron_server: waiting for clients live=1")


@pytest.mark.parametrize("text", ["x\ny", "x\x1b[2Ky", "x\u202ey"])
def test_what_others_wrote_stays_one_line_for_people_too(text: str) -> None:
    for said in (told("failed", reason=text), told("failed", client=text), told("failed", **{TOLD: text})):
        assert said.isprintable()


def test_the_format_follows_the_option_and_a_file_is_for_machines() -> None:
    stream = io.StringIO()
    for log_format, begins in (("auto", r"\d{4}-"), ("key-value", r"\d{4}-"), ("human", r"\d\d:\d\d:\d\d  hello")):
        set_up_logging("info", stream, log_format=log_format)
        logging.getLogger("heron_client").info("hello")
        assert re.match(begins, stream.getvalue().splitlines()[-1])


def test_a_traceback_follows_its_line_indented() -> None:
    try:
        raise ValueError("the cause")
    except ValueError:
        record = logging.LogRecord("heron_client", logging.ERROR, "f", 1, "step failed", (), sys.exc_info())
        record.local_step = 3
        first, *rest = StructuredFormatter().format(record).split("\n")
    assert first.endswith("ERROR heron_client: step failed local_step=3")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == "  ValueError: the cause"


def test_none_of_the_records_own_attributes_appears_as_an_extra() -> None:
    stream = io.StringIO()
    set_up_logging("info", stream)
    logging.getLogger("heron_common").info("hello", extra={"only": 1})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO heron_common: hello only=1\n", stream.getvalue())


def test_setting_up_twice_writes_each_line_once_to_the_last_stream() -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up_logging("info", first)
    set_up_logging("info", second)
    logging.getLogger("heron_server").info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)


@pytest.mark.parametrize("name", LOGGERS[1:])
def test_the_level_applies_to_every_package_of_ours(name: str) -> None:
    stream = io.StringIO()
    set_up_logging("warning", stream)
    logging.getLogger(f"{name}.part").info("quiet")
    logging.getLogger(f"{name}.part").warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_other_libraries_speak_only_from_warnings_on() -> None:
    stream = io.StringIO()
    set_up_logging("debug", stream)
    logging.getLogger("some_library.part").info("chatter")
    logging.getLogger("some_library.part").warning("trouble")
    logging.getLogger("heron_client").debug("detail")
    assert "chatter" not in stream.getvalue()
    assert "trouble" in stream.getvalue()
    assert "detail" in stream.getvalue()


def test_handlers_of_others_are_left_alone() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    set_up_logging("info", io.StringIO())
    assert other in logging.getLogger().handlers


def test_logs_leave_a_stream_that_was_closed_under_them() -> None:
    closed, following = io.StringIO(), io.StringIO()
    set_up_logging("info", closed)
    closed.close()
    redirect_logs(following)
    logging.getLogger("heron_client").warning("still heard")
    assert "still heard" in following.getvalue()
