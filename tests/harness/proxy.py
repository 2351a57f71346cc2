"""A TCP proxy on loopback that delays what passes through it, and can cut or refuse connections."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from random import Random
from types import TracebackType

_PIECE = 16 * 1024


class DelayingProxy:
    """Forwards to host:port; every piece waits for up to `max_delay_seconds`, drawn from `seed`."""

    def __init__(self, target: str, max_delay_seconds: float, seed: int) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._max_delay = max_delay_seconds
        self._random = Random(seed)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.bytes_forwarded = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> DelayingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection that is open now; new ones are accepted."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for sock in sockets:
            # Closing with a zero linger time sends a reset instead of a goodbye; the forwarding threads may have closed it first.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

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
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(_PIECE):
                self._closed.wait(self._random.uniform(0.0, self._max_delay))
                sink.sendall(piece)
                self.bytes_forwarded += len(piece)
        except OSError:
            return
        finally:
            for sock in (source, sink):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
