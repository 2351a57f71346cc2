"""Channel and server options that both sides must agree on: message cap, keepalive, compression off."""

from __future__ import annotations

from heron_common.protocol.timing import Timing

MAX_MESSAGE_BYTES = 2 << 20
"""Two chunks: bounds the memory of one message, which nested messages without content make twenty times as large; larger things are streamed."""

UNREAD_STREAM_BYTES = 256 << 10
"""What gRPC takes of a stream before anybody reads it; at a round trip of 50 ms it still passes 5 MB/s."""

STREAMS_PER_CLIENT = 4
"""On one connection: an upload or a download, a control call, and for each one that still ends while the next begins."""

_SHARED: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # A size limit that is checked after decompression is no limit, so compressed messages are not accepted at all.
    ("grpc.per_message_decompression", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


def channel_options(timing: Timing | None = None) -> list[tuple[str, int]]:
    """Return the options of a client's channel; without a timing those of the time before the server named one."""
    return [
        *_SHARED,
        *_keepalive(timing or Timing()),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        # What a connection holds for its next read grows with what it read before, up to 4 MiB: too much on a device after a large download.
        ("grpc.experimental.tcp_max_read_chunk_size", 256 << 10),
    ]


def server_options(timing: Timing) -> list[tuple[str, int]]:
    """Return the options of the server; it accepts pings twice as often as clients send them, before and after they know its timing."""
    often = int(min(timing.keepalive_seconds, Timing().keepalive_seconds) * 500)
    return [
        *_SHARED,
        *_keepalive(timing),
        ("grpc.http2.lookahead_bytes", UNREAD_STREAM_BYTES),
        # Its probes raise that window by themselves, to megabytes a stream, and a client that is refused fills it again and again.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", STREAMS_PER_CLIENT),
        ("grpc.server_handshake_timeout_ms", int(timing.handshake_seconds * 1000)),
        ("grpc.max_connection_idle_ms", int(timing.idle_seconds * 1000)),
        # It also counts streams that are over and wait for Python's collector, and refuses ordinary clients for them; calls at a time have a bound anyway.
        ("grpc.http.overload_protection", 0),
        ("grpc.experimental.tcp_max_read_chunk_size", 256 << 10),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", often),
        ("grpc.http2.min_ping_interval_without_data_ms", often),
        ("grpc.so_reuseport", 0),
    ]


def _keepalive(timing: Timing) -> list[tuple[str, int]]:
    timeout = int(timing.ping_timeout_seconds * 1000)
    return [
        ("grpc.keepalive_time_ms", int(timing.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", timeout),
        # Pings have a timeout of their own, a minute, and it is the one that counts: the one above is the socket's, for bytes nobody confirms.
        ("grpc.http2.ping_timeout_ms", timeout),
    ]
