"""The `heron-client` command: options in, exit code out. The only place of the client that exits."""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
from collections.abc import Sequence

from heron_client.device.device_check import check_device, load_libraries
from heron_client.device.memory import tame_allocator
from heron_client.device.processor import processor_features
from heron_common.errors import HeronError
from heron_common.exit_codes import ExitCode
from heron_common.process.quiet_libraries import quiet_libraries
from heron_common.process.signals import ended_by_signals, stop_on_signals
from heron_common.terminal.log_setup import set_up_logging
from heron_common.terminal.option_parser import HELP_FLAGS
from heron_common.terminal.output import announce, refuse
from heron_common.version import VERSION

_LARGE_LIBRARIES = ("numpy", "onnxruntime", "grpc", "prometheus_client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the client and return its exit code."""
    tame_allocator()
    quiet_libraries()
    set_up_logging()
    words = sys.argv[1:] if arguments is None else arguments
    if not set(words) & HELP_FLAGS:
        announce(f"heron-client {VERSION}: loading ...")
    # Nothing here multiplies matrices in numpy; its BLAS need not reserve buffers for every core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        check_device(platform.machine(), processor_features())
        load_libraries(_LARGE_LIBRARIES)
    except HeronError as exc:
        return refuse("heron-client", exc)
    return _run(words)


def _run(arguments: Sequence[str]) -> int:
    from heron_client.app import run_client
    from heron_client.config import parse_config
    from heron_client.device.data_check import check_data

    stop = threading.Event()
    try:
        config = parse_config(arguments, os.environ)
        set_up_logging(config.log_level, log_format=config.log_format)
        if config.check_data:
            with ended_by_signals():
                check_data(config)
            return ExitCode.OK
        if config.self_check:
            from heron_client.device.self_check import self_check

            with ended_by_signals():
                self_check(config)
            return ExitCode.OK
        with stop_on_signals(stop):
            run_client(config, stop)
    except HeronError as exc:
        return refuse("heron-client", exc)
    except Exception:
        logging.getLogger("heron_client").exception("unexpected error")
        return ExitCode.FAILURE
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
