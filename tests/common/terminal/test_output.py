"""Closed pipes, full disks, missing streams: a command does its work, ends with its own code, and no traceback is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heron_common.exit_codes import ExitCode

pytestmark = pytest.mark.process

LONG = "from heron_common.terminal.output import say\nfor number in range(3000):\n    say('x' * 100)\nopen({path!r}, 'w').write('done')\n"


def run(arguments: list[str], stdout: int | None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False)


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_what_prints_goes_on_when_nobody_reads(tmp_path: Path) -> None:
    done = run(["-c", LONG.format(path=str(tmp_path / "done"))], closed_pipe())
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


def test_a_reader_that_leaves_in_between_is_no_error(tmp_path: Path) -> None:
    script = LONG.format(path=str(tmp_path / "done"))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"x" * 100 + b"\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0 and (tmp_path / "done").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["--version"], ["status", "127.0.0.1:1", "--once"]])
def test_the_command_has_its_own_exit_code_when_nobody_reads(arguments: list[str]) -> None:
    done = run(["-m", "heron_cli", *arguments], closed_pipe())
    assert done.returncode == (ExitCode.UNREACHABLE if arguments[0] == "status" and "--once" in arguments else ExitCode.OK)
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


def test_an_error_that_nobody_can_read_still_has_its_code() -> None:
    writer = closed_pipe()
    done = subprocess.run([sys.executable, "-m", "heron_cli", "status"], stdout=writer, stderr=writer, timeout=60, check=False)
    assert done.returncode == ExitCode.CONFIGURATION


def test_a_full_disk_is_a_sentence_for_a_result_would_be_lost() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(["-m", "heron_cli", "--version"], full.fileno())
    assert done.returncode == ExitCode.STORAGE
    assert done.stderr == b"heron: standard output cannot be written (No space left on device): free some space or send it elsewhere\n"


def test_streams_that_are_not_there_are_no_error() -> None:
    script = (
        "import sys; sys.stdout = sys.stderr = None\nfrom heron_common.terminal.output import is_terminal\nfrom heron_cli.cli import main\n"
    )
    script += "assert not is_terminal()\nsys.exit(main(['--version']))"
    assert run(["-c", script], None).returncode == 0


def test_a_terminal_of_few_letters_gets_escapes() -> None:
    script = "from heron_common.terminal.output import say\nsay('häuser', '漢')"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (b"h\\xe4user\n\\u6f22\n", b"")
