"""Real server and client processes that start at once: one process imports both sides, and each start is a fork of it.

A test that kills and starts processes again and again would spend most of its time on importing torch. What is forked is what the commands are after
their imports: a process of its own, with its own sockets, threads and exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from heron_cli.processes import LoggedProcess, ProcessGroup


class Forks:
    """The process that forks; close it when no fork is needed any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> Any:
        """Send one request and return its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with self._lock:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

    def close(self) -> None:
        """End it; safe to repeat."""
        with self._process:
            if self._process.stdin is not None:
                self._process.stdin.close()


class ForkedProcess:
    """A fork, with what tests use of `subprocess.Popen`."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks = forks
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        # Until its end was seen here nobody has waited for it, so the number is still its own.
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkingGroup(ProcessGroup):
    """Starts servers and clients as forks."""

    def __init__(self, log_directory: Path, forks: Forks) -> None:
        super().__init__(log_directory)
        self._forks = forks

    def start(self, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> LoggedProcess:
        log = self._log_directory / f"{name}.log"
        given = {**os.environ, **(environment or {})}
        pid = self._forks.ask(start=module, arguments=list(arguments), environment=given, log=str(log))
        member = LoggedProcess(name, cast("subprocess.Popen[bytes]", ForkedProcess(self._forks, pid)), log)
        self._members.append(member)
        return member


def _serve() -> None:
    import torch._dynamo  # noqa: F401 - torch imports it with the first model that is traced, for two seconds

    import heron_client.app
    import heron_client.cli
    import heron_server.app
    import heron_server.cli

    commands = {"heron_server": heron_server.cli.main, "heron_client": heron_client.cli.main}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer: Any = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _become(commands[request["start"]], request)
        print(json.dumps(answer), flush=True)


def _become(command: Any, request: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            opened = os.open(path, flags, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        os.dup2(1, 2)
        os.environ.clear()
        os.environ.update(request["environment"])
        code = int(command(request["arguments"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
