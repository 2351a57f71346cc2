"""Every flipped bit and every cut breaks a message's seal."""

from __future__ import annotations

from typing import Any

import pytest

from heron_common.protocol.seal import SEAL_BYTES, ChunkMessage, Damaged, Unparsable, is_whole, opening, seal, sealing
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb

MESSAGE = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, client_name="a", identity_key="k" * 20, num_examples=300)


def _older(message: pb.JoinRequest) -> bool:
    return message.protocol_version != PROTOCOL_VERSION


def test_a_sealed_message_is_opened_as_what_it_was_and_any_protobuf_reads_it() -> None:
    data = sealing(pb.JoinRequest.SerializeToString)(MESSAGE)
    assert opening(pb.JoinRequest.FromString)(data) == MESSAGE
    # Without our parser the seal is a field like others.
    assert pb.JoinRequest.FromString(data).seal == int.from_bytes(data[-4:], "little")
    assert len(data) == MESSAGE.ByteSize() + SEAL_BYTES


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    data = sealing(pb.JoinRequest.SerializeToString)(MESSAGE)
    read = opening(pb.JoinRequest.FromString, _older)
    for place in range(len(data)):
        for bit in range(8):
            damaged = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            assert isinstance(read(damaged), Damaged), (place, bit)
        assert not is_whole(data[:place])
    assert not is_whole(b"") and is_whole(seal(b""))


def test_a_message_of_a_version_without_seals_is_read_so_that_it_can_be_refused_by_name() -> None:
    older = pb.JoinRequest(protocol_version=3, client_name="a")
    assert opening(pb.JoinRequest.FromString, _older)(older.SerializeToString()) == older
    assert isinstance(opening(pb.JoinRequest.FromString, _older)(MESSAGE.SerializeToString()), Damaged)


@pytest.mark.parametrize("data", [b"\x0a", b"\xff\xff", b"\x0a\x02\xff\xfe"])
def test_a_whole_message_that_no_parser_takes_is_told_apart_from_a_damaged_one(data: bytes) -> None:
    read = opening(pb.LeaveRequest.FromString)
    assert isinstance(read(seal(data)), Unparsable)
    assert type(read(seal(data)[:-1] + b"?")) is Damaged


@pytest.mark.parametrize("message", [pb.TrainBatchRequest, pb.SubmitUpdateRequest])
@pytest.mark.parametrize("tensor_index", [0, 1, 127, 128, 8191])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 300_000])
def test_a_chunk_is_written_to_the_bytes_that_protobuf_makes_of_it(message: Any, tensor_index: int, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    chunk = pb.TensorChunk(tensor_index=tensor_index, data=data)
    written = sealing(message.SerializeToString)(ChunkMessage(tensor_index, data))
    assert written == seal(message(chunk=chunk).SerializeToString())
    assert opening(message.FromString)(written) == message(chunk=chunk)
