"""A gRPC server that does what nobody could leave out: takes streams, digests them, answers asks. What HERON's is measured against."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from heron_common.protocol.grpc_options import server_options
from heron_common.protocol.timing import Timing

METHODS = "/bare/"
ANSWER = b"x" * 200


class _Handler(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method.endswith("Ask"):
            return grpc.unary_unary_rpc_method_handler(lambda _message, _context: ANSWER)
        return grpc.stream_stream_rpc_method_handler(_digest)


def _digest(messages: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for message in messages:
        digest.update(message)
    yield digest.digest()


def main() -> None:
    """Serve until killed; the first line of output is the port."""
    threads = int(sys.argv[1])
    server = grpc.server(
        futures.ThreadPoolExecutor(threads), handlers=(_Handler(),), maximum_concurrent_rpcs=threads, options=server_options(Timing())
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
