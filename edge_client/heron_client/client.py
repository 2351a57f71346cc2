"""A client for scripts: `Client("trainer.local:50051", "csv:readings.csv:*:label", shard=(0, 4)).run()`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from heron_client.app import run_client
from heron_client.config import config_of
from heron_common.data.python_rows import Origin, rows_of
from heron_common.data.sources import HANDED_OVER, DataSource, source_of
from heron_common.terminal.argument_names import spoken_in_python

_CLIENTS_OWN = f"{HANDED_OVER}data"


class Client:
    """One client of a run. It needs no torch."""

    def __init__(
        self,
        server: str,
        data: str | tuple[Any, Any] | Any,
        *,
        shard: tuple[int, int] = (0, 1),
        partition: str = "iid",
        name: str | None = None,
        tls_dir: Path | str | None = None,
        insecure: bool = False,
        state_dir: Path | str | None = None,
        threads: int | None = None,
        window_bytes: int | None = None,
        give_up_after_seconds: float | None = None,
        metrics_host: str | None = None,
        metrics_port: int | None = None,
    ) -> None:
        """Check the arguments and open the data; nothing is sent yet.

        Args:
            server: HOST:PORT of `heron-server` or `heron.serve`.
            data: arrays (x, y), a dataset with a length whose [i] is one x and y, or a data source by name.
            shard: which part of how many of the data is this client's, like (0, 4).
            partition: how parts are made, the same for every client.
            name: unique in the run; from host and shard by default, or the certificate's.
            tls_dir: the folder of the client's certificate.
            insecure: allow a server beyond loopback without TLS.
            state_dir: for identity and program cache; below the user's state directory by default.
            threads: of the runtime.
            window_bytes: of activations between compute and upload.
            give_up_after_seconds: how long an unreachable server is tried; 0 for ever.
            metrics_host: interface of the metrics endpoint.
            metrics_port: of a metrics endpoint; none by default.

        Raises:
            ConfigurationError, DataError: an argument is wrong; all mistakes of options at once.

        """
        with spoken_in_python():
            self._source = None if isinstance(data, str) else _opened(data)
            self._config = config_of(
                {
                    "server": server,
                    "data": data if isinstance(data, str) else _CLIENTS_OWN,
                    "shard": "/".join(map(str, shard)),
                    "partition": partition,
                    "name": name,
                    "tls_dir": tls_dir,
                    "insecure": insecure,
                    "state_dir": state_dir,
                    "threads": threads,
                    "window_bytes": window_bytes,
                    "give_up_after_seconds": give_up_after_seconds,
                    "metrics_host": metrics_host,
                    "metrics_port": metrics_port,
                }
            )
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    @property
    def name(self) -> str:
        """What the server calls it."""
        return self._config.name

    def run(self) -> None:
        """Take part until the run is finished or `stop` was called; an interrupt leaves the run in order first.

        Raises:
            HeronError: the data, a program or the server stands in the way.

        """
        # On a thread of its own: an interrupt must not end a call to the server half-way.
        thread = threading.Thread(target=self._train, name=f"heron client {self.name}", daemon=True)
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            self.stop()
            thread.join()
            raise
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let the client leave the run, from any thread; `run` returns then. Safe to repeat."""
        self._stop.set()

    def _train(self) -> None:
        try:
            with spoken_in_python():
                run_client(self._config, self._stop, self._source, draws=False)
        except BaseException as exc:
            self._failure = exc


def _opened(data: Any) -> DataSource:
    origin = Origin("data", gave="has", should="should have", remedy="hand over arrays (x, y), a dataset, or the name of a data source")
    return source_of("data", *rows_of(data, origin))
