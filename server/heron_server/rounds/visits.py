"""Sessions of clients that only check their data or their device. Part of the owner's state."""

from __future__ import annotations

from collections.abc import Iterable

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import new_token
from heron_common.process.clock import Clock
from heron_server.rounds.clients import ClientRecord

VISITS_BY_ADDRESS = 128
"""Sessions at a time of those that proved nothing and come from one address: a laboratory's devices may share one."""

VISITS_BY_CERTIFICATE = 8
"""Sessions at a time of one device."""

MAX_VISITS = 1024
"""Sessions at a time of all."""


class Visits:
    """None ends for a new one while it is used: whoever comes from where there are too many already is refused, and the others go on."""

    def __init__(self, clock: Clock, silence_seconds: float) -> None:
        """A session that was silent for so long may end for a new one."""
        self._clock = clock
        self._silence_seconds = silence_seconds
        self._by_session: dict[str, ClientRecord] = {}
        self._by_origin: dict[str, dict[str, ClientRecord]] = {}
        self._origins: dict[str, str] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_session)

    def open(self, speaker: str = "", address: str = "") -> ClientRecord:
        """Open a session for a client that proved to be `speaker`, or else comes from `address`: it is among no clients, and has no name.

        Raises:
            RefusedError: TOO_MANY_CLIENTS.

        """
        origin, most = (f"certificate {speaker}", VISITS_BY_CERTIFICATE) if speaker else (f"address {address}", VISITS_BY_ADDRESS)
        own = self._by_origin.get(origin, {})
        if len(own) >= most:
            self._make_room(own.values(), f"{most} clients of the same {'certificate' if speaker else 'address'}")
        elif len(self._by_session) >= MAX_VISITS:
            self._make_room(self._by_session.values(), f"{MAX_VISITS} clients")
        record = ClientRecord(name="", identity_sha256="", speaker=speaker, heard_at=self._clock.now())
        record.open_session(new_token())
        self._by_session[record.session] = record
        self._by_origin.setdefault(origin, {})[record.session] = record
        self._origins[record.session] = origin
        return record

    def of_session(self, session: str) -> ClientRecord | None:
        """Return the client of such a session, if it is one, and count that as a sign of life."""
        record = self._by_session.get(session)
        if record is not None:
            record.heard_at = self._clock.now()
        return record

    def end(self, session: str) -> None:
        """Forget such a session; safe to repeat."""
        if self._by_session.pop(session, None) is None:
            return
        origin = self._origins.pop(session)
        del self._by_origin[origin][session]
        if not self._by_origin[origin]:
            del self._by_origin[origin]

    def _make_room(self, records: Iterable[ClientRecord], who: str) -> None:
        silent = min(records, key=lambda record: record.heard_at)
        if self._clock.now() - silent.heard_at < self._silence_seconds:
            sentence = f"{who} check their data or devices with this server already, which is as many as it takes: wait until one has ended"
            raise RefusedError(ErrorCode.TOO_MANY_CLIENTS, sentence, 10.0)
        self.end(silent.session)
