"""What the window of an unread stream costs on loopback: megabytes a second of one upload stream, variants in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from heron_common.protocol.grpc_options import channel_options, server_options
from heron_common.protocol.timing import Timing

CHUNK = bytes(256 << 10)
CHUNKS_PER_STREAM = 600
REPEATS = 4

VARIANTS: dict[str, dict[str, int]] = {
    "ours (256 KiB, no probes)": {},
    "64 KiB, no probes": {"grpc.http2.lookahead_bytes": 64 << 10},
    "1 MiB, no probes": {"grpc.http2.lookahead_bytes": 1 << 20},
    "256 KiB, probes": {"grpc.http2.bdp_probe": 1},
    "16 MiB, probes (before)": {"grpc.http2.lookahead_bytes": 16 << 20, "grpc.http2.bdp_probe": 1},
}


class _Sink(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_unary_rpc_method_handler(_swallow)


def _swallow(messages: Iterator[bytes], context: Any) -> bytes:
    for _ in messages:
        pass
    return b""


def main() -> None:
    """Measure every variant in turn, several times, and print each one's runs."""
    calls, servers = {}, []
    for name, options in VARIANTS.items():
        server = grpc.server(futures.ThreadPoolExecutor(2), options=list({**dict(server_options(Timing())), **options}.items()))
        server.add_generic_rpc_handlers((_Sink(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        calls[name] = grpc.insecure_channel(f"127.0.0.1:{port}", options=channel_options()).stream_unary("/sink/stream")
    runs: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(REPEATS):
        for name, call in calls.items():
            started = time.monotonic()
            call(CHUNK for _ in range(CHUNKS_PER_STREAM))
            runs[name].append(len(CHUNK) * CHUNKS_PER_STREAM / 1e6 / (time.monotonic() - started))
    for name, rates in runs.items():
        print(f"{name:28} {' '.join(f'{rate:6.0f}' for rate in rates)} MB/s")
    for server in servers:
        server.stop(0)


if __name__ == "__main__":
    main()
