"""What others wrote is text wherever it is printed: one line, and nothing in it acts. And nothing is printed past the place that sees to it."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from heron_common.errors import ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.terminal.foreign_text import printable
from heron_common.terminal.log_setup import StructuredFormatter
from heron_common.terminal.output import refuse, say

ROOTS = [Path(__file__).parents[3] / root for root in ("common", "server", "edge_client", "proto")]

HOSTILE = "\x1b[2J\x1b[31mowned\x1b]0;title\x07\r\n2026-01-01T00:00:00.000Z INFO heron_client: forged\u202e\u2066\u200b\x9b31m\x7f\udcff[red]x[/red]"


def harmless(said: str, lines: int) -> bool:
    """Whether what was printed has so many lines, none of them forged, and not a character that acts."""
    found = said.splitlines()
    return len(found) == lines and all(line.isprintable() for line in found) and not any(line.startswith("2026-01-01") for line in found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümläut, 漢字, עברית, 🙂", "plain, ümläut, 漢字, עברית, 🙂"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\tc\x00", "a\\x0ab\\x0d\\x09c\\x00"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("\u202egnp.exe\u2066\u200e", "\\u202egnp.exe\\u2066\\u200e"),
        ("a\u2028b\u2029\u0085c", "a\\u2028b\\u2029\\x85c"),
        ("\udcff\U000e0041\ufeff", "\\udcff\\U000e0041\\ufeff"),
    ],
)
def test_what_acts_is_written_as_an_escape_and_what_is_text_stays(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(printable(text)) == shown


def test_commands_print_lines_and_mistakes_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE, "next")
    assert harmless(capsys.readouterr().out, 2)
    assert refuse("heron", ConfigurationError(HOSTILE, "the second mistake")) is ExitCode.CONFIGURATION
    said = capsys.readouterr().err
    assert harmless(said, 2) and said.splitlines()[1] == "heron: the second mistake"


def test_a_log_line_is_one_whatever_its_message_values_and_error_say() -> None:
    record = logging.LogRecord("heron_client", logging.INFO, "f", 1, HOSTILE, (), None)
    record.reason = HOSTILE
    assert harmless(StructuredFormatter().format(record), 1)
    try:
        raise ValueError(HOSTILE)
    except ValueError as exc:
        record.exc_info = (type(exc), exc, exc.__traceback__)
        text = StructuredFormatter().format(record)
    assert all(line.startswith("  ") for line in text.split("\n")[1:])
    assert harmless(text, len(text.split("\n")))


PRINTERS = {"output.py", "console.py", "log_setup.py"}
"""Files of `heron_common.terminal` that may know the standard streams and rich's console."""

STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}


def raw_prints(path: Path) -> list[str]:
    """Return the places of a file that print without the one function that escapes."""
    found = []
    is_printer = path.parent.name == "terminal" and path.name in PRINTERS
    for node in ast.walk(ast.parse(path.read_text())):
        name = ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            name = "print"
        elif isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            name = "rich.console"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("print", "print_exc"):
            # Of a console tables and renderables may be printed, which are made of text, but no strings with markup.
            texts = [a for a in node.args if isinstance(a, ast.JoinedStr | ast.Constant | ast.Name | ast.BinOp)]
            name = ".print of text" if node.func.attr == "print" and texts else "print_exc" if node.func.attr == "print_exc" else ""
        elif isinstance(node, ast.Attribute) and node.attr in STREAMS and isinstance(node.value, ast.Name) and node.value.id == "sys":
            name = f"sys.{node.attr}"
        if name and not is_printer and not is_allowed(path, name):
            found.append(f"{path.name}:{node.lineno}: {name}")
    return found


def is_allowed(path: Path, name: str) -> bool:
    """Whether a file may ask a stream what it is, or hand it to the log."""
    return path.name in ("status.py", "simulate.py") and name in ("sys.stdout", "sys.stderr")


def test_nothing_is_printed_past_the_one_place_that_escapes() -> None:
    files = [path for root in ROOTS for path in root.rglob("*.py")]
    assert len(files) > 200
    assert [place for path in files for place in raw_prints(path)] == []


def test_the_search_for_raw_prints_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "verb.py"
    path.write_text(
        "import sys, traceback\nfrom rich.console import Console\nprint('x')\nsys.stdout.write('x')\nConsole().print(f'{1}')\ntraceback.print_exc()\n"
    )
    found = {place.partition(": ")[2] for place in raw_prints(path)}
    assert found == {"rich.console", "print", "sys.stdout", ".print of text", "print_exc"}
