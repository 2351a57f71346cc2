"""What a round has accepted from a client: uploads and an update, each with its place in the spool."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from heron_common.protocol.messages import LocalStatistics, UploadKey
from heron_server.storage.recorded import StoredAnswer
from heron_server.storage.spool import SpoolEntry


@dataclass
class AcceptedUpload:
    """An upload that was acknowledged; `trained` once it was trained on, scored (of held-out samples) or rejected.

    Attributes:
        entry: its payload, until a checkpoint holds what came of it.
        answer: what the trainer said of it. After a crash it is there before the upload is trained again, and stands.
        cut_gradient: lambda, until its round ends or the spool needs the room.
        arrived: the client went on since, so it has lambda; only a client that begins its round again asks for it once more.
        length: of its texts, 0 where a run has but one shape: the size of an upload does not tell a few long texts from many short ones.

    """

    key: UploadKey
    sha256: str
    _: KW_ONLY
    entry: SpoolEntry | None
    accepted_at: float
    answer: StoredAnswer | None = None
    cut_gradient: SpoolEntry | None = None
    trained: bool = False
    arrived: bool = False
    length: int = 0

    def payload(self) -> SpoolEntry:
        """Return what is to be trained on; only of uploads that are not trained yet."""
        if self.entry is None:
            raise RuntimeError(f"the payload of {self.key} was given up before it was trained on")
        return self.entry


@dataclass(frozen=True)
class AcceptedUpdate:
    """A client's accepted update of the round: `entry` holds its resulting weights, sent or replayed from `log`, and then its running statistics, if any."""

    client_id: str
    sha256: str
    _: KW_ONLY
    entry: SpoolEntry | None
    statistics: LocalStatistics
    log: bytes | None = None
