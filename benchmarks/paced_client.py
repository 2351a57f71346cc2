"""A heron-client that times, before each of its steps, two bare forward passes and the same step without a network, side by side in one process.

Started by benchmarks/client.py: `python benchmarks/paced_client.py OUTPUT PROGRAM:MICRO_BATCH[,PROGRAM:MICRO_BATCH] CLIENT-OPTIONS...`. Everything but the bare
passes and the dry step is heron-client itself. A line of JSON per step goes to OUTPUT.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heron_client import cli
from heron_client.device import device_check

Seconds = tuple[float, float]
"""On the clock, and on a processor."""


def main() -> int:
    """Run the client with bare passes between its steps."""
    output, programs, *options = sys.argv[1:]

    def prepare() -> None:
        from heron_client import session

        session.LocalRound = paced_round(Path(output), [pair.rpartition(":") for pair in programs.split(",")])  # type: ignore[misc]

    device_check.import_sparingly = _before(prepare, device_check.import_sparingly)
    return cli.main(options)


def _before(prepare: Any, original: Any) -> Any:
    def wrapped(modules: Any) -> None:
        original(modules)
        prepare()

    return wrapped


def paced_round(output: Path, programs: list[tuple[str, str, str]]) -> Any:
    """Return LocalRound with bare passes before each step; `programs` are (path, ":", micro-batch) of programs that compute the loss."""
    from heron_client.network.upload_pipeline import UploadPipeline
    from heron_client.training.local_training import LocalRound
    from heron_client.training.passes import Batch

    loaded: list[Any] = []

    class PacedRound(LocalRound):
        """A round that notes what its steps cost beside two bare passes over the same batch."""

        def run_step(self, local_step: int) -> None:
            batch = Batch(*self._context.read_batch(*self._order.draw(local_step)))
            self._context.parameters.show_base()
            if not loaded:
                loaded.extend(load(Path(path), int(rows), context=self._context, batch=batch) for path, _, rows in programs)
            bare = [two_passes(program, batch) for program in loaded]

            def step() -> None:
                super(PacedRound, self).run_step(local_step)
                # Usually the next step hides the rest of the upload; here no bare pass shall run beside it.
                self._sender.settle()

            row = {"bare": bare, "dry": self._dry_step(local_step), "step": seconds_of(step)}
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

        def _dry_step(self, local_step: int) -> Seconds:
            """Time everything that a step does but gRPC and the server: chunks are dropped, and the answer is zeros."""
            before, sender = self._context.parameters.theta.copy(), self._sender
            drain = UploadPipeline(
                discard, sender._retry_policy, clock=self._context.clock, round_over=sender._round_over, on_answer=lambda _: None
            )
            dry = LocalRound(self._context, self._assignment, sender=drain, on_step=lambda *_: None)

            def step() -> None:
                dry.run_step(local_step)
                dry.finish()

            seconds = seconds_of(step)
            self._context.parameters.theta[:] = before
            return seconds

    return PacedRound


def load(path: Path, micro_batch: int, *, context: Any, batch: Any) -> Any:
    """Load a program that computes the loss over the client's own buffers."""
    from heron_client.training.runtime import Program
    from heron_common.specification.data_specification import DataSpecification
    from heron_common.specification.model_spec import BlobReference, ProgramKind, ProgramReference

    data = path.read_bytes()
    blob = BlobReference(hashlib.sha256(data).hexdigest(), len(data))
    reference = ProgramReference(ProgramKind.LOSS, blob, micro_batch=micro_batch)
    specification = DataSpecification("", batch.x.shape[1:], num_classes=10)
    return Program(reference, data, model=context.model, parameters=context.parameters, specification=specification, threads=1)


def discard(request: Any, chunks: Any) -> Any:
    """Drop an upload's chunks, and answer zeros."""
    from heron_common.numerics.tensors import total_bytes
    from heron_common.protocol.messages import UploadAnswer

    for _ in chunks:
        pass
    return UploadAnswer(0, probe_losses=(), losses=(), cut_gradient=bytes(total_bytes(request.answer_tensors)))


def two_passes(program: Any, batch: Any) -> Seconds:
    """Time two bare passes of a program over a batch."""

    def passes() -> None:
        for first in [*range(0, len(batch.x), program.micro_batch)] * 2:
            part = slice(first, first + program.micro_batch)
            program.run(batch.x[part], batch.y[part])

    return seconds_of(passes)


def seconds_of(call: Callable[[], object]) -> Seconds:
    """Return how long a call takes, and for how long of it this thread had a processor."""
    wall, processor = time.perf_counter(), time.thread_time()
    call()
    return time.perf_counter() - wall, time.thread_time() - processor


if __name__ == "__main__":
    sys.exit(main())
