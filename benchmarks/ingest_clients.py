"""Many honest clients of one server in one process: they join, ask, upload and submit as devices do, but compute nothing. Prints what they met as JSON."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from heron_common.protocol.grpc_options import channel_options
from heron_common.protocol.seal import opening, sealing
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb

SERVICE = "/heron.v1.SplitTraining/"
CHUNK_BYTES = 256 << 10
DEADLINE_SECONDS = 120.0


class Tally:
    """Calls, their seconds, and what went wrong."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()

    def report(self) -> dict[str, Any]:
        """Return counts, median and 99th percentile by kind of call."""
        calls = {
            kind: {"calls": len(found), "p50": _quantile(found, 0.5), "p99": _quantile(found, 0.99)} for kind, found in self.seconds.items()
        }
        return {"calls": calls, "errors": dict(self.errors)}


class HonestClient:
    """One client on a connection of its own."""

    def __init__(self, target: str, index: int, tally: Tally) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=[*channel_options(), ("grpc.use_local_subchannel_pool", 1)])
        self._name = f"client-{index}"
        self._tally = tally
        self._seen = 0
        self.asks = self.rounds = 0

    async def run(self) -> None:
        """Take part until the run is finished."""
        joined = await self._call("join", lambda: self._unary("Join", self._join_request(), pb.JoinResponse))
        self._session, self._run_id = joined.session, joined.run_id
        self._cut, self._classes = tuple(joined.model.cut.shape), joined.data_specification.num_classes
        while True:
            request = pb.NextAssignmentRequest(session=self._session, losses_seen=self._seen)
            answer = await self._call("ask", lambda r=request: self._unary("NextAssignment", r, pb.NextAssignmentResponse))
            self.asks += 1
            self._seen += len(answer.losses)
            kind = answer.WhichOneof("next")
            if kind == "finished":
                await self._unary("Leave", pb.LeaveRequest(session=self._session), pb.LeaveResponse)
                break
            if kind == "wait":
                await asyncio.sleep(answer.wait.seconds)
            else:
                await self._take_part(answer.assignment)
        await self._channel.close()

    def _join_request(self) -> pb.JoinRequest:
        return pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION, client_name=self._name, identity_key=self._name.ljust(32, "k"), num_examples=100
        )

    async def _take_part(self, assignment: Any) -> None:
        plan = assignment.plan
        rows = np.random.default_rng().random((plan.batch_size, *self._cut)).astype("<f4").tobytes()
        labels = np.zeros(plan.batch_size, "<i8").tobytes()
        for step in range(0, plan.local_steps, plan.upload_interval):
            messages = self._upload(assignment, step, rows, labels)
            self._seen += await self._call("upload", lambda m=messages: self._send(m))
        await self._call("submit", lambda: self._submit(assignment))
        self.rounds += 1

    def _upload(self, assignment: Any, step: int, rows: bytes, labels: bytes) -> list[Any]:
        batch = assignment.plan.batch_size
        header = pb.UploadHeader(
            session=self._session,
            run_id=self._run_id,
            round=assignment.round,
            purpose=pb.UPLOAD_PURPOSE_TRAIN,
            local_step=step,
            tensors=[
                pb.TensorSpec(name="activations", dtype=pb.DTYPE_FLOAT32, shape=(batch, *self._cut)),
                pb.TensorSpec(name="labels", dtype=pb.DTYPE_INT64, shape=(batch,)),
            ],
            total_bytes=len(rows) + len(labels),
            losses_seen=self._seen,
        )
        pieces = [(0, rows[start : start + CHUNK_BYTES]) for start in range(0, len(rows), CHUNK_BYTES)] + [(1, labels)]
        chunks = [pb.TrainBatchRequest(chunk=pb.TensorChunk(tensor_index=index, data=data)) for index, data in pieces]
        trailer = pb.Trailer(length_bytes=len(rows) + len(labels), sha256=hashlib.sha256(rows + labels).digest())
        return [pb.TrainBatchRequest(header=header), *chunks, pb.TrainBatchRequest(trailer=trailer)]

    async def _send(self, messages: list[Any]) -> int:
        call = self._channel.stream_stream(
            SERVICE + "TrainBatch",
            request_serializer=sealing(pb.TrainBatchRequest.SerializeToString),
            response_deserializer=opening(pb.TrainBatchResponse.FromString),
        )
        losses = 0
        async for response in call(_each(messages), timeout=DEADLINE_SECONDS):
            losses = len(response.answer.losses) if response.HasField("answer") else losses
        return losses

    async def _submit(self, assignment: Any) -> None:
        header = pb.UpdateHeader(
            session=self._session,
            run_id=self._run_id,
            round=assignment.round,
            steps_completed=assignment.plan.local_steps,
            encoding=assignment.plan.update_encoding,
            losses_seen=self._seen,
        )
        trailer = pb.Trailer(length_bytes=0, sha256=hashlib.sha256().digest())
        call = self._channel.stream_unary(
            SERVICE + "SubmitUpdate",
            request_serializer=sealing(pb.SubmitUpdateRequest.SerializeToString),
            response_deserializer=opening(pb.SubmitUpdateResponse.FromString),
        )
        messages = [pb.SubmitUpdateRequest(header=header), pb.SubmitUpdateRequest(trailer=trailer)]
        response = await call(_each(messages), timeout=DEADLINE_SECONDS)
        self._seen += len(response.losses)

    async def _unary(self, method: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=sealing(type(request).SerializeToString),
            response_deserializer=opening(response.FromString),
        )
        return await call(request, timeout=DEADLINE_SECONDS)

    async def _call(self, kind: str, make: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            started = time.monotonic()
            try:
                answer = await make()
            except grpc.aio.AioRpcError as exc:
                self._tally.errors[f"{kind}: {exc.code().name} {(exc.details() or '')[:60]}"] += 1
                await asyncio.sleep(0.5 + random.random())
            else:
                self._tally.seconds[kind].append(time.monotonic() - started)
                return answer


async def bare(target: str, clients: int, uploads: int, asks: int) -> dict[str, Any]:
    """Send a bare server as many small uploads of four messages and as many asks."""

    async def one() -> None:
        channel = grpc.aio.insecure_channel(target, options=[*channel_options(), ("grpc.use_local_subchannel_pool", 1)])
        train, ask = channel.stream_stream("/bare/Train"), channel.unary_unary("/bare/Ask")
        for _ in range(uploads):
            async for _answer in train(_each([b"h" * 300, b"z" * 8192, b"y" * 512, b"t" * 40])):
                pass
            for _ in range(asks // uploads):
                await ask(b"q" * 60)
        await channel.close()

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    return {"seconds": time.monotonic() - started, "uploads": clients * uploads, "asks": clients * asks}


async def honest(target: str, clients: int) -> dict[str, Any]:
    """Let so many honest clients take part in a run until its end."""
    tally, started = Tally(), time.monotonic()
    crowd = [HonestClient(target, index, tally) for index in range(clients)]
    await asyncio.gather(*(client.run() for client in crowd))
    asks = [client.asks for client in crowd]
    return {"seconds": time.monotonic() - started, "asks": sum(asks), "most_asks": max(asks), **tally.report()}


async def _each(messages: list[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    """Run one kind of load and print its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--bare-uploads", type=int, default=0)
    parser.add_argument("--bare-asks", type=int, default=0)
    given = parser.parse_args()
    load = (
        bare(given.server, given.clients, given.bare_uploads, given.bare_asks)
        if given.bare_uploads
        else honest(given.server, given.clients)
    )
    report = asyncio.run(load)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
