"""Start heron-server and heron-client as processes on this machine, watch them, and stop what was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from heron_common.errors import HeronError
from heron_common.files.plain_files import MOST_DOCUMENT_BYTES, MOST_SUMMARY_BYTES, read_plain

START_DEADLINE_SECONDS = 120.0
"""Importing torch and compiling programs takes seconds; minutes mean that something is wrong."""

STOP_DEADLINE_SECONDS = 20.0


class ProcessError(HeronError):
    """A process that was started here failed; `process` is it, where it had begun."""

    def __init__(self, sentence: str, process: LoggedProcess | None = None) -> None:
        super().__init__(sentence)
        self.process = process


@dataclass
class LoggedProcess:
    """A process whose output goes to a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def wait(self, deadline_seconds: float) -> int | None:
        """Wait for its end and return its exit code, or None if it still runs."""
        try:
            return self.process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            return None

    def last_line(self) -> str:
        """Return the last line that it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "no output"


class ProcessGroup:
    """Processes that end with this context, whatever happens in it."""

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._members: list[LoggedProcess] = []
        try:
            log_directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ProcessError(f"cannot write {log_directory} ({exc.strerror or exc}): choose another --run-dir") from exc

    def start(self, name: str, module: str, *, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> LoggedProcess:
        """Start `python -m module arguments` with its output in NAME.log; `environment` is added to this process's own."""
        return self.start_command(name, [sys.executable, "-m", module, *arguments], environment)

    def start_command(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> LoggedProcess:
        """Start a command with its output in NAME.log; `environment` is added to this process's own."""
        log = self._log_directory / f"{name}.log"
        with log.open("wb") as file:
            # A session of its own: a Ctrl-C reaches this process alone, which then asks its children to end, once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        member = LoggedProcess(name, process, log)
        self._members.append(member)
        return member

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        running = [member for member in self._members if member.exit_code is None]
        for member in running:
            member.process.terminate()
        for member in running:
            if member.wait(STOP_DEADLINE_SECONDS) is None:
                member.process.kill()
                member.process.wait()


def start_server(
    group: ProcessGroup,
    name: str,
    *,
    run_dir: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    deadline_seconds: float = START_DEADLINE_SECONDS,
) -> tuple[LoggedProcess, str]:
    """Start heron-server on a free loopback port and return it with its address once it listens; large models take minutes to compile.

    Raises:
        ProcessError: it ended or did not listen in time; the sentence has its last line of output.

    """
    address_file = run_dir / "server.json"
    address_file.unlink(missing_ok=True)
    fixed = ["--run-dir", str(run_dir), "--listen", "127.0.0.1:0", "--metrics-port", "0"]
    server = group.start(name, "heron_server", arguments=[*fixed, *arguments], environment=environment)
    wait_for(lambda: address_file.exists() or server.exit_code is not None, deadline_seconds)
    if not address_file.exists():
        raise ProcessError(f"heron-server did not start: {server.last_line()} (whole log: {server.log})", server)
    address: str = json.loads(read_plain(address_file, MOST_DOCUMENT_BYTES))["address"]
    return server, address


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the summary of a run, empty while there is none."""
    try:
        summary: dict[str, Any] = json.loads(read_plain(run_dir / "summary.json", MOST_SUMMARY_BYTES))
    except FileNotFoundError:
        return {}
    return summary


def wait_for(condition: Callable[[], bool], deadline_seconds: float) -> bool:
    """Poll until the condition holds; return whether it did before the deadline."""
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
