"""`heron-client --check-data`: compare this device's data with a run, print one page, take no part in the run."""

from __future__ import annotations

import logging
from typing import Any

from heron_client.config import ClientConfig
from heron_client.network.downloads import MemoryDownload
from heron_client.network.tls import diagnose_tls, warn_of_transport
from heron_client.network.transport import Transport
from heron_client.training.run_loader import check_tokenizer
from heron_common.data.inspection import inspect_source, page
from heron_common.data.sources import open_source
from heron_common.errors import DataError, RefusedError, TransportError
from heron_common.ids import new_token
from heron_common.protocol.messages import Membership
from heron_common.terminal.output import say

log = logging.getLogger(__name__)


def check_data(config: ClientConfig) -> None:
    """Ask the server once what its run expects, leave, read the whole shard and print what it holds and what does not fit.

    Raises:
        DataError: something does not fit.
        HeronError: the source cannot be opened or the server does not answer.

    """
    source = open_source(config.data).shard(config.partition, config.shard)
    warn_of_transport(config.server, config.credentials)
    transport = Transport(config.server, _ignore, _ignore, credentials=config.credentials)
    try:
        specification = _join(transport, config, source.num_examples).data_specification
        tokenizer = None
        if specification.tokenizer is not None:
            check_tokenizer(specification.tokenizer)
            tokenizer = bytearray(specification.tokenizer.size_bytes)
            transport.fetch(MemoryDownload(specification.tokenizer, memoryview(tokenizer)), "tokenizer")
        _leave(transport)
    finally:
        transport.close()
    found = inspect_source(source, specification, bytes(tokenizer) if tokenizer is not None else None)
    say(*page(found, specification.input_shape[0] if specification.tokens else 0))
    if found.differences:
        raise DataError(f"{config.data} does not fit the run: see what was printed and mend the data or the server's --data-spec")


def _join(transport: Transport, config: ClientConfig, num_examples: int) -> Membership:
    try:
        # A key of its own: the client that trains here may be running, and its state directory is locked.
        return transport.join(config.name, new_token(), num_examples, only_checks=True)
    except TransportError as exc:
        if (found := diagnose_tls(config.server, config.credentials)) is None:
            raise
        raise TransportError(f"{exc}; {found}") from exc


def _leave(transport: Transport) -> None:
    try:
        transport.leave("checked its data", 0)
    except (TransportError, RefusedError) as exc:
        log.debug("left without the server hearing it", extra={"reason": str(exc)})


def _ignore(*_: Any) -> None:
    """Nobody counts what a check sends."""
