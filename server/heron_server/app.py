"""The life of the server on one screen: open, start, serve, drain, stop."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from heron_common.errors import CheckpointError, HeronError
from heron_common.process.addresses import join_host_port
from heron_common.process.clock import MonotonicClock
from heron_common.process.metrics_server import MetricsServer
from heron_common.process.signals import ending_within
from heron_common.terminal.console import LiveConsole
from heron_common.terminal.figures import human_seconds
from heron_common.terminal.log_setup import TOLD
from heron_common.terminal.output import is_terminal, say
from heron_server.assembly import ServerAssembly, assemble
from heron_server.configuration.config import NetworkSection, ServerConfig
from heron_server.console import console_rows
from heron_server.ending import closing_lines
from heron_server.objects import NO_OBJECTS, Objects
from heron_server.rounds.state import Phase
from heron_server.storage.run_directory import RunDirectory
from heron_server.summary import RoundRecord

log = logging.getLogger(__name__)

STARTING_GRACE_SECONDS = 5.0
"""One program may take minutes to compile; a run directory is at any moment what a kill may leave."""

TICK_SECONDS = 0.2
"""How often deadlines are looked at; far below any deadline."""


def run_server(config: ServerConfig, stop: threading.Event) -> None:
    """Serve until all rounds are done or `stop` is set; then drain, write the summary and return.

    Raises:
        Interrupted: `stop` was set before the run was ready to begin.
        HeronError: the configuration, the model, a program or the disk stands in the way; see the exit codes.

    """
    with Serving(config, stop) as serving:
        for _ in serving.rounds():
            pass
    if is_terminal():
        say(*closing_lines(serving.summary, serving.directory, resume="heron-server"))


class Serving:
    """One run that clients reach over a network, a context: entering it builds everything and listens, leaving it stops the network; used once."""

    def __init__(self, config: ServerConfig, stop: threading.Event, *, objects: Objects = NO_OBJECTS, owns_process: bool = True) -> None:
        """`objects` are what a Python program hands over; `owns_process` says that a start that does not end may end the process, and a terminal is ours."""
        self._config, self._stop, self._objects = config, stop, objects
        self._owns_process = owns_process
        self._rounds_told = 0
        self._stack = ExitStack()
        self.summary: dict[str, Any] = {}
        """What the run came to, once it has ended."""

    def __enter__(self) -> Serving:
        """Raise what `run_server` does before it serves."""
        config = self._config
        with ExitStack() as stack:
            starting = stack.enter_context(ExitStack())
            if self._owns_process:
                starting.enter_context(ending_within(STARTING_GRACE_SECONDS, self._stop))
            self._directory = RunDirectory(config.run.run_dir)
            stack.callback(self._directory.close)
            registry = CollectorRegistry()
            parts = self._parts = assemble(
                config, self._directory, registry=registry, clock=MonotonicClock(), stop=self._stop, objects=self._objects
            )
            # Whatever happens from here on: nobody waits for an answer that will not come. Both are safe to repeat.
            stack.callback(parts.owner.close)
            stack.callback(parts.network.stop, 0)
            stack.callback(parts.owner.drain)
            endpoint = MetricsServer(registry, config.network.metrics_host, config.network.metrics_port)
            stack.callback(endpoint.stop)
            self._rounds_told = len(parts.worker.rounds)
            _start(config, parts, directory=self._directory, metrics_port=endpoint.port)
            starting.close()
            if self._owns_process and is_terminal():
                stack.enter_context(LiveConsole(f"heron-server {config.run.preset}", lambda: console_rows(parts)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def directory(self) -> Path:
        """Where the run's files are."""
        return self._directory.path

    @property
    def address(self) -> str:
        """HOST:PORT that clients reach."""
        return join_host_port(self._config.network.host, self._parts.network.port)

    def records(self) -> tuple[RoundRecord, ...]:
        """Return every finished round, those of earlier processes included."""
        return tuple(self._parts.worker.rounds)

    def rounds(self) -> Iterator[RoundRecord]:
        """Yield each round as it is finished until the last, or until a stop was asked for; then drain.

        Raises:
            HeronError: the trainer died, or the last checkpoint could not be written.

        """
        parts = self._parts
        # The trainer has ended where all rounds are done, or it died.
        while not parts.ended.is_set() and not self._stop.is_set():
            parts.owner.tick()
            parts.network.tick()
            yield from self._untold()
            self._stop.wait(TICK_SECONDS)
        _drain(self._config, parts, interrupted=self._stop.is_set())
        self.summary = parts.worker.summary()
        self._stack.close()
        yield from self._untold()
        if parts.worker.failure is not None:
            raise HeronError(
                f"the trainer died ({parts.worker.failure!r}): its traceback is in the log; --resume goes on from the last checkpoint"
            )
        if parts.worker.checkpoint_failed:
            raise CheckpointError("the last checkpoint could not be written: free some space, then --resume from the one before")

    def _untold(self) -> Iterator[RoundRecord]:
        for record in self._parts.worker.rounds[self._rounds_told :]:
            self._rounds_told += 1
            yield record


def _start(config: ServerConfig, parts: ServerAssembly, *, directory: RunDirectory, metrics_port: int) -> None:
    directory.record(parts.identity)
    if parts.begins:
        parts.worker.save()
    else:
        # The checkpoint of this boundary is there; writing it again could only damage it.
        parts.worker.write_summary()
    parts.open()
    parts.worker.start(parts.queue, on_end=parts.ended.set)
    parts.network.start()
    address = {
        "address": join_host_port(config.network.host, parts.network.port),
        "metrics": join_host_port(config.network.metrics_host, metrics_port),
        "pid": os.getpid(),
    }
    directory.write_address(address)
    timing = parts.facts.timing
    log.info(
        "timing",
        extra={**timing.by_name(), TOLD: f"a client that is not heard for {human_seconds(timing.liveness_seconds)} counts as lost"},
    )
    told = f"listening on {address['address']}, metrics on http://{address['metrics']}/metrics, run directory {directory.path}"
    log.info("listening", extra={**address, "threads": parts.network.num_threads, "run_dir": str(directory.path), TOLD: told})
    warn_of_clear_text(config.network)


def warn_of_clear_text(network: NetworkSection) -> None:
    """Say at start what `--insecure` allows, where it does."""
    if not network.is_loopback and network.tls_dir is None:
        log.warning("listening beyond loopback without TLS (--insecure): activations and labels travel in clear, and anybody may join")


def _drain(config: ServerConfig, parts: ServerAssembly, interrupted: bool) -> None:
    """Stop in order: health, admission, the trainer's job, clients' goodbyes, the network, the summary."""
    grace = config.network.grace_seconds
    parts.network.announce_drain()
    if interrupted:
        log.info("draining: the open round goes on with --resume", extra={"grace_seconds": grace})
    elif parts.owner.look(lambda run: run.machine.phase) is Phase.FINISHED:
        # A client whose connection died with the last answer on it needs its liveness to notice and ask again.
        parts.owner.wait_until_empty(max(grace, config.rounds.liveness_seconds), grace)
    parts.owner.drain()
    if not parts.worker.join(grace):
        log.warning("the trainer did not end its job in time; the last checkpoint stands")
    parts.network.stop(grace)
    parts.worker.write_summary()
    done = len(parts.worker.rounds)
    log.info("stopped", extra={"rounds_completed": done, TOLD: f"stopped after {done} of {config.run.rounds} rounds"})
