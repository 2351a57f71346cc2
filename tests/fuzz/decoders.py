"""Every decoder of what comes from outside, as a function of bytes: it returns, or it raises a HeronError; anything else is a defect."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from google.protobuf.message import DecodeError

from heron_client.config import parse_config
from heron_client.network.answer_reader import AnswerReader
from heron_client.network.assignment_checks import check_assignment
from heron_client.network.membership_checks import check_membership
from heron_client.state_directory import StateDirectory
from heron_common.algorithm.payload_shapes import update_specs
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.data.sources import open_source
from heron_common.data.tokeniser import Tokeniser
from heron_common.numerics.base_layout import base_layout
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.numerics.wire_dtypes import WireDtype, check_row_values, decode_rows, row_bytes
from heron_common.protocol.messages import Assignment, Membership, UploadKey
from heron_common.protocol.program_check import check_program
from heron_common.protocol.wire import encoding_from_proto, model_from_proto, purpose_from_proto, round_from_proto, tensor_specs_from_proto
from heron_common.protocol.wire_messages import (
    answer_from_proto,
    losses_from_proto,
    membership_from_proto,
    next_step_from_proto,
    statistics_from_proto,
)
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ProgramKind, ProgramReference
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import OptionSource, read_options, sections_of
from heron_server.rounds.receiving import Incoming
from heron_server.rounds.replay import replay_update
from heron_server.rounds.reported import check_reported
from heron_server.service.streams import receive_header, receive_payload
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.storage.run_directory import recorded_identity
from tests.server.builders import MODEL, attempt

MEMORY_BUDGET = 64 << 20
DATA = DataSpecification("squares", (2, 2), num_classes=3)
BLOB = BlobReference("ab" * 32, 100)
MEMBERSHIP = Membership(
    "run",
    "session",
    run_seed=1,
    data_specification=DATA,
    model=MODEL,
    programs=(ProgramReference(ProgramKind.LOSS, BLOB, micro_batch=2),),
    heartbeat_seconds=1.0,
    num_rounds=3,
)

Decoder = Callable[[bytes], None]


def join_response(data: bytes) -> None:
    check_membership(membership_from_proto(pb.JoinResponse.FromString(data)), MEMORY_BUDGET)


def next_assignment_response(data: bytes) -> None:
    message = pb.NextAssignmentResponse.FromString(data)
    step = next_step_from_proto(message)
    losses_from_proto(message.losses)
    if isinstance(step, Assignment):
        check_assignment(step, MEMBERSHIP, MEMORY_BUDGET)


def model(data: bytes) -> None:
    base_layout(model_from_proto(pb.Model.FromString(data)).base)


def upload_header(data: bytes) -> None:
    header = pb.UploadHeader.FromString(data)
    key = UploadKey(round_from_proto(header.round), "a", purpose=purpose_from_proto(header.purpose), local_step=header.local_step)
    attempt().check_upload(key, header.num_probes, tensors=tensor_specs_from_proto(header.tensors), announced_bytes=header.total_bytes)


def update_header(data: bytes) -> None:
    header = pb.UpdateHeader.FromString(data)
    check_reported(statistics_from_proto(header.statistics))
    specs = tensor_specs_from_proto(header.tensors)
    round_from_proto(header.round)
    attempt().check_update(
        "a", header.steps_completed, encoding=encoding_from_proto(header.encoding), tensors=specs, announced_bytes=header.total_bytes
    )


@dataclass
class Taken:
    """Where a checked payload goes: nowhere."""

    specs: tuple[TensorSpec, ...]

    def take(self, kind: str, data: bytes) -> None:
        """Take a chunk."""


def upload_stream(data: bytes) -> None:
    """What a client streams: messages with their length before each."""
    messages = iter([pb.TrainBatchRequest.FromString(part) for part in _parts(data)])
    receive_header(messages)
    receive_payload(messages, cast("Incoming[Any]", Taken(attempt().upload_specs)), expected=DATA)


def answer_stream(data: bytes) -> None:
    """What a server streams back."""
    reader = AnswerReader((TensorSpec("cut_gradient", DType.FLOAT32, (4, 2)),), 8)
    for part in _parts(data):
        message = pb.TrainBatchResponse.FromString(part)
        match message.WhichOneof("part"):
            case "answer":
                reader.answer(answer_from_proto(message.answer))
            case "chunk":
                reader.chunk(message.chunk.tensor_index, message.chunk.data)
            case "trailer":
                reader.trailer(message.trailer.length_bytes, message.trailer.sha256)
    reader.whole()


def update_log(data: bytes) -> None:
    of = attempt(update_encoding=UpdateEncoding.LOG)
    (spec,) = update_specs(of.assignment.plan, MODEL)
    of.start = np.ones(9, np.float32)
    padded = data[: spec.size_bytes].ljust(spec.size_bytes, b"\0")
    log = padded if np.isfinite(np.frombuffer(padded, "<f8")).all() else data
    replay_update(of, 1, client_id="a", log_bytes=log, weights_sha256=data[-32:])


def wire_rows(data: bytes) -> None:
    """Rows in every wire dtype: what the check lets pass decodes to finite numbers."""
    for dtype in WireDtype:
        size = row_bytes(dtype, 3)
        rows = len(data) // size
        piece = data[: rows * size]
        finite = check_row_values(piece, dtype, elements_per_row=3, offset_in_tensor=0)
        values = decode_rows(piece, dtype, (rows, 3))
        assert not finite or bool(np.isfinite(values).all()), dtype


def tokenizer(data: bytes) -> None:
    Tokeniser(data).framed(["a word", ""])


def client_options(data: bytes) -> None:
    words = data.decode("utf-8", "replace").replace("\0", "").split("\n")
    parse_config([f"--server={words[0]}", f"--data={words[-1]}"], dict(zip(_CLIENT_VARIABLES, words[1:], strict=False)))


def server_environment(data: bytes) -> None:
    words = data.decode("utf-8", "replace").replace("\0", "").split("\n")
    variables = [f"HERON_SERVER_{name.upper()}" for section in sections_of(ServerConfig).values() for name in section.model_fields]
    read_options(
        ServerConfig, _SOURCE, arguments=[], environment={name: word for name, word in zip(variables, words, strict=False) if word}
    )


def server_file(data: bytes) -> None:
    with _file("server.toml", data) as path:
        read_options(ServerConfig, _SOURCE, arguments=[f"--config={path}"], environment={})


def source(form: str, name: str) -> Decoder:
    """Return the decoder of a data source; `form` has {} where the file goes."""

    def decode(data: bytes) -> None:
        with _file(name, data) as path:
            opened = open_source(form.format(path))
            for readable in (opened.inputs, opened.labels):
                rows = min(int(readable.shape[0]), 4)
                readable.read(np.arange(rows))

    return decode


def idx(data: bytes) -> None:
    with _file("t10k-images-idx3-ubyte", data) as path:
        path.with_name("t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x01\0")
        opened = open_source(f"idx:{path.parent}:test")
        opened.inputs.read(np.arange(min(opened.num_examples, 4)))


def cifar_pickle(data: bytes) -> None:
    with _file("test_batch", data) as path:
        opened = open_source(f"cifar-10:test:{path.parent}")
        opened.inputs.read(np.arange(1))


def checkpoint(data: bytes) -> None:
    """A checkpoint's file and, so that it is looked into at all, the digest that a manifest would have."""
    with _file("round-000000.safetensors", data) as path:
        entry = {"completed_rounds": 0, "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
        path.with_name("manifest.json").write_text(json.dumps([entry]))
        CheckpointStore(path.parent, 1).read()


def manifest(data: bytes) -> None:
    with _file("manifest.json", data) as path:
        CheckpointStore(path.parent, 1).read_all()


def run_record(data: bytes) -> None:
    with _file("run.json", data) as path:
        recorded_identity(path.parent)


def client_record(data: bytes) -> None:
    with _file("client.json", data) as path:
        StateDirectory(path.parent, "a").close()


DECODERS: dict[str, Decoder] = {
    "join_response": join_response,
    "next_assignment_response": next_assignment_response,
    "model": model,
    "upload_header": upload_header,
    "update_header": update_header,
    "upload_stream": upload_stream,
    "answer_stream": answer_stream,
    "update_log": update_log,
    "wire_rows": wire_rows,
    "program": check_program,
    "tokenizer": tokenizer,
    "client_options": client_options,
    "server_environment": server_environment,
    "server_file": server_file,
    "csv": source("csv:{}:a:b", "rows.csv"),
    "jsonl": source("jsonl:{}:a:b", "rows.jsonl"),
    "npz": source("npz:{}", "arrays.npz"),
    "idx": idx,
    "cifar_pickle": cifar_pickle,
    "checkpoint": checkpoint,
    "manifest": manifest,
    "run_record": run_record,
    "client_record": client_record,
}
"""By the name of their folder in the corpus."""

MESSAGES: dict[str, Any] = {
    "join_response": pb.JoinResponse,
    "next_assignment_response": pb.NextAssignmentResponse,
    "model": pb.Model,
    "upload_header": pb.UploadHeader,
    "update_header": pb.UpdateHeader,
}
"""Decoders of one message, and which."""

FOREIGN_FAILURES = (DecodeError,)
"""gRPC parses a message before any of this code sees it, and answers what it cannot parse itself."""


def framed(*messages: Any) -> bytes:
    """Return messages as a stream of bytes: two bytes of length before each."""
    parts = [message.SerializeToString() for message in messages]
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def _parts(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "little")
        yield data[2 : 2 + size]
        data = data[2 + size :]


_SOURCE = OptionSource("heron-server", "", environment_prefix="HERON_SERVER_", version="0")
_CLIENT_VARIABLES = [
    f"HERON_CLIENT_{name}" for name in ("SHARD", "PARTITION", "NAME", "THREADS", "WINDOW_BYTES", "METRICS_PORT", "LOG_LEVEL", "CHECK_DATA")
]


@contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    """A file with this content in a folder of its own, for as long as it is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path
