"""TensorBoard's event files: a few scalars of every closed round, by tensorboardX, which is optional and imported only to write them."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from heron_common.errors import ConfigurationError, StorageError
from heron_server.summary import RoundRecord

log = logging.getLogger(__name__)

TAGS = {
    "accuracy/test": "test_accuracy",
    "accuracy/held_out": "federated_accuracy",
    "loss/test": "test_loss",
    "loss/held_out": "federated_loss",
    "loss/server": "server_loss",
    "loss/local": "local_loss",
    "perplexity/test": "test_perplexity",
    "perplexity/held_out": "federated_perplexity",
    "round/seconds": "seconds",
    "round/updates": "updates",
    "round/client_forward_passes": "client_forward_passes",
}
"""TensorBoard's name of each scalar, and the field of a round's record; a field that is None is left out."""


class EventFiles:
    """Writes rounds to a new file in a directory; step r is the state after r rounds. A disk that refuses is logged once and costs the curves only."""

    def __init__(self, directory: Path) -> None:
        """Prepare the directory; the file is opened with the first round.

        Raises:
            ConfigurationError: tensorboardX is not installed.
            StorageError: the directory cannot be made.

        """
        try:
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as exc:
            raise ConfigurationError(
                f"--tensorboard-dir needs the package `tensorboardX` ({exc}): pip install 'heron-sfl[tensorboard]', or leave the option out"
            ) from exc
        self._directory = directory
        self._writer_type: Any = event_file_writer.EventsWriter
        self._events: Any = event_pb2
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = None
        self._failed = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StorageError(f"cannot make --tensorboard-dir {directory} ({exc.strerror or exc}): choose another") from exc

    def write(self, record: RoundRecord) -> None:
        """Write the scalars of a round."""
        if self._failed:
            return
        step = record.round_index + 1
        scalars = {tag: getattr(record, field) for tag, field in TAGS.items()}
        values = [self._summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items() if value is not None]
        try:
            if self._writer is None:
                self._open(step)
            self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
            self._writer.flush()
        except OSError as exc:
            self._failed = True
            log.error("the event files of --tensorboard-dir end here: the disk refuses", extra={"reason": str(exc.strerror or exc)})

    def close(self) -> None:
        """Close the file; safe to repeat."""
        writer, self._writer, self._failed = self._writer, None, True
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def _open(self, step: int) -> None:
        # The library's names have seconds only, and it would replace a file of the same name. No thread of its own: one that died would block training.
        self._writer = self._writer_type(str(self._directory / "events"), f".{os.getpid()}.{step}")
        # TensorBoard drops what an earlier process wrote of this step and later ones.
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, session_log=started))
