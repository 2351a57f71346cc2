"""The clients of a run: names, sessions, identities, and what each sent, received and reported. Guarded by the coordinator's lock."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from heron_common.assignment import UploadLoss
from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError, RefusedError
from heron_common.ids import checked_client_name, new_token

log = logging.getLogger(__name__)

MAX_VISITS = 64
"""Sessions that are open at a time of clients that only check their data; the oldest is forgotten for a new one."""


@dataclass
class ClientRecord:
    """One client: its present session and its tally over the run."""

    name: str
    identity_sha256: str
    """Digest of the random key that tells it from another with its name; empty while it is not known."""
    speaker: str = ""
    """The name on the certificate that opened the session, the only one that may use it; nothing without TLS."""
    session: str = ""
    live: bool = False
    uploading: str = ""
    """The token of the stream that is open, or nothing."""
    cancel_stream: Callable[[], None] | None = None
    num_examples: int = 0
    version: str = ""
    rounds_completed: int = 0
    peak_memory_bytes: int = 0
    log_mismatches: int = 0
    """Update logs of this client whose replay arrived elsewhere, so that its weights were asked for."""
    bytes_up: Counter[str] = field(default_factory=Counter)
    bytes_down: Counter[str] = field(default_factory=Counter)
    _losses: deque[UploadLoss] = field(default_factory=deque)
    _losses_dropped: int = 0

    def open_session(self, session: str) -> None:
        """Begin a session; losses are numbered from its start."""
        self.session, self.live, self.uploading = session, True, ""
        self._losses.clear()
        self._losses_dropped = 0

    def add_loss(self, loss: UploadLoss) -> None:
        """Note the loss on one of its uploads."""
        self._losses.append(loss)

    def losses_after(self, seen: int) -> tuple[UploadLoss, ...]:
        """Return the losses after the first `seen` of this session and forget those before, which the client has."""
        while self._losses_dropped < seen and self._losses:
            self._losses.popleft()
            self._losses_dropped += 1
        return tuple(self._losses)

    def note_memory(self, peak_memory_bytes: int) -> None:
        """Keep the largest peak that was reported."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory_bytes)


class ClientRegistry:
    """All clients that ever joined, by name, and the live ones by session."""

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self.by_name: dict[str, ClientRecord] = {}
        self._by_session: dict[str, ClientRecord] = {}
        self._visits: OrderedDict[str, ClientRecord] = OrderedDict()

    def join(self, name: str, identity_key: str, speaker: str = "") -> ClientRecord:
        """Open a session for a client; one that comes back with its own identity key, or its certificate, replaces its old session.

        Raises:
            RefusedError: IDENTITY_MISMATCH with its certificate; INVALID_NAME; NAME_IN_USE by a live client with another key; TOO_MANY_CLIENTS.

        """
        if speaker and name != speaker:
            log.warning("refused a client that calls itself by another's name", extra={"certificate": speaker, "claimed": name[:120]})
            raise RefusedError(
                ErrorCode.IDENTITY_MISMATCH,
                f"this certificate is for {speaker!r}, and a client goes by the name on its certificate: leave --name out",
            )
        try:
            checked_client_name(name)
        except ConfigurationError as exc:
            raise RefusedError(ErrorCode.INVALID_NAME, str(exc)) from exc
        if not 16 <= len(identity_key) <= 128:
            raise RefusedError(
                ErrorCode.INVALID_NAME, f"an identity key has 16 to 128 characters, not {len(identity_key)}: update the client"
            )
        digest = hashlib.sha256(identity_key.encode()).hexdigest()
        record = self.by_name.get(name)
        if record is not None and record.live and not hmac.compare_digest(record.identity_sha256, digest):
            if not speaker:
                raise RefusedError(
                    ErrorCode.NAME_IN_USE,
                    f"a live client is called {name!r} already: choose another --name, or stop the other client first",
                )
            log.warning("a device joined beside itself: it lost its state, or two devices share one certificate", extra={"client": name})
        if (record is None or not record.live) and sum(r.live for r in self.by_name.values()) >= self._max_clients:
            raise RefusedError(
                ErrorCode.TOO_MANY_CLIENTS, f"this server serves at most {self._max_clients} clients: raise its --max-clients", 10.0
            )
        if record is None:
            record = self.by_name[name] = ClientRecord(name, digest)
        record.identity_sha256, record.speaker = digest, speaker
        self._by_session.pop(record.session, None)
        record.open_session(new_token())
        self._by_session[record.session] = record
        return record

    def know(self, name: str, identity_sha256: str) -> ClientRecord:
        """Return the record of a client that an earlier process knew."""
        record = self.by_name.setdefault(name, ClientRecord(name, identity_sha256))
        record.identity_sha256 = identity_sha256
        return record

    def expect(self, name: str, identity_sha256: str) -> None:
        """Count a client as live that was when an earlier process ended: it has no session yet, and only its own key may open one."""
        self.know(name, identity_sha256).live = True

    def visit(self, speaker: str = "") -> ClientRecord:
        """Open a session for a client that only checks its data: it is among no clients, and has no name that one of them could have."""
        record = ClientRecord(name="", identity_sha256="", speaker=speaker)
        record.open_session(new_token())
        self._visits[record.session] = record
        if len(self._visits) > MAX_VISITS:
            self._visits.popitem(last=False)
        return record

    def visitor(self, session: str) -> ClientRecord | None:
        """Return the client of such a session, if it is one."""
        return self._visits.get(session)

    def end_visit(self, session: str) -> None:
        """Forget such a session; safe to repeat."""
        self._visits.pop(session, None)

    def of_session(self, session: str) -> ClientRecord:
        """Return the client that a session belongs to.

        Raises:
            RefusedError: SESSION_UNKNOWN.

        """
        record = self._by_session.get(session)
        if record is None:
            raise RefusedError(ErrorCode.SESSION_UNKNOWN, "this session is over or was never opened on this server: join again")
        return record

    def check_speaker(self, record: ClientRecord, speaker: str) -> None:
        """Refuse whoever uses a session that another opened.

        Raises:
            RefusedError: IDENTITY_MISMATCH.

        """
        if record.speaker != speaker:
            log.warning("refused a device that uses another's session", extra={"certificate": speaker, "session_of": record.speaker})
            raise RefusedError(
                ErrorCode.IDENTITY_MISMATCH,
                "this session was opened with another certificate, and no device speaks for another: join first",
            )

    def depart(self, name: str, forget_session: bool) -> None:
        """Mark a client as not live; a silent one keeps its session, so that a late message revives it."""
        record = self.by_name[name]
        record.live = False
        if forget_session:
            self._by_session.pop(record.session, None)

    def live_records(self) -> list[ClientRecord]:
        """Return the live clients."""
        return [record for record in self.by_name.values() if record.live]

    @property
    def num_live(self) -> int:
        """How many clients are live."""
        return sum(record.live for record in self.by_name.values())
