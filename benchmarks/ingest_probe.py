"""A bystander with a process of its own: asks the server ten times a second until it is gone, and prints how long the answers took, as JSON.

What a load generator of a thousand clients measures is also its own queue; this is the server's part.
"""

from __future__ import annotations

import json
import sys
import time

import grpc

from heron_common.protocol.grpc_options import channel_options
from heron_common.protocol.seal import opening, sealing
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb

SERVICE = "/heron.v1.SplitTraining/"
PERIOD_SECONDS = 0.1


def main() -> None:
    """Ask and print."""
    channel = grpc.insecure_channel(sys.argv[1], options=channel_options())

    def call(method: str, request: type, response: type) -> grpc.UnaryUnaryMultiCallable:
        return channel.unary_unary(
            SERVICE + method, request_serializer=sealing(request.SerializeToString), response_deserializer=opening(response.FromString)
        )

    join, ask = call("Join", pb.JoinRequest, pb.JoinResponse), call("NextAssignment", pb.NextAssignmentRequest, pb.NextAssignmentResponse)
    visit = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, client_name="bystander", identity_key="k" * 32, only_checks=True)
    seconds: list[float] = []
    try:
        session = join(visit, timeout=60).session
        while True:
            started = time.monotonic()
            ask(pb.NextAssignmentRequest(session=session), timeout=60)
            seconds.append(time.monotonic() - started)
            time.sleep(PERIOD_SECONDS)
    except grpc.RpcError:
        # The run is over, and so is the server.
        seconds.sort()
        print(
            json.dumps(
                {"asks": len(seconds), "p50": seconds[len(seconds) // 2], "p99": seconds[int(len(seconds) * 0.99)]} if seconds else {}
            )
        )


if __name__ == "__main__":
    main()
