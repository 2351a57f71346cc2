"""The life of the trainer's thread: it starts, runs jobs until there are none left, and says why it ended if that was no good end."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from heron_common.errors import StorageError
from heron_server.rounds.trainer_queue import TrainerQueue

log = logging.getLogger(__name__)


class JobThread(ABC):
    """A thread that runs jobs. `failure` tells why it died, if it did."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _run(self, queue: TrainerQueue) -> None:
        """Run every job of a queue."""

    @abstractmethod
    def _ended(self) -> None:
        """Close what the thread alone used, however it ended."""

    def start(self, queue: TrainerQueue, on_end: Callable[[], None]) -> None:
        """Start the thread; `on_end` is called when it ends, for whatever reason."""

        def run() -> None:
            try:
                self._run(queue)
            except StorageError as exc:
                log.error("training ended", extra={"reason": str(exc)})
                self.failure = exc
            except BaseException as exc:
                log.exception("the trainer died")
                self.failure = exc
            finally:
                self._ended()
                on_end()

        self._thread = threading.Thread(target=run, name="trainer", daemon=True)
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return self._thread is None or not self._thread.is_alive()
