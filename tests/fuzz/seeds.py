"""A valid input for every decoder, from which mutations start: most of what is wrong is nearly right."""

from __future__ import annotations

import hashlib
import io
import json
import pickle

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from heron_common.algorithm.plan import UpdateEncoding
from heron_common.ids import RoundReference
from heron_common.protocol.messages import Assignment, UploadAnswer, UploadLoss, UploadPurpose
from heron_common.protocol.wire import encoding_to_proto, model_to_proto, purpose_to_proto, round_to_proto, tensor_spec_to_proto
from heron_common.protocol.wire_messages import answer_to_proto, membership_to_proto, next_step_to_proto
from heron_proto.v1 import split_training_pb2 as pb
from tests.fuzz.decoders import BLOB, MEMBERSHIP, framed
from tests.harness.tokenizers import word_tokenizer
from tests.server.builders import MODEL, ROUND, attempt, plan


def all_seeds() -> dict[str, bytes]:
    """Return a valid input by decoder."""
    return _messages() | _streams() | _files()


def _messages() -> dict[str, bytes]:
    of = attempt()
    weights = [BLOB.__class__(BLOB.sha256, 4 * size) for size in (9, 5)]
    assignment = Assignment(
        ROUND, plan(), client_model=weights[0], auxiliary_head=weights[1], direction_scales=(1.0, 1.0), second_moment=0.5
    )
    losses = (UploadLoss(RoundReference(0, 0), 0, server_loss=1.0, server_version=1),)
    update = attempt().assignment.plan
    return {
        "join_response": membership_to_proto(MEMBERSHIP).SerializeToString(),
        "next_assignment_response": next_step_to_proto(assignment, losses).SerializeToString(),
        "model": model_to_proto(MODEL).SerializeToString(),
        "upload_header": _header().SerializeToString(),
        "update_header": pb.UpdateHeader(
            session="s",
            round=round_to_proto(ROUND),
            steps_completed=update.local_steps,
            encoding=encoding_to_proto(UpdateEncoding.DENSE),
            tensors=[tensor_spec_to_proto(spec) for spec in of.upload_specs],
            statistics=pb.LocalStatistics(second_moment=1.0, mean_local_loss=-1.0),
        ).SerializeToString(),
    }


def _header() -> pb.UploadHeader:
    of = attempt()
    return pb.UploadHeader(
        session="s",
        round=round_to_proto(ROUND),
        purpose=purpose_to_proto(UploadPurpose.TRAIN),
        tensors=[tensor_spec_to_proto(spec) for spec in of.upload_specs],
        total_bytes=sum(spec.size_bytes for spec in of.upload_specs),
    )


def _streams() -> dict[str, bytes]:
    pieces = [np.ones(4 * 4, np.float32).tobytes(), np.arange(4, dtype=np.int64).tobytes()[:24] + bytes(8)]
    digest = hashlib.sha256(b"".join(pieces)).digest()
    up = [
        pb.TrainBatchRequest(header=_header()),
        *(pb.TrainBatchRequest(chunk=pb.TensorChunk(tensor_index=i, data=piece)) for i, piece in enumerate(pieces)),
        pb.TrainBatchRequest(trailer=pb.Trailer(length_bytes=96, sha256=digest)),
    ]
    gradient = np.ones(8, np.float32).tobytes()
    down = [
        pb.TrainBatchResponse(answer=answer_to_proto(UploadAnswer(3, probe_losses=(1.0,) * 8, losses=()))),
        pb.TrainBatchResponse(chunk=pb.TensorChunk(tensor_index=0, data=gradient)),
        pb.TrainBatchResponse(trailer=pb.Trailer(length_bytes=32, sha256=hashlib.sha256(gradient).digest())),
    ]
    return {
        "upload_stream": framed(*up),
        "answer_stream": framed(*down),
        "update_log": np.linspace(-1, 1, 12).astype("<f8").tobytes() + bytes(32),
        "wire_rows": np.linspace(-1, 1, 21).astype("<f4").tobytes(),
    }


def _files() -> dict[str, bytes]:
    arrays, images = io.BytesIO(), np.zeros((1, 3072), np.uint8)
    np.savez(arrays, x=np.ones((3, 2), np.float32), y=np.array([0, 1, 2]))
    state = json.dumps({"rounds": []})
    return {
        "program": _program(),
        "tokenizer": word_tokenizer("a word"),
        "client_options": b"127.0.0.1:1\n0/2\niid\na-client\n1\n4194304\n0\ninfo\nno\ndigits",
        "server_environment": b"heron\ncnn\nhidden=8\n\ndigits",
        "server_file": b'[run]\nclients = 4\nmodel_options = "hidden=8"\n[plan]\nclip_factor = 3.0\n[presets.mine]\nbase = "heron"\nlocal_steps = 3\n',
        "csv": b'a,b\n1,"x, y"\n2,z\n',
        "jsonl": b'{"a": "text", "b": 1}\n{"a": "more", "b": 2}\n',
        "npz": arrays.getvalue(),
        "idx": b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (1, 2, 2)) + bytes(4),
        "cifar_pickle": pickle.dumps({b"data": images, b"labels": [3]}, 4),
        "checkpoint": save({"w": np.ones(3, np.float32)}, {"state": state}),
        "manifest": b'[{"completed_rounds": 0, "file": "round-000000.safetensors", "sha256": "ab"}]',
        "run_record": b'{"run_id": "r", "configuration": {"rounds": 3}}',
        "client_record": b'{"name": "a", "identity_key": "0123456789abcdef", "run_id": ""}',
    }


def _program() -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xyc"]
    add = helper.make_node("Add", ["x", "w"], ["y"])
    branch = helper.make_graph([add], "b", [], [value[1]])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", value[:1], value[1:2], [numpy_helper.from_array(np.ones(2, np.float32), "w")])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return model.SerializeToString()
