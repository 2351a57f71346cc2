"""The catalog of refusals: code -> gRPC status, whether a retry can help, and what it means.

The status is a name, not a gRPC object: the domain knows no gRPC, and the one interceptor that does looks the name up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a request was refused. The value travels in trailing metadata and labels `heron_server_rejections_total`."""

    PROTOCOL_VERSION = "protocol_version"
    NAME_IN_USE = "name_in_use"
    INVALID_NAME = "invalid_name"
    TOO_MANY_CLIENTS = "too_many_clients"
    TOO_MANY_CALLS = "too_many_calls"
    MALFORMED = "malformed"
    SESSION_UNKNOWN = "session_unknown"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATE_EXPIRED = "certificate_expired"
    IDENTITY_MISMATCH = "identity_mismatch"
    DRAINING = "draining"
    BLOB_UNKNOWN = "blob_unknown"
    ROUND_OVER = "round_over"
    NOT_IN_COHORT = "not_in_cohort"
    UNEXPECTED_UPLOAD = "unexpected_upload"
    INVALID_TENSOR = "invalid_tensor"
    NON_FINITE = "non_finite"
    LABEL_RANGE = "label_range"
    TRUNCATED = "truncated"
    OVERSIZED = "oversized"
    DIGEST_MISMATCH = "digest_mismatch"
    CONFLICTING_UPLOAD = "conflicting_upload"
    TOO_FAR_AHEAD = "too_far_ahead"
    SPOOL_FULL = "spool_full"
    STORAGE = "storage"
    STREAM_BUSY = "stream_busy"
    UPDATE_INCOMPLETE = "update_incomplete"
    LOG_MISMATCH = "log_mismatch"
    INTERNAL = "internal"


@dataclass(frozen=True)
class CatalogEntry:
    """What a code means on the wire and to a person."""

    grpc_status: str
    retryable: bool
    meaning: str


CATALOG: dict[ErrorCode, CatalogEntry] = {
    ErrorCode.PROTOCOL_VERSION: CatalogEntry("FAILED_PRECONDITION", False, "client and server speak different protocol versions"),
    ErrorCode.NAME_IN_USE: CatalogEntry("ALREADY_EXISTS", False, "a live client has this name already"),
    ErrorCode.INVALID_NAME: CatalogEntry("INVALID_ARGUMENT", False, "the client's name or identity key cannot be used"),
    ErrorCode.TOO_MANY_CLIENTS: CatalogEntry("RESOURCE_EXHAUSTED", True, "the server serves as many clients as it may"),
    ErrorCode.TOO_MANY_CALLS: CatalogEntry("RESOURCE_EXHAUSTED", True, "there are more calls at a time than the server takes"),
    ErrorCode.MALFORMED: CatalogEntry("INVALID_ARGUMENT", False, "a message came as it was sent, but is none of this call"),
    ErrorCode.SESSION_UNKNOWN: CatalogEntry("UNAUTHENTICATED", False, "the session is over or was never opened; join again"),
    ErrorCode.CERTIFICATE_REVOKED: CatalogEntry("UNAUTHENTICATED", False, "the authority has revoked the client's certificate"),
    ErrorCode.CERTIFICATE_EXPIRED: CatalogEntry("UNAUTHENTICATED", False, "the client's certificate has expired since it connected"),
    ErrorCode.IDENTITY_MISMATCH: CatalogEntry("PERMISSION_DENIED", False, "the client speaks for another than its certificate names"),
    ErrorCode.DRAINING: CatalogEntry("UNAVAILABLE", True, "the server is shutting down"),
    ErrorCode.BLOB_UNKNOWN: CatalogEntry("NOT_FOUND", False, "the blob was not named in this client's join or assignment"),
    ErrorCode.ROUND_OVER: CatalogEntry("ABORTED", False, "the round or attempt is over"),
    ErrorCode.NOT_IN_COHORT: CatalogEntry("FAILED_PRECONDITION", False, "the client does not take part in this round"),
    ErrorCode.UNEXPECTED_UPLOAD: CatalogEntry("INVALID_ARGUMENT", False, "the plan does not ask for this upload"),
    ErrorCode.INVALID_TENSOR: CatalogEntry(
        "INVALID_ARGUMENT", False, "a tensor's name, dtype, shape or size is not what this round expects"
    ),
    ErrorCode.NON_FINITE: CatalogEntry("INVALID_ARGUMENT", False, "a tensor holds NaN or infinity, or a statistic is out of its range"),
    ErrorCode.LABEL_RANGE: CatalogEntry("INVALID_ARGUMENT", False, "a label is outside the classes of the data specification"),
    ErrorCode.TRUNCATED: CatalogEntry("DATA_LOSS", True, "a stream ended early"),
    ErrorCode.OVERSIZED: CatalogEntry("INVALID_ARGUMENT", False, "a stream or chunk is larger than announced or allowed"),
    ErrorCode.DIGEST_MISMATCH: CatalogEntry("DATA_LOSS", True, "the bytes that arrived are not the bytes that were sent"),
    ErrorCode.CONFLICTING_UPLOAD: CatalogEntry("FAILED_PRECONDITION", False, "the same upload came before with other bytes"),
    ErrorCode.TOO_FAR_AHEAD: CatalogEntry("RESOURCE_EXHAUSTED", True, "under lockstep this client is ahead of the others"),
    ErrorCode.SPOOL_FULL: CatalogEntry("RESOURCE_EXHAUSTED", True, "the server's spool is full for now"),
    ErrorCode.STORAGE: CatalogEntry("RESOURCE_EXHAUSTED", True, "the server's disk refuses, so that it can acknowledge nothing for now"),
    ErrorCode.STREAM_BUSY: CatalogEntry("RESOURCE_EXHAUSTED", True, "this client has an upload under way already"),
    ErrorCode.UPDATE_INCOMPLETE: CatalogEntry(
        "FAILED_PRECONDITION", False, "the update does not follow the uploads that the plan asks for"
    ),
    ErrorCode.LOG_MISMATCH: CatalogEntry(
        "FAILED_PRECONDITION", False, "an update log does not arrive at the weights that it names; send them"
    ),
    ErrorCode.INTERNAL: CatalogEntry("INTERNAL", True, "the server met an unexpected error; its log has the details"),
}
"""Every code has an entry; a test compares the two."""

ERROR_CODE_METADATA = "heron-error-code"
RETRY_PUSHBACK_METADATA = "grpc-retry-pushback-ms"
