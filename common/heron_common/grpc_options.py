"""Channel and server options that both sides must agree on: message cap, keepalive, compression off."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 2 << 20
"""Two chunks: bounds the memory of one message, which nested messages without content make twenty times as large; larger things are streamed."""

KEEPALIVE_SECONDS = 60
"""Below the four minutes after which common NATs drop a silent connection."""

CALL_DEADLINE_SECONDS = 30.0
"""For calls that answer at once; streams get a deadline of their own."""

_SHARED: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # A size limit that is checked after decompression is no limit, so compressed messages are not accepted at all.
    ("grpc.per_message_decompression", 0),
)


def channel_options() -> list[tuple[str, int]]:
    """Return the options of a client's channel."""
    return [
        *_SHARED,
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        # What a connection holds for its next read grows with what it read before, up to 4 MiB: too much on a device after a large download.
        ("grpc.experimental.tcp_max_read_chunk_size", 256 << 10),
    ]


def server_options() -> list[tuple[str, int]]:
    """Return the options of the server; it accepts pings twice as often as clients send them."""
    return [
        *_SHARED,
        ("grpc.http2.lookahead_bytes", 16 << 20),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]
