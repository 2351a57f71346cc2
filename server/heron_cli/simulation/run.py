"""A whole run in one process: the server's parts without a network, its clients as threads. `simulate` prints nothing."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from heron_cli.simulation.clients import Crowd, client_name, shares
from heron_cli.simulation.configuration import SimulationConfig
from heron_cli.simulation.loopback import LoopbackStub
from heron_client.training.runtime import self_test
from heron_common.data.check import check_samples, check_source
from heron_common.data.image_files import ImageFiles
from heron_common.data.sources import DataSource
from heron_common.error_catalog import ErrorCode
from heron_common.errors import CheckpointError, ConfigurationError, DataError, HeronError, ProgramError, StorageError
from heron_common.files.atomic import write_json_atomically
from heron_common.process.clock import MonotonicClock
from heron_common.process.process_memory import resident_memory
from heron_common.protocol.messages import PeakMemory
from heron_server.assembly import Assembly, assemble_run
from heron_server.configuration.config import RunSection
from heron_server.objects import NO_OBJECTS, Objects
from heron_server.publication import specification_of
from heron_server.rounds.pacing import Pace
from heron_server.storage.run_directory import RunDirectory
from heron_server.summary import RoundRecord

TICK_SECONDS = 0.05
"""How often progress, deadlines and the wish to stop are looked at; nobody waits for a tick."""

_END_SECONDS = 60.0
"""A client that is asked to stop finishes its step first."""

_PACE = Pace(idle_seconds=0.0, closing_seconds=0.0, hold_seconds=10.0)
"""A client without work waits inside its call, on its own thread, and is woken by the round that it has a part in."""

_FAULTS = (DataError, ProgramError, StorageError, ConfigurationError)

OnRound = Callable[[RoundRecord], None]


class SimulationError(HeronError):
    """A client or the trainer failed; what was done so far is in the summary."""


def simulate(config: SimulationConfig, stop: threading.Event | None = None, on_round: OnRound | None = None) -> dict[str, Any]:
    """Train until all rounds are done or `stop` is set, and return the summary: the server's, and under "simulation" how it was simulated.

    Args:
        config: see `simulation_config`.
        stop: set it from another thread or a signal's handler to end early.
        on_round: called with each finished round, on this thread.

    Raises:
        Interrupted: `stop` was set before the run was ready to begin.
        SimulationError: a client or the trainer failed for no reason of those below.
        HeronError: options, data, model, a program or the disk stand in the way, also where a client was the first to see it.

    """
    with Simulation(config, stop or threading.Event()) as simulation:
        for record in simulation.rounds():
            if on_round is not None:
                on_round(record)
    return simulation.summary


class SimulationDirectory(RunDirectory):
    """A run's directory whose summary says how the run was simulated."""

    def __init__(self, path: Path, config: SimulationConfig) -> None:
        super().__init__(path)
        self._config = config
        self.interrupted = False
        self.summary: dict[str, Any] = {}

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Complete and replace the summary, here and where --summary says."""
        config = self._config
        settings = {
            "clients": config.run.clients,
            "participation": config.rounds.participation,
            "cohort_size": config.cohort_size,
            "partition": config.simulation.partition,
            "data": config.training_source,
            "eval_data": config.run.eval_data,
            "interrupted": self.interrupted,
            "process_peak_memory_bytes": resident_memory().peak_bytes,
            "note": "clients have no peak_memory_bytes: they share this process with the server, and the peak is that of all together",
        }
        clients = {name: {**row, "peak_memory_bytes": None, "peak_anonymous_bytes": None} for name, row in summary["clients"].items()}
        checkpoint = summary["checkpoint"] if config.has_run_directory else None
        self.summary = {**summary, "clients": clients, "checkpoint": checkpoint, "simulation": settings}
        super().write_summary(self.summary)
        if config.simulation.summary is not None:
            _write(config.simulation.summary, self.summary)


class Simulation:
    """One simulation, a context: entering it builds everything and lets the clients train, leaving it ends them in order; used once."""

    def __init__(self, config: SimulationConfig, stop: threading.Event, objects: Objects = NO_OBJECTS) -> None:
        """`objects` are what a Python program hands over in the place of names of `config`."""
        self._config, self._stop, self._objects = config, stop, objects
        self._rounds_told = 0
        self._failure: tuple[str, BaseException] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Simulation:
        """Raise what `simulate` does before it trains."""
        config = self._config
        self_test()
        for path in (config.simulation.summary, config.plot_path):
            _check_writable(path)
        source = self._objects.open_source(config.training_source)
        _check_training_data(source, config.run)
        sources = shares(source, config.partition, config.run.clients)
        with ExitStack() as stack:
            self._directory = SimulationDirectory(self._run_directory(stack), config)
            stack.callback(self._directory.close)
            self._begin(sources, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def summary(self) -> dict[str, Any]:
        """What was last written."""
        return self._directory.summary

    @property
    def directory(self) -> Path:
        """Where the run's files are."""
        return self._directory.path

    def records(self) -> tuple[RoundRecord, ...]:
        """Return every finished round, those of earlier processes included."""
        return tuple(self._parts.worker.rounds)

    def rounds(self) -> Iterator[RoundRecord]:
        """Yield each round as it is finished until the last, and end the run in order; once it was stopped, what was finished by then.

        Raises:
            HeronError: see `simulate`.

        """
        parts = self._parts
        while not (parts.ended.wait(TICK_SECONDS) or self._stop.is_set() or self._failure is not None):
            parts.owner.tick()
            yield from self._untold()
        self._stack.close()
        yield from self._untold()
        self._raise_failure(parts)

    def _begin(self, sources: list[DataSource], stack: ExitStack) -> None:
        clock, directory = MonotonicClock(), self._directory
        parts = self._parts = assemble_run(
            self._config,
            directory,
            registry=CollectorRegistry(),
            clock=clock,
            max_clients=self._config.run.clients,
            pace=_PACE,
            durable=False,
            stop=self._stop,
            objects=self._objects,
        )
        stack.callback(parts.owner.close)
        stub = LoopbackStub(parts.servicer, self._refused(parts), parts.owner.flush)
        crowd = Crowd(sources, stub, clock=clock, blobs=directory.blobs, on_failure=self._failed)
        directory.record(parts.identity)
        self._rounds_told = len(parts.worker.rounds)
        if parts.begins:
            parts.worker.save()
        else:
            parts.worker.write_summary()
        stack.callback(self._end, parts, stub, crowd=crowd, directory=directory)
        parts.open()
        self._dismiss_others(parts)
        parts.worker.start(parts.queue, on_end=parts.ended.set)
        crowd.start()

    def _dismiss_others(self, parts: Assembly) -> None:
        """A resumed simulation may have fewer clients than it was killed with: nobody waits for those that will not come."""
        names = {client_name(index) for index in range(self._config.run.clients)}
        for record in parts.owner.look(lambda run: run.registry.live_records()):
            if record.name not in names:
                parts.owner.leave(record, "not simulated any more", PeakMemory())

    def _run_directory(self, stack: ExitStack) -> Path:
        if self._config.has_run_directory:
            return self._config.run.run_dir
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heron-simulation-", ignore_cleanup_errors=True)))

    def _untold(self) -> Iterator[RoundRecord]:
        for record in self._parts.worker.rounds[self._rounds_told :]:
            self._rounds_told += 1
            yield record

    def _end(self, parts: Assembly, stub: LoopbackStub, *, crowd: Crowd, directory: SimulationDirectory) -> None:
        """Stop in order: clients that are not done, the trainer's job, the summary."""
        done = parts.ended.is_set() and parts.worker.failure is None and self._failure is None
        if not done:
            directory.interrupted = True
            # Goodbyes would drop one member after the other from a round that is over anyway.
            stub.close()
            crowd.stop()
            parts.owner.drain()
        crowd.join(_END_SECONDS)
        parts.owner.drain()
        parts.worker.join(_END_SECONDS)
        parts.worker.write_summary()

    def _failed(self, name: str, error: BaseException) -> None:
        if self._failure is None:
            self._failure = (name, error)

    def _refused(self, parts: Assembly) -> Callable[[ErrorCode], None]:
        def on_refusal(code: ErrorCode) -> None:
            parts.on_refusal(code)
            if code is ErrorCode.INTERNAL:
                # Over a network a client tries again; here the same call would fail in the same way for ever.
                self._failed("the server", SimulationError("it met an unexpected error; the log has the traceback"))

        return on_refusal

    def _raise_failure(self, parts: Assembly) -> None:
        if parts.worker.failure is not None:
            raise SimulationError(f"the trainer died ({parts.worker.failure!r}): the log has the traceback") from parts.worker.failure
        if self._failure is not None:
            name, error = self._failure
            reason = str(error) if isinstance(error, HeronError) else repr(error)
            # Whose fault it is decides the exit code, here as in a client of its own.
            kind = next((kind for kind in _FAULTS if isinstance(error, kind)), SimulationError)
            raise kind(f"{name} ended the simulation: {reason}") from error
        if parts.worker.checkpoint_failed:
            raise CheckpointError("the last checkpoint could not be written: free some space, or choose another --run-dir")


def _check_training_data(source: DataSource, run: RunSection) -> None:
    """Read what clients would meet in the middle of a round, while nothing has begun: numbers take seconds; texts and pixels hold no NaN.

    Raises:
        DataError: it is not what the run expects.

    """
    data = specification_of(run)
    if not data.tokens:
        (check_source if isinstance(source.inputs, ImageFiles) else check_samples)(source, data)


def _check_writable(path: Path | None) -> None:
    """Hours later would be a bad time to find out; raises StorageError."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = not path.is_dir() and os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise StorageError(f"cannot write {path}: choose another --summary or --plot, in a directory that can be written")


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        write_json_atomically(path, document)
    except OSError as exc:
        raise StorageError(f"cannot write {path} ({exc.strerror or exc}): free some space or choose another --summary") from exc
