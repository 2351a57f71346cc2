"""`heron-client --check-data`: compare this device's data with a run, print one page, take no part in the run."""

from __future__ import annotations

from contextlib import closing

from heron_client.config import ClientConfig
from heron_client.device.visit import Visit
from heron_client.network.tls import warn_of_transport
from heron_common.data.inspection import inspect_source, page
from heron_common.data.sources import open_source
from heron_common.errors import DataError
from heron_common.terminal.output import say


def check_data(config: ClientConfig) -> None:
    """Ask the server once what its run expects, leave, read the whole shard and print what it holds and what does not fit.

    Raises:
        DataError: something does not fit.
        HeronError: the source cannot be opened or the server does not answer.

    """
    source = open_source(config.data).shard(config.partition, config.shard)
    warn_of_transport(config.server, config.credentials)
    with closing(Visit(config)) as visit:
        specification = visit.join(source.num_examples).data_specification
        tokenizer = visit.fetcher.tokenizer(specification.tokenizer) if specification.tokenizer else None
        visit.leave("checked its data")
    found = inspect_source(source, specification, tokenizer)
    say(*page(found, specification.input_shape[0] if specification.tokens else 0))
    if found.differences:
        raise DataError(f"{config.data} does not fit the run: see what was printed and mend the data or the server's --data-spec")
