"""A visit to the server by a device that only checks: it joins without taking part, fetches what it looks at, and leaves."""

from __future__ import annotations

import logging
from typing import Any

from heron_client.config import ClientConfig
from heron_client.network.blob_fetcher import BlobFetcher
from heron_client.network.tls import diagnose_tls
from heron_client.network.transport import Transport
from heron_common.errors import RefusedError, TransportError
from heron_common.ids import new_token
from heron_common.protocol.messages import Membership, PeakMemory

log = logging.getLogger(__name__)


class Visit:
    """Asks the server once, without trying again."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._transport = Transport(config.server, count_bytes=_ignore, count_refusal=_ignore, credentials=config.credentials)
        self.fetcher = BlobFetcher(self._transport.fetch)

    def join(self, num_examples: int) -> Membership:
        """Return the run as the server tells it.

        Raises:
            TransportError: the server does not answer; with the reason, where one can be found.
            RefusedError, ProgramError: as `Transport.join`.

        """
        try:
            # A key of its own: the client that trains here may be running, and its state directory is locked.
            return self._transport.join(self._config.name, new_token(), num_examples, only_checks=True)
        except TransportError as exc:
            if (found := diagnose_tls(self._config.server, self._config.credentials)) is None:
                raise
            raise TransportError(f"{exc}; {found}") from exc

    def leave(self, reason: str) -> None:
        """Say goodbye; a server that does not hear it notices by itself."""
        try:
            self._transport.leave(reason, PeakMemory())
        except (TransportError, RefusedError) as exc:
            log.debug("left without the server hearing it", extra={"reason": str(exc)})

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._transport.close()


def _ignore(*_: Any) -> None:
    """Nobody counts what a check sends."""
