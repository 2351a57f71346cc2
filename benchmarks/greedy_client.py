"""Many clients that obey nothing, in one process: they push headers and payloads as fast as the server takes them. Loopback only, bounded in time."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

from heron_client.network.channel import SealingChannel
from heron_common.error_catalog import CATALOG, ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.protocol.grpc_options import channel_options
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingStub

CHUNKS_PER_STREAM = 16
STREAMS_PER_CLIENT = 3
"""Two more than a client may have."""

_CHUNK = pb.TrainBatchRequest(chunk=pb.TensorChunk(tensor_index=0, data=bytes(1 << 20)))


class GreedyClient:
    """One connection, and streams on it that begin anew whenever they are refused."""

    def __init__(self, server: str, index: int, until: float, tally: Counter[str]) -> None:
        # A pool of its own keeps gRPC from sharing one connection among all clients of this process.
        self._channel = grpc.insecure_channel(server, options=[*channel_options(), ("grpc.use_local_subchannel_pool", 1)])
        self._stub: Any = SplitTrainingStub(SealingChannel(self._channel))  # type: ignore[no-untyped-call]
        self._name = f"greedy-{index}"
        self._until, self._tally = until, tally
        self._session, self._run_id, self._round = "", "", pb.RoundReference()

    def run(self) -> None:
        """Join, then push until the time is over."""
        if not self._join():
            return
        threads = [threading.Thread(target=self._push, args=(number,)) for number in range(STREAMS_PER_CLIENT)]
        for thread in threads:
            thread.start()
        while time.monotonic() < self._until:
            self._ask()
            time.sleep(0.5)
        for thread in threads:
            thread.join()
        self._channel.close()

    def _join(self) -> bool:
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION, client_name=self._name, identity_key=self._name.ljust(32, "k"), num_examples=9
        )
        while time.monotonic() < self._until:
            try:
                joined = self._stub.Join(request, timeout=30)
            except grpc.RpcError as error:
                self._count(error)
                continue
            self._session, self._run_id = joined.session, joined.run_id
            return True
        return False

    def _ask(self) -> None:
        try:
            answer = self._stub.NextAssignment(pb.NextAssignmentRequest(session=self._session), timeout=30)
        except grpc.RpcError as error:
            self._count(error)
        else:
            if answer.HasField("assignment"):
                self._round = answer.assignment.round

    def _push(self, number: int) -> None:
        kind = number
        while time.monotonic() < self._until:
            kind += 1
            try:
                for _ in self._stub.TrainBatch(self._messages(kind), timeout=30):
                    self._tally["answered"] += 1
            except grpc.RpcError as error:
                self._count(error)

    def _messages(self, kind: int) -> Iterator[pb.TrainBatchRequest]:
        if kind % 3:
            size = (1 << 20) * CHUNKS_PER_STREAM
            yield pb.TrainBatchRequest(
                header=pb.UploadHeader(
                    session=self._session,
                    run_id=self._run_id,
                    round=self._round,
                    purpose=pb.UPLOAD_PURPOSE_TRAIN,
                    local_step=kind % 2 * 1000,
                    tensors=[pb.TensorSpec(name="activations", dtype=pb.DTYPE_FLOAT32, shape=[size // 4])],
                    total_bytes=size,
                )
            )
        for _ in range(CHUNKS_PER_STREAM):
            self._tally["chunks"] += 1
            yield _CHUNK

    def _count(self, error: Any) -> None:
        metadata = dict(error.trailing_metadata() or ())
        code = str(metadata.get(ERROR_CODE_METADATA, error.code().name))
        self._tally[code] += 1
        if code in set(ErrorCode) and CATALOG[ErrorCode(code)].retryable and RETRY_PUSHBACK_METADATA not in metadata:
            self._tally["without pushback"] += 1


def main() -> None:
    """Run the clients and print what they were told, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    if not given.server.startswith("127.0.0.1:"):
        parser.error("--server is on 127.0.0.1: greedy clients stay on this machine")
    tally: Counter[str] = Counter()
    until = time.monotonic() + min(given.seconds, 120.0)
    threads = [
        threading.Thread(target=GreedyClient(given.server, given.first + i, until, tally).run) for i in range(min(given.clients, 250))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(dict(tally)), flush=True)


if __name__ == "__main__":
    main()
