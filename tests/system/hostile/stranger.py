"""Everything that a stranger without a session can do to a server, all at once, until it is ended. Run: python -m ... HOST:PORT [seconds between waves]"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import grpc

from heron_common.protocol.seal import seal
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb
from tests.harness.raw_http2 import flood

SERVICE = "/heron.v1.SplitTraining/"
SILENT = ("Join", "FetchBlob", "NextAssignment", "TrainBatch", "SubmitUpdate", "Leave")


def hold_silent_calls(target: str) -> None:
    """Three times as many as there are slots, of every method and of health, again and again: whoever is cut off comes back."""
    while True:
        with suppress(OSError), ExitStack() as held:
            for path in (*(SERVICE + name for name in SILENT), "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"):
                held.enter_context(flood(target, path, b"", 32))
            time.sleep(0.5)


def send_nonsense(target: str) -> None:
    """A good seal around what is no message."""
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(SERVICE + "Leave", request_serializer=seal, response_deserializer=bytes)
        while True:
            with suppress(grpc.RpcError):
                call(b"\x0a", timeout=5)
            time.sleep(0.01)


def open_visits(target: str) -> None:
    """Sessions of clients that only check, more than an address may have."""
    visit = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, only_checks=True).SerializeToString()
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(SERVICE + "Join", request_serializer=seal, response_deserializer=bytes)
        while True:
            with suppress(grpc.RpcError):
                call(visit, timeout=5)
            time.sleep(0.01)


def connect_and_say_nothing(target: str, connections: int = 340) -> None:
    """TCP and nothing else."""
    host, _, port = target.rpartition(":")
    held = []
    for _ in range(connections):
        with suppress(OSError):
            held.append(socket.create_connection((host, int(port)), timeout=2))
    threading.Event().wait()


def main(target: str) -> None:
    """Do it all until killed."""
    attacks: list[Callable[[str], None]] = [hold_silent_calls, send_nonsense, open_visits, connect_and_say_nothing]
    threads = [threading.Thread(target=attack, args=(target,), daemon=True) for attack in attacks]
    for thread in threads:
        thread.start()
    print("attacking", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
