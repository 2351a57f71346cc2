"""The clients of a run: names, sessions, identities, and what each sent, received and reported. Part of the owner's state."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field

from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError, RefusedError
from heron_common.ids import checked_client_name, new_token
from heron_common.protocol.messages import PeakMemory, UploadLoss
from heron_common.protocol.reported_ranges import within_range

log = logging.getLogger(__name__)

MAX_DEPARTED = 1000
"""Departed clients that have a record of their own; the tallies of those that departed before are added up in one, so that a run's memory has a bound."""

FORGOTTEN = "(forgotten)"
"""The name of that one, which no client can have."""

MAX_LOSSES = 4096
"""Losses kept for a client that does not say which ones it has seen; it misses the oldest then."""


@dataclass(eq=False)
class ClientStream:
    """A stream of a client that is under way; `over` is what its next chunk hears once what it belongs to is over."""

    client: ClientRecord
    cancel: Callable[[], object] | None
    over: RefusedError | None = None

    def check_open(self) -> None:
        """Refuse the rest of a stream whose round or session is over."""
        if self.over is not None:
            raise self.over


@dataclass
class ClientRecord:
    """One client: its present session and its tally over the run."""

    name: str
    identity_sha256: str
    """Digest of the random key that tells it from another with its name; empty while it is not known."""
    _: KW_ONLY
    speaker: str = ""
    """The name on the certificate that opened the session, the only one that may use it; nothing without TLS."""
    session: str = ""
    live: bool = False
    heard_at: float = -math.inf
    """When it last sent anything, which every message notes without a lock."""
    stream: ClientStream | None = None
    """The one that is open."""
    num_examples: int = 0
    version: str = ""
    rounds_completed: int = 0
    peak_memory_bytes: int = 0
    peak_anonymous_bytes: int = 0
    log_mismatches: int = 0
    """Update logs of this client whose replay arrived elsewhere, so that its weights were asked for."""
    bytes_up: Counter[str] = field(default_factory=Counter)
    bytes_down: Counter[str] = field(default_factory=Counter)
    stands_for: int = 1
    """How many clients this is the tally of."""
    _losses: deque[UploadLoss] = field(default_factory=lambda: deque(maxlen=MAX_LOSSES))
    _losses_dropped: int = 0

    def open_session(self, session: str) -> None:
        """Begin a session; losses are numbered from its start."""
        self.session, self.live = session, True
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

    def absorb(self, other: ClientRecord) -> None:
        """Add another client's tally to this one; the peak is the largest of all."""
        self.stands_for += other.stands_for
        self.num_examples += other.num_examples
        self.rounds_completed += other.rounds_completed
        self.log_mismatches += other.log_mismatches
        self.bytes_up.update(other.bytes_up)
        self.bytes_down.update(other.bytes_down)
        self.note_memory(PeakMemory(other.peak_memory_bytes, other.peak_anonymous_bytes))

    def note_memory(self, peak: PeakMemory) -> None:
        """Keep the largest peaks that were reported and can be."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, int(within_range("peak_memory_bytes", peak.resident_bytes)))
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, int(within_range("peak_anonymous_bytes", peak.anonymous_bytes)))


class ClientRegistry:
    """The clients of a run by name, live and lately departed, by session while one is open, and the tally of those that were forgotten."""

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self.warn: Callable[..., None] = _warn
        """Says what an operator should know; not to be called under a lock that others wait for, so that the owner has another."""
        self.by_name: dict[str, ClientRecord] = {}
        self.forgotten = ClientRecord(FORGOTTEN, identity_sha256="", stands_for=0)
        self._live: dict[str, ClientRecord] = {}
        self._departed: OrderedDict[str, None] = OrderedDict()
        self._by_session: dict[str, ClientRecord] = {}

    def join(self, name: str, identity_key: str, speaker: str = "") -> ClientRecord:
        """Open a session for a client; one that comes back with its own identity key, or its certificate, replaces its old session.

        Raises:
            RefusedError: IDENTITY_MISMATCH with its certificate; INVALID_NAME; NAME_IN_USE by a live client with another key; TOO_MANY_CLIENTS.

        """
        if speaker and name != speaker:
            self.warn("refused a client that calls itself by another's name", certificate=speaker, claimed=name[:120])
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
            self.warn("a device joined beside itself: it lost its state, or two devices share one certificate", client=name)
        if (record is None or not record.live) and len(self._live) >= self._max_clients:
            raise RefusedError(
                ErrorCode.TOO_MANY_CLIENTS, f"this server serves at most {self._max_clients} clients: raise its --max-clients", 10.0
            )
        if record is None:
            record = self.by_name[name] = ClientRecord(name, digest)
        record.identity_sha256, record.speaker = digest, speaker
        self._by_session.pop(record.session, None)
        record.open_session(new_token())
        self._by_session[record.session] = record
        self.revive(record)
        return record

    def revive(self, record: ClientRecord) -> None:
        """Count a client as live."""
        record.live = True
        self._live[record.name] = record
        self._departed.pop(record.name, None)

    def recall(self, name: str) -> ClientRecord:
        """Return the record of a client that an earlier process knew, to take up its tally."""
        if name == FORGOTTEN:
            return self.forgotten
        if name not in self.by_name:
            self.by_name[name] = ClientRecord(name, identity_sha256="")
            self._departed[name] = None
        return self.by_name[name]

    def forget_departed(self, but: Collection[str] = ()) -> None:
        """Add up the tallies of those that departed longest ago, beyond the newest MAX_DEPARTED and those `but`, that a round still counts on."""
        while len(self._departed) > MAX_DEPARTED:
            name = next((name for name in self._departed if name not in but), None)
            if name is None:
                return
            del self._departed[name]
            record = self.by_name.pop(name)
            self._by_session.pop(record.session, None)
            self.forgotten.absorb(record)

    def records(self) -> list[ClientRecord]:
        """Return every client's record, and the one of all that were forgotten if there are any."""
        return [*self.by_name.values(), *([self.forgotten] if self.forgotten.stands_for else [])]

    def know(self, name: str, identity_sha256: str) -> ClientRecord:
        """Return the record of a client that an earlier process knew."""
        record = self.recall(name)
        record.identity_sha256 = identity_sha256
        return record

    def expect(self, name: str, identity_sha256: str) -> None:
        """Count a client as live that was when an earlier process ended: it has no session yet, and only its own key may open one."""
        self.revive(self.know(name, identity_sha256))

    def has_session(self, session: str) -> bool:
        """Whether a client has this session open."""
        return session in self._by_session

    def of_session(self, session: str) -> ClientRecord:
        """Return the client that a session belongs to.

        Raises:
            RefusedError: SESSION_UNKNOWN.

        """
        record = self._by_session.get(session)
        if record is None:
            raise session_over()
        return record

    def check_speaker(self, record: ClientRecord, speaker: str) -> None:
        """Refuse whoever uses a session that another opened.

        Raises:
            RefusedError: IDENTITY_MISMATCH.

        """
        if record.speaker != speaker:
            self.warn("refused a device that uses another's session", certificate=speaker, session_of=record.speaker)
            raise RefusedError(
                ErrorCode.IDENTITY_MISMATCH,
                "this session was opened with another certificate, and no device speaks for another: join first",
            )

    def depart(self, name: str, forget_session: bool) -> None:
        """Mark a client as not live; a silent one keeps its session, so that a late message revives it."""
        record = self.by_name[name]
        record.live = False
        if self._live.pop(name, None) is not None:
            self._departed[name] = None
        if forget_session:
            self._by_session.pop(record.session, None)

    def live_records(self) -> list[ClientRecord]:
        """Return the live clients."""
        return list(self._live.values())

    @property
    def num_live(self) -> int:
        """How many clients are live."""
        return len(self._live)


def session_over() -> RefusedError:
    """Return the refusal of a session that is not open."""
    return RefusedError(ErrorCode.SESSION_UNKNOWN, "this session is over or was never opened on this server: join again")


def _warn(message: str, **fields: object) -> None:
    log.warning(message, extra=fields)
