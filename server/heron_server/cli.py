"""The `heron-server` command: options in, exit code out. The only place of the server that exits."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from heron_common.errors import HeronError, Interrupted
from heron_common.exit_codes import ExitCode
from heron_common.process.quiet_libraries import quiet_libraries
from heron_common.process.server_libraries import raise_if_missing
from heron_common.process.signals import stop_on_signals
from heron_common.terminal.log_setup import set_up_logging
from heron_common.terminal.option_parser import HELP_FLAGS
from heron_common.terminal.output import announce, refuse, say
from heron_common.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server and return its exit code."""
    quiet_libraries()
    set_up_logging()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        # Also where only the client is installed.
        say(f"heron-server {VERSION}")
        return ExitCode.OK
    try:
        _run(words)
    except Interrupted:
        logging.getLogger("heron_server").info("stopped before the run could begin")
    except HeronError as exc:
        return refuse("heron-server", exc)
    except Exception:
        logging.getLogger("heron_server").exception("unexpected error")
        return ExitCode.FAILURE
    return ExitCode.OK


@contextmanager
def _importing() -> Iterator[None]:
    """Keep the garbage collector away from what is imported, now and later: it is never garbage, and looking at it takes a tenth of a start.

    Raises:
        HeronError: a library of the server's is not installed.

    """
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as exc:
        raise_if_missing(exc)
        raise
    finally:
        gc.freeze()
        gc.enable()


def _run(words: Sequence[str]) -> None:
    if not set(words) & HELP_FLAGS:
        # Before seconds of importing.
        announce(f"heron-server {VERSION}: loading ...")
    with _importing():
        from heron_server.configuration.config import ServerConfig
        from heron_server.configuration.options import OptionSource, read_options
    source = OptionSource(
        "heron-server",
        "Trains a split model with clients that run forward passes only.",
        environment_prefix="HERON_SERVER_",
        version=VERSION,
    )
    stop = threading.Event()
    config = read_options(ServerConfig, source, arguments=words, environment=os.environ).settled()
    set_up_logging(config.network.log_level, log_format=config.network.log_format)
    with stop_on_signals(stop):
        with _importing():
            from heron_server.app import run_server
        run_server(config, stop)


if __name__ == "__main__":
    sys.exit(main())
