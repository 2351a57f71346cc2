"""Whatever bytes come, a decoder returns or refuses in a sentence of its own: no other error, no memory beyond a budget."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heron_common.errors import HeronError
from heron_proto.v1 import split_training_pb2 as pb
from tests.fuzz.decoders import DECODERS, FOREIGN_FAILURES, MESSAGES
from tests.fuzz.seeds import all_seeds
from tests.fuzz.strategies import messages, mutations

CORPUS = Path(__file__).parent / "corpus"
SEEDS = all_seeds()

PEAK_BYTES = 32 << 20
"""Most that a decoder may take beside the message itself, as Python and numpy count it; messages have at most two mebibytes."""

# The same examples on every machine and in every run: what is new is found by the slow suite, not by somebody else's pull request.
QUIET = settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def decode(name: str, data: bytes) -> None:
    """Let one decoder have the bytes; fails on any error but a refusal, and on a peak above the budget."""
    tracemalloc.start()
    try:
        # argparse explains itself on stderr.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(HeronError, *FOREIGN_FAILURES):
            DECODERS[name](data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= PEAK_BYTES, (name, peak)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_has_a_seed_and_a_corpus(name: str) -> None:
    assert name in SEEDS and any((CORPUS / name).iterdir())


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_corpus(path: Path) -> None:
    decode(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_that_are_nearly_right(name: str) -> None:
    decode(name, SEEDS[name])

    @QUIET
    @given(mutations(SEEDS[name]))
    def attack(data: bytes) -> None:
        decode(name, data)

    attack()


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_of_any_kind(name: str) -> None:
    @settings(QUIET, max_examples=25)
    @given(st.binary(max_size=200))
    def attack(data: bytes) -> None:
        decode(name, data)

    attack()


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_with_values_at_the_edges(name: str) -> None:
    @settings(QUIET, max_examples=300)
    @given(messages(MESSAGES[name]))
    def attack(data: bytes) -> None:
        decode(name, data)

    attack()


def nested(number: int, content: bytes) -> bytes:
    size, encoded = len(content), b""
    while size > 0x7F:
        size, encoded = size >> 7, encoded + bytes([size & 0x7F | 0x80])
    return bytes([number << 3 | 2]) + encoded + bytes([size]) + content


def full(number: int) -> bytes:
    """Return a message of nearly two mebibytes of empty messages or texts: two bytes that become an object each."""
    return bytes([number << 3 | 2, 0]) * (1_000_000)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("upload_header", full(7)),
        ("update_header", full(6)),
        ("model", full(1)),
        ("model", full(6)),
        ("join_response", full(6)),
        ("join_response", nested(5, full(2))),
        ("join_response", nested(4, full(8))),
        ("join_response", nested(4, nested(2, b"\x01" * 1_900_000))),
        ("join_response", nested(4, nested(9, bytes(1_900_000)))),
        ("next_assignment_response", full(4)),
        ("next_assignment_response", nested(1, nested(5, bytes(1_900_000)))),
    ],
)
def test_messages_of_nothing_but_parts_are_refused_before_each_becomes_an_object(name: str, data: bytes) -> None:
    decode(name, data)
    with pytest.raises(HeronError):
        DECODERS[name](data)


def test_a_name_of_a_mebibyte_is_refused() -> None:
    data = pb.Model(client_model=[pb.TensorSpec(name="x" * (1 << 20), dtype=pb.DTYPE_FLOAT32, shape=[1])]).SerializeToString()
    with pytest.raises(HeronError, match="characters"):
        DECODERS["model"](data)
