"""Connections that say nothing, or nothing more: they are closed in time and leave room for a run's files, and an honest client's asks go on meanwhile."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import ExitStack

import grpc
import pytest

from heron_common.protocol.grpc_options import channel_options
from heron_server.service import descriptors
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer
from tests.server.wire_client import WireClient

Serve = Callable[..., RunningServer]


def silent(target: str, stack: ExitStack) -> socket.socket:
    """Open a connection on which nobody ever says anything."""
    host, _, port = target.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    stack.callback(connection.close)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has hung up."""
    while select.select([connection], [], [], 0)[0]:
        try:
            if not connection.recv(4096):
                return True
        except OSError:
            return True
    return False


def idle(target: str, stack: ExitStack) -> list[grpc.ChannelConnectivity]:
    """Open a real channel, which answers pings, and make no call; return the states that it goes through."""
    channel = grpc.insecure_channel(target, options=[*channel_options(), ("grpc.use_local_subchannel_pool", 1)])
    stack.callback(channel.close)
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=True)
    return states


def test_idle_connections_are_closed_in_time_and_honest_asks_go_on(serve: Serve) -> None:
    server = serve(trains=False, liveness_seconds=3)
    with ExitStack() as stack, WireClient(server.target) as client:
        client.join()
        mute = [silent(server.target, stack) for _ in range(100)]
        quiet = [idle(server.target, stack) for _ in range(10)]

        def all_gone() -> bool:
            client.ask()
            left = [states for states in quiet if states[-1:] != [grpc.ChannelConnectivity.IDLE]]
            return all(map(is_closed, mute)) and not left

        eventually(all_gone, 60, "the end of idle connections")
        assert all(grpc.ChannelConnectivity.READY in states for states in quiet)


def test_strangers_leave_room_for_files_and_take_nothing_from_who_is_there(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "descriptor_limit", lambda: 20)
    server = serve(trains=False, liveness_seconds=3)
    with ExitStack() as stack, WireClient(server.target) as client:
        client.join()
        mute = [silent(server.target, stack) for _ in range(60)]

        def refused() -> int:
            client.ask()
            return sum(map(is_closed, mute))

        eventually(lambda: refused() >= 60 - 18 + 1, 30, "refused connections")
        eventually(lambda: refused() == 60, 60, "the end of the others")
        with WireClient(server.target, "late") as late:
            assert late.join().session
