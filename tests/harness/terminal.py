"""A process on a pseudo-terminal, as somebody who started it by hand sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

import pyte

_TAKE_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
"""Makes the pseudo-terminal the controlling one, so that Ctrl-C is a signal; a function between fork and exec is not safe beside threads."""


_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Terminal:
    """Starts a command on a terminal of its own and keeps what is on its screen; a context manager that ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None, columns: int = 80, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        self._lock = threading.Lock()
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self.printed = bytearray()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size; its process is told by SIGWINCH."""
        with self._lock:
            self._screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press_ctrl_c(self) -> None:
        """Type Ctrl-C."""
        os.write(self._master, b"\x03")

    @property
    def exit_code(self) -> int | None:
        """The process's exit code, or None while it runs."""
        return self.process.poll()

    def screen(self) -> str:
        """Return the lines that are on the screen now."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def everything(self) -> str:
        """Return what was printed so far, in one line: a terminal breaks lines where it ends."""
        return " ".join(_CONTROL.sub(" ", self.printed.decode(errors="replace")).split())

    def last_screen(self) -> str:
        """Return what the process left on the screen; call when it has ended."""
        self._reader.join(10)
        return self.screen()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                # The last process that had the terminal open is gone.
                return
            if not data:
                return
            self.printed += data
            with self._lock:
                self._stream.feed(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.exit_code is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._master)
