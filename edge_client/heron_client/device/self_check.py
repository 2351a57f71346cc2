"""`heron-client --self-check`: can this device take part in the server's run? One page of sentences, no part in the run."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from heron_client.config import ClientConfig
from heron_client.device.device_findings import Finding, clock_finding, disk_finding, memory_finding, processor_finding, transport_finding
from heron_client.device.memory import return_freed_memory
from heron_client.device.round_memory import memory_verdict
from heron_client.device.visit import Visit
from heron_client.state_directory import StateDirectory
from heron_client.training.program_runs import ProgramRuns
from heron_client.training.program_timing import ProgramTiming, round_sentence, time_programs
from heron_client.training.run_loader import RunLoader
from heron_client.training.runtime import self_test
from heron_common.data.inspection import inspect_source
from heron_common.data.sources import DataSource, open_source
from heron_common.errors import HeronError, InUseError, SelfCheckError
from heron_common.process.clock import MonotonicClock
from heron_common.protocol.messages import Membership
from heron_common.terminal.output import say

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Joined:
    """The run as it was told to this visitor, and how long the answer took."""

    membership: Membership
    answer_seconds: float


class _Page:
    """Prints findings as they come, so that a device that dies at one of them shows at which."""

    def __init__(self) -> None:
        self.in_the_way: list[str] = []

    def add(self, finding: Finding) -> None:
        """Print one."""
        say(f"{finding.topic:<12}  {'' if finding.go else 'NO: '}{finding.sentence}")
        if not finding.go:
            self.in_the_way.append(finding.topic)

    @contextmanager
    def section(self, topic: str) -> Iterator[None]:
        """Turn an error into a finding; what depends on the section is asked only if there was none."""
        try:
            yield
        except HeronError as exc:
            self.add(Finding(topic, f"{exc}.", go=False))
            raise _CannotGoOnError from exc


class _CannotGoOnError(Exception):
    """What comes next needs what has just failed."""


def self_check(config: ClientConfig) -> None:
    """Look at the device, ask the server once, run every program, and print what was found.

    Raises:
        SelfCheckError: something stands in the way of taking part.

    """
    page = _Page()
    try:
        with ExitStack() as stack:
            _look(config, page, stack)
    except _CannotGoOnError:
        pass
    if page.in_the_way:
        say(f"{'verdict':<12}  no-go")
        raise SelfCheckError(
            f"this device cannot take part as it is, because of its {', '.join(page.in_the_way)}: see the lines with NO above"
        )
    say(f"{'verdict':<12}  go")


def _look(config: ClientConfig, page: _Page, stack: ExitStack) -> None:
    with page.section("processor"):
        self_test()
        page.add(processor_finding())
    page.add(memory_finding(config.memory_limit_bytes))
    with page.section("disk"):
        state = _state(config, stack)
        page.add(disk_finding(config.state_dir))
    with page.section("data"):
        source = open_source(config.data).shard(config.partition, config.shard) if config.data else None
        page.add(_data_finding(config, source))
    visit = stack.enter_context(closing(Visit(config)))
    with page.section("server"):
        joined = _join(visit, source)
        stack.callback(visit.leave, "checked its device")
        page.add(Finding("server", _server_sentence(config, joined)))
    page.add(transport_finding(config))
    page.add(clock_finding(joined.membership.server_time_seconds, joined.answer_seconds, tls=config.credentials is not None))
    with page.section("programs"):
        timings = _timings(visit, state, config=config, membership=joined.membership)
        for timing in timings:
            page.add(Finding("program", timing.sentence()))
    page.add(Finding("round", round_sentence(joined.membership, timings)))
    page.add(memory_verdict(joined.membership, config.window_bytes, config.memory_limit_bytes))
    if source is not None:
        # Last: what reading takes is no memory of a round's programs.
        with page.section("samples"):
            page.add(_samples_finding(source, joined.membership, visit))


def _state(config: ClientConfig, stack: ExitStack) -> StateDirectory:
    """Open the state directory, so that what is fetched now is there later; another one where a client is at work with it."""
    try:
        state = StateDirectory(config.state_dir, config.name)
    except InUseError as exc:
        log.info("checking with a temporary state directory", extra={"reason": str(exc)})
        state = StateDirectory(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "state", config.name)
    stack.callback(state.close)
    return state


def _data_finding(config: ClientConfig, source: DataSource | None) -> Finding:
    if source is None:
        return Finding("data", "not looked at: give --data, and --check-data compares every sample with the run.")
    return Finding(
        "data", f"{config.data} opens and has {source.num_examples} samples for this device; --check-data compares each with the run."
    )


def _samples_finding(source: DataSource, membership: Membership, visit: Visit) -> Finding:
    """Read every sample once, pictures too: a damaged one would end a round in its middle."""
    specification = membership.data_specification
    tokenizer = visit.fetcher.tokenizer(specification.tokenizer) if specification.tokenizer else None
    found = inspect_source(source, specification, tokenizer)
    if found.differences:
        first = next(iter(found.differences))
        return Finding("samples", f"{found.num_differences} do not fit the run, the first: {first}.", go=False)
    return Finding("samples", f"all {found.num_examples} can be read and fit the run{f'; {found.warning}' if found.warning else ''}.")


def _join(visit: Visit, source: DataSource | None) -> _Joined:
    clock = MonotonicClock()
    started = clock.now()
    membership = visit.join(source.num_examples if source else 0)
    return _Joined(membership, clock.now() - started)


def _server_sentence(config: ClientConfig, joined: _Joined) -> str:
    membership = joined.membership
    return (
        f"{config.server} answers in {joined.answer_seconds * 1e3:.0f} ms, connecting included; its run is {membership.run_id[:12]} of "
        f"{membership.num_rounds} rounds on {membership.data_specification.name!r}."
    )


def _timings(visit: Visit, state: StateDirectory, *, config: ClientConfig, membership: Membership) -> list[ProgramTiming]:
    runs = ProgramRuns()
    loader = RunLoader(visit.fetcher, state, clock=MonotonicClock(), give_memory_back=return_freed_memory, runs=runs)
    _, programs = loader.programs(membership, config.threads, arenas=True)
    with runs.watched(threading.Event()):
        return time_programs(programs, MonotonicClock())
