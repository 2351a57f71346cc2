"""A real server on a free port of loopback with a tiny model, put together from the parts that the application uses."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from heron_common.error_catalog import ErrorCode
from heron_common.process.clock import ManualClock
from heron_server.assembly import assemble
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import OptionSource, read_options
from heron_server.rounds.run_state import RunState
from heron_server.storage.run_directory import RunDirectory
from tests.harness.polling import eventually

TINY_DATA = "1x4x4:3"
TINY_OPTIONS = {"front_widths": [2], "front_strides": [2], "hidden": 4}
SOURCE = OptionSource("heron-server", "test", environment_prefix="HERON_SERVER_", version="0")


def tiny_config(**options: Any) -> ServerConfig:
    """Return the configuration of a small run; `options` are named like the options."""
    given = {
        "preset": "heron",
        "data_spec": TINY_DATA,
        "model_options": "front_widths=2 front_strides=2 hidden=4",
        "clients": 1,
        "rounds": 5,
        "local_steps": 2,
        "batch_size": 4,
        "direction_groups": 2,
        "micro_batch": 2,
        "warmup_rounds": 0,
        "device": "cpu",
        "listen": "127.0.0.1:0",
        "metrics_port": 0,
        "grace_seconds": 1,
        "spool_bytes": 1 << 20,
        **options,
    }
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value)) if value is not True]
    return read_options(
        ServerConfig, SOURCE, arguments=[*flags, *(f"--{n.replace('_', '-')}" for n, v in given.items() if v is True)], environment={}
    )


class RunningServer:
    """Parts of a started server; its clock moves only when a test moves it."""

    def __init__(self, config: ServerConfig, trains: bool = True, opens: bool = True) -> None:
        """Start it; with `trains=False` the trainer's thread is not started, with `opens=False` rounds may not open yet."""
        self.config = config
        self.directory = RunDirectory(config.run.run_dir)
        self.registry = CollectorRegistry()
        self.clock = ManualClock(1000.0)
        try:
            self.parts = assemble(config, self.directory, registry=self.registry, clock=self.clock)
        except BaseException:
            self.directory.close()
            raise
        self.directory.record(self.parts.identity)
        if self.parts.begins:
            self.parts.worker.save()
        if opens:
            self.parts.open()
        self.parts.network.start()
        if trains:
            self.start_training()

    @property
    def state(self) -> RunState:
        """What the owner keeps to itself: tests look, and change nothing."""
        self.parts.owner.add_up_bytes()
        return self.parts.owner._run

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.parts.network.port}"

    def _settled(self) -> None:
        """Wait until what was given up is deleted, which the trainer's thread does behind the owner's lock."""
        outbox = self.parts.owner._outbox
        outbox.delete_given_up()
        eventually(lambda: not outbox._deletions and not outbox._deleting.locked(), what="deletions")

    @property
    def spooled_bytes(self) -> int:
        self._settled()
        return self.parts.spool.used_bytes

    @property
    def untrained(self) -> int:
        """How many accepted uploads of the open attempt are neither trained nor scored yet."""
        attempt = self.state.attempt
        return 0 if attempt is None else sum(not upload.trained for upload in attempt._all_uploads())

    @property
    def spooled_files(self) -> list[str]:
        self._settled()
        return sorted(path.name for path in self.directory.spool.iterdir())

    def start_training(self) -> None:
        self.parts.worker.start(self.parts.queue, on_end=self.parts.ended.set)

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of a metric, 0 if it has none yet."""
        return self.registry.get_sample_value(f"heron_server_{name}", labels) or 0.0

    def rejections(self, code: ErrorCode) -> float:
        return self.sample("rejections_total", reason=code.value)

    def advance(self, seconds: float) -> None:
        """Move the clock and let the owner look at it."""
        self.clock.advance(seconds)
        self.parts.owner.tick()
        self.parts.network.tick()

    def stop(self) -> None:
        self.parts.network.announce_drain()
        self.parts.owner.drain()
        self.parts.worker.join(10.0)
        self.parts.network.stop(0.0)
        self.parts.owner.close()
        self.directory.close()
