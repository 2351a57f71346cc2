"""When a refused call may be tried again, as gRPC's tools read it: google.rpc.RetryInfo beside the pushback that our client reads."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from heron_common.error_catalog import CATALOG, RETRY_PUSHBACK_METADATA
from heron_common.errors import RefusedError

STATUS_DETAILS_METADATA = "grpc-status-details-bin"

USUAL_RETRY_SECONDS = 0.5
"""For retryable refusals that name no time: a stream that was cut or damaged."""


def retry_metadata(error: RefusedError) -> list[tuple[str, str | bytes]]:
    """Return trailing metadata that says when to try again; nothing for a refusal for good that names no time."""
    seconds = error.retry_after_seconds
    if seconds is None and CATALOG[error.code].retryable:
        seconds = USUAL_RETRY_SECONDS
    if seconds is None:
        return []
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))))
    number = grpc.StatusCode[CATALOG[error.code].grpc_status].value[0]
    status = Status(code=number, message=error.sentence, details=[detail])
    return [(RETRY_PUSHBACK_METADATA, str(int(seconds * 1000))), (STATUS_DETAILS_METADATA, status.SerializeToString())]
