"""A stranger that speaks just enough HTTP/2 to open calls, to send as much of a message as it likes, and to take no answer."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_INITIAL_WINDOW_SIZE = 4
_END_HEADERS, _ACK = 4, 1

STREAMS = 4
"""Calls that a connection may have at a time."""


def message_of(data: bytes) -> bytes:
    """Return a message as gRPC frames it."""
    return struct.pack(">BI", 0, len(data)) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _field(name: str, value: str) -> bytes:
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


class RawConnection:
    """One connection whose window for answers is 0 bytes wide; it reads nothing after the greeting."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._authority = target
        self._next_stream = 1
        window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, window))
        self._socket.recv(1)
        self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))

    def call(self, path: str, sent: bytes = b"") -> None:
        """Begin a call and send these bytes of its message; it is never ended."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": self._authority,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(_field(name, value) for name, value in fields.items())
        frames = _frame(_HEADERS, _END_HEADERS, self._next_stream, block)
        if sent:
            frames += _frame(_DATA, 0, self._next_stream, sent)
        self._next_stream += 2
        self._socket.sendall(frames)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextmanager
def flood(target: str, path: str, sent: bytes, calls: int) -> Iterator[None]:
    """Hold so many calls of a method, in which the same bytes are sent, as long as the context lasts."""
    with ExitStack() as stack:
        for _ in range(-(-calls // STREAMS)):
            connection = RawConnection(target)
            stack.callback(connection.close)
            for _ in range(STREAMS):
                connection.call(path, sent)
        yield
