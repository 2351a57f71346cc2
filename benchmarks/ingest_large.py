"""One client that sends large uploads as fast as it may, bare or as `heron-client` does, without computing; prints its own processor time as JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np

from heron_client.network.transport import Transport
from heron_client.network.upload import Upload, UploadRequest
from heron_common.algorithm.payload_shapes import upload_specs
from heron_common.numerics.tensors import Float32Array
from heron_common.numerics.wire_dtypes import WireDtype, decode_rows
from heron_common.process.clock import MonotonicClock
from heron_common.protocol.chunks import usual_chunk_bytes
from heron_common.protocol.grpc_options import channel_options
from heron_common.protocol.messages import Assignment, LocalStatistics, Submission, UploadPurpose
from heron_server.storage.spool import Spool

ROWS, CUT = 64, (64, 32, 32)


def _bare(target: str, uploads: int, data: memoryview) -> float:
    chunk = usual_chunk_bytes(len(data) // ROWS)

    def messages() -> Iterator[bytes]:
        for start in range(0, len(data), chunk):
            yield bytes(data[start : start + chunk])

    with grpc.insecure_channel(target, options=channel_options()) as channel:
        train = channel.stream_stream("/bare/Train")
        list(train(messages()))
        started = time.process_time()
        for _ in range(uploads):
            list(train(messages()))
        return time.process_time() - started


def _heron(target: str, uploads: int, rows: Float32Array, labels: memoryview) -> float:
    transport = Transport(target, count_bytes=lambda *_: None, count_refusal=lambda _: None)
    membership = transport.join("large", "k" * 32, 100)
    while not isinstance(step := transport.next_step(None)[0], Assignment):
        time.sleep(step.seconds if hasattr(step, "seconds") else 0.1)
    specs = upload_specs(step.plan, membership.model)
    started = time.process_time()
    for local_step in range(uploads):
        upload = Upload(
            UploadRequest(step.round, UploadPurpose.TRAIN, local_step=local_step, num_probes=0, tensors=specs),
            transport.upload,
            clock=MonotonicClock(),
        )
        for row in range(ROWS):
            upload.write(0, memoryview(rows[row : row + 1]).cast("B"))
        upload.write(1, labels)
        upload.finish()
        upload.answer()
    spent = time.process_time() - started
    statistics = LocalStatistics(**dict.fromkeys(LocalStatistics.__dataclass_fields__, 0))
    transport.submit(
        step.round,
        Submission(step.plan.update_encoding, tensors=(), arrays=(), weights_sha256=hashlib.sha256().digest()),
        steps=uploads,
        statistics=statistics,
    )
    transport.leave("measured", 0)
    transport.close()
    return spent


def _decode_ms_per_megabyte(data: memoryview) -> float:
    """What the trainer's thread does with a payload before it is a tensor: read it from the spool and decode its rows."""
    with tempfile.TemporaryDirectory() as scratch, Spool(Path(scratch), 1 << 30, durable=False).open(len(data)) as writer:
        writer.write(bytes(data))
        entry = writer.commit()
        started = time.process_time()
        for _ in range(10):
            decode_rows(memoryview(entry.read()), WireDtype.FLOAT32, (ROWS, *CUT))
        return (time.process_time() - started) / 10 * 1000 / (len(data) / 1e6)


def main() -> None:
    """Send and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--uploads", type=int, required=True)
    parser.add_argument("--bare", action="store_true")
    given = parser.parse_args()
    rows = np.random.default_rng(0).random((ROWS, *CUT)).astype("<f4")
    data = memoryview(rows).cast("B")
    labels = memoryview(np.zeros(ROWS, "<i8")).cast("B")
    spent = _bare(given.server, given.uploads, data) if given.bare else _heron(given.server, given.uploads, rows, labels)
    report = {
        "megabytes": len(data) * given.uploads / 1e6,
        "processor_seconds": spent,
        "decode_ms_per_mb": 0.0 if given.bare else _decode_ms_per_megabyte(data),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
