"""What a round has accepted from a client: uploads and an update, each with its place in the spool."""

from __future__ import annotations

from dataclasses import dataclass

from heron_common.assignment import LocalStatistics, UploadKey
from heron_server.storage.spool import SpoolEntry


@dataclass
class AcceptedUpload:
    """An upload that was acknowledged; `trained` once it was trained on or, of held-out samples, scored.

    `probe_losses` is set once it was judged, `cut_gradient` once lambda is there. `length` is that of its texts, 0 where a run has but one shape: the
    size of an upload does not tell a few long texts from many short ones.

    lambda stays on disk until the client's next upload or update says that it has arrived.
    """

    key: UploadKey
    sha256: str
    entry: SpoolEntry
    accepted_at: float
    probe_losses: tuple[float, ...] | None = None
    cut_gradient: SpoolEntry | None = None
    server_version: int = 0
    trained: bool = False
    length: int = 0


@dataclass(frozen=True)
class AcceptedUpdate:
    """A client's accepted update of the round: `entry` holds its resulting weights, sent or replayed from `log`, and then its running statistics, if any."""

    client_id: str
    sha256: str
    entry: SpoolEntry | None
    statistics: LocalStatistics
    log: bytes | None = None
