"""A TCP proxy on loopback that does one harm after another to the connections of real processes, each when a call by a certain name passes.

gRPC's client writes a call's path in clear the first time, and then refers to the connection's header table. The proxy therefore asks for a table of
size 0 in the server's name: it puts that setting into the server's first frame, and every call names itself.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

_PIECE = 16 * 1024
_FRAME_HEADER_BYTES = 9
_TABLE_SIZE_SETTING = struct.pack(">HI", 1, 0)


class Harm(Enum):
    """What happens to a connection, and to nothing else."""

    DELAY = "delay"
    """Everything of it is held for a while, and then goes on."""
    BANDWIDTH = "bandwidth"
    """For a while it is slow."""
    RESET = "reset"
    """Both ends get a reset."""
    HALF_OPEN = "half open"
    """The server's end is closed; the client's stays open, and nobody is there."""
    BLACK_HOLE = "black hole"
    """Both ends stay open, and what they send vanishes."""
    TRUNCATE = "truncate"
    """Half of a piece passes, then both ends are closed in order."""
    FLIP = "flip"
    """One bit of one byte is another; nothing else happens."""


@dataclass(frozen=True)
class Fault:
    """One harm, done once: when the call's name has passed and `after_bytes` more, upwards or downwards."""

    call: str
    harm: Harm
    after_bytes: int = 0
    downwards: bool = False


class FaultProxy:
    """Forwards to host:port and does its faults in their order."""

    hold_seconds = 0.5
    bytes_per_second = 100_000

    def __init__(self, target: str, faults: Sequence[Fault]) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._left = list(faults)
        self.done: list[Fault] = []
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            _close(sock)

    def next_fault(self) -> Fault | None:
        """Return the fault whose turn it is."""
        with self._lock:
            return self._left[0] if self._left else None

    def take(self, fault: Fault) -> bool:
        """Return whether it is the caller that does a fault; nobody does it twice."""
        with self._lock:
            if not self._left or self._left[0] is not fault:
                return False
            self.done.append(self._left.pop(0))
            return True

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the proxy's own end."""
        self._closed.wait(seconds)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets |= {near, far}
            connection = _Connection(self, near, far)
            for downwards in (False, True):
                threading.Thread(target=connection.forward, args=(downwards,), daemon=True).start()


class _Connection:
    """One connection, passed on by a thread for each way."""

    def __init__(self, proxy: FaultProxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy, self._near, self._far = proxy, near, far
        self._lock = threading.Lock()
        self._armed: Fault | None = None
        self._bytes_left = 0
        self._swallows = False
        self._slow_until = 0.0

    def forward(self, downwards: bool) -> None:
        """Pass on what comes from one side, unharmed or not."""
        source, sink = (self._far, self._near) if downwards else (self._near, self._far)
        tail = b""
        first = downwards
        try:
            while piece := source.recv(_PIECE):
                if first:
                    piece, first = _without_header_table(piece, source), False
                if not downwards:
                    self._look(tail + piece)
                    tail = piece[-64:]
                self._pass(sink, piece, downwards)
        except OSError:
            pass
        finally:
            # Where one side is only believed to be there, its end stays open until the other notices.
            if not self._swallows:
                _close(self._near)
                _close(self._far)

    def _look(self, seen: bytes) -> None:
        with self._lock:
            fault = self._proxy.next_fault()
            if self._armed is None and fault is not None and f"SplitTraining/{fault.call}".encode() in seen:
                self._armed, self._bytes_left = fault, fault.after_bytes

    def _pass(self, sink: socket.socket, piece: bytes, downwards: bool) -> None:
        with self._lock:
            fault, place = self._armed, -1
            if fault is not None and fault.downwards == downwards:
                place, self._bytes_left = self._bytes_left, self._bytes_left - len(piece)
            hits = 0 <= place < len(piece)
            if hits:
                self._armed = None
        if hits and fault is not None and self._proxy.take(fault):
            piece = self._harm(fault.harm, piece, place, sink)
        if self._swallows:
            return
        if time.monotonic() < self._slow_until:
            self._proxy.pause(len(piece) / self._proxy.bytes_per_second)
        sink.sendall(piece)

    def _harm(self, harm: Harm, piece: bytes, place: int, sink: socket.socket) -> bytes:
        if harm is Harm.DELAY:
            self._proxy.pause(self._proxy.hold_seconds)
        elif harm is Harm.BANDWIDTH:
            self._slow_until = time.monotonic() + self._proxy.hold_seconds
        elif harm is Harm.RESET:
            for sock in (self._near, self._far):
                _reset(sock)
            raise ConnectionResetError
        elif harm in (Harm.HALF_OPEN, Harm.BLACK_HOLE):
            self._swallows = True
            if harm is Harm.HALF_OPEN:
                _reset(self._far)
        elif harm is Harm.TRUNCATE:
            sink.sendall(piece[: max(1, place or len(piece) // 2)])
            raise ConnectionAbortedError
        elif harm is Harm.FLIP:
            return piece[:place] + bytes([piece[place] ^ 0x04]) + piece[place + 1 :]
        return piece


def _without_header_table(piece: bytes, source: socket.socket) -> bytes:
    """Add a setting to the server's first frame, which holds its settings."""
    while len(piece) < _FRAME_HEADER_BYTES + int.from_bytes(piece[:3], "big"):
        piece += source.recv(_PIECE)
    length = int.from_bytes(piece[:3], "big")
    end = _FRAME_HEADER_BYTES + length
    assert piece[3] == 4, "a server begins with its settings"
    return (length + len(_TABLE_SIZE_SETTING)).to_bytes(3, "big") + piece[3:end] + _TABLE_SIZE_SETTING + piece[end:]


def _reset(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Only what is closed for good is reset, and a thread that reads from it would keep it open.
        sock.shutdown(socket.SHUT_RD)
    sock.close()


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
