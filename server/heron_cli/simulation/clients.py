"""Many clients in one process: a session of the real client for each, on a thread of its own, with state and programs in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from heron_client.metrics import ClientMetrics
from heron_client.network.transport import Transport
from heron_client.network.upload import DEFAULT_WINDOW_BYTES
from heron_client.session import Session, SessionSettings
from heron_client.training.program_runs import ProgramRuns
from heron_common.data.partition import Partition, Shard, partition_all
from heron_common.data.sources import DataSource
from heron_common.process.clock import Clock
from heron_common.specification.model_spec import BlobReference

_STACK_BYTES = 1 << 20
"""Nothing in a session recurses; the default of eight megabytes would only reserve address space."""

OnFailure = Callable[[str, BaseException], None]
"""Told the client's name and why its session ended."""


def client_name(index: int) -> str:
    """Return the name of a client, the same that `heron demo` and the tests give to processes."""
    return f"client-{index}"


def shares(source: DataSource, partition: Partition, count: int) -> list[DataSource]:
    """Return what each client has of a source that all share; labels are read once.

    Raises:
        DataError: there are too few samples for so many clients.

    """
    if not source.is_counted:
        return [source.shard(partition, Shard(index, count)) for index in range(count)]
    labels = source.read_labels() if partition.uses_labels else np.zeros(source.num_examples, np.int64)
    return [source.restricted(rows) for rows in partition_all(labels, partition, count)]


class MemoryState:
    """A client's state without a disk. A program is fetched once by each client, as devices do, but its bytes are kept once for all."""

    def __init__(self, name: str, shared: dict[str, bytes], blobs: Path) -> None:
        # Of its name, so that a simulation that is resumed inside a round knows its clients again.
        self.identity_key = f"simulated-{name}"
        self._shared = shared
        self._blobs = blobs
        self._fetched: set[str] = set()

    def large_blob_path(self, blob: BlobReference) -> Path:
        """Return the server's own file: frozen weights are mapped by all and fetched by none."""
        return self._blobs / blob.sha256

    def remember_run(self, run_id: str) -> None:
        """Keep nothing: a client lives as long as its run here."""

    def cached_program(self, blob: BlobReference) -> bytes | None:
        """Return a program if this client fetched it before."""
        return self._shared[blob.sha256] if blob.sha256 in self._fetched else None

    def keep_program(self, blob: BlobReference, data: bytes) -> None:
        """Keep a program, unless another client has kept it."""
        self._shared.setdefault(blob.sha256, data)
        self._fetched.add(blob.sha256)


class Crowd:
    """All clients of a simulation, each with its own share of the data."""

    def __init__(self, sources: list[DataSource], stub: Any, *, clock: Clock, blobs: Path, on_failure: OnFailure) -> None:
        self._on_failure = on_failure
        self._stop = threading.Event()
        programs: dict[str, bytes] = {}
        self._transports: list[Transport] = []
        self._runs: list[ProgramRuns] = []
        self._threads: list[threading.Thread] = []
        for index, source in enumerate(sources):
            self._add(client_name(index), source, stub=stub, clock=clock, state=MemoryState(client_name(index), programs, blobs))

    def start(self) -> None:
        """Let every client join."""
        before = threading.stack_size(_STACK_BYTES)
        try:
            for thread in self._threads:
                thread.start()
        finally:
            threading.stack_size(before)

    def stop(self) -> None:
        """Ask every client to stop; returns at once, safe to repeat."""
        self._stop.set()
        for transport, runs in zip(self._transports, self._runs, strict=True):
            runs.stop()
            transport.cancel()

    def join(self, timeout_seconds: float) -> bool:
        """Wait until every client has ended, at most `timeout_seconds` for each; return whether all have."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout_seconds)
        return not any(thread.is_alive() for thread in self._threads)

    def _add(self, name: str, source: DataSource, *, stub: Any, clock: Clock, state: MemoryState) -> None:
        metrics = ClientMetrics(CollectorRegistry())
        transport = Transport(
            "the simulated server", count_bytes=metrics.count_bytes, count_refusal=_ignore, connect=lambda: (stub, _nothing)
        )
        settings = SessionSettings(
            client_name=name,
            threads=1,
            give_up_after_seconds=0.0,
            window_bytes=DEFAULT_WINDOW_BYTES,
            owns_process=False,
            sends_beside=False,
        )
        session = Session(settings, transport, source, state=state, metrics=metrics, clock=clock, random=SystemRandom(), stop=self._stop)

        def run() -> None:
            try:
                session.run()
            except Exception as exc:
                self._on_failure(name, exc)

        self._transports.append(transport)
        self._runs.append(session.runs)
        self._threads.append(threading.Thread(target=run, name=name, daemon=True))


def _ignore(_code: Any) -> None:
    """Refusals are counted by the server's side."""


def _nothing() -> None:
    """A stub has nothing to close."""
