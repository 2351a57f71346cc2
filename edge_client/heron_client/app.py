"""The life of a client process on one screen: open, join, train, leave, close."""

from __future__ import annotations

import logging
import math
import threading
from contextlib import ExitStack
from random import SystemRandom

from prometheus_client import CollectorRegistry

from heron_client.config import ClientConfig
from heron_client.metrics import ClientMetrics
from heron_client.network.tls import diagnose_tls, warn_of_transport
from heron_client.network.transport import Transport
from heron_client.session import Session, SessionSettings
from heron_client.state_directory import StateDirectory
from heron_client.training.runtime import self_test
from heron_common.data.sources import DataSource, open_source
from heron_common.process.addresses import join_host_port
from heron_common.process.clock import MonotonicClock
from heron_common.process.metrics_server import MetricsServer
from heron_common.process.process_memory import resident_memory
from heron_common.terminal.console import LiveConsole
from heron_common.terminal.figures import human_bytes
from heron_common.terminal.output import is_terminal

log = logging.getLogger(__name__)


def run_client(config: ClientConfig, stop: threading.Event, source: DataSource | None = None, *, draws: bool = True) -> None:
    """Run a client until the run is finished or `stop` is set; then everything it opened is closed.

    `source` stands for the data that the configuration names, where a program has opened them; `draws` says that a terminal is this client's alone.

    Raises:
        HeronError: the data, the configuration, a program or the server stands in the way; see the exit codes.

    """
    self_test()
    warn_of_transport(config.server, config.credentials)
    source = (open_source(config.data) if source is None else source).shard(config.partition, config.shard)
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    with ExitStack() as stack:
        state = StateDirectory(config.state_dir, config.name)
        stack.callback(state.close)
        if config.metrics_port is not None:
            endpoint = MetricsServer(registry, config.metrics_host, config.metrics_port)
            stack.callback(endpoint.stop)
            log.info("serving metrics", extra={"address": f"http://{join_host_port(config.metrics_host, endpoint.port)}/metrics"})
        transport = Transport(
            config.server,
            count_bytes=metrics.count_bytes,
            count_refusal=lambda code: metrics.rejections.labels(reason=code.value).inc(),
            credentials=config.credentials,
        )
        stack.callback(transport.close)
        settings = SessionSettings(
            client_name=config.name,
            threads=config.threads,
            give_up_after_seconds=config.give_up_after_seconds,
            window_bytes=config.window_bytes,
        )
        session = Session(
            settings,
            transport,
            source,
            state=state,
            metrics=metrics,
            clock=MonotonicClock(),
            random=SystemRandom(),
            stop=stop,
            diagnose=lambda: diagnose_tls(config.server, config.credentials),
        )
        stack.enter_context(session.runs.watched(stop, lambda: _stop(session, transport)))
        log.info(
            "starting", extra={"server": config.server, "data": f"{config.data} {config.partition} {config.shard}", "client": config.name}
        )
        if draws and is_terminal():
            stack.enter_context(LiveConsole(f"heron-client {config.name}", lambda: _rows(metrics)))
        session.run()


def _stop(session: Session, transport: Transport) -> None:
    session.say_stopping()
    transport.cancel()


def _rows(metrics: ClientMetrics) -> list[tuple[str, str]]:
    memory = resident_memory()
    return [
        ("status", metrics.status),
        ("round, step", f"{metrics.round_label}, {metrics.step_label}"),
        ("time left", metrics.time_left),
        ("local loss", "-" if math.isnan(metrics.local_loss_value) else f"{metrics.local_loss_value:.4f}"),
        ("bytes up, down", f"{human_bytes(metrics.bytes_by_direction['up'])}, {human_bytes(metrics.bytes_by_direction['down'])}"),
        ("memory, peak", f"{human_bytes(memory.resident_bytes)}, {human_bytes(memory.peak_bytes)}"),
    ]
