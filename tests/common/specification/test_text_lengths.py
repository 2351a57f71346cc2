"""Several lengths of text: how they are written, which one holds a text, and what a model's specification says at each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from heron_common.algorithm.payload_shapes import evaluation_specs, upload_specs
from heron_common.algorithm.presets import preset
from heron_common.data import SampleReader, open_source
from heron_common.data.inspection import inspect_source, page
from heron_common.data.specification import parse_specification
from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError, DataError, RefusedError
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.protocol.wire import data_specification_from_proto, data_specification_to_proto, model_from_proto, model_to_proto
from heron_common.specification.data_specification import IGNORED, PADDING
from heron_common.specification.model_spec import ModelSpec
from heron_common.specification.text_lengths import announced_length, announced_model, of_length, smallest_lengths
from tests.harness.tokenizers import word_tokenizer

WORDS = word_tokenizer(" ".join(f"w{number}" for number in range(20)))
MODEL = ModelSpec(
    client_model=(),
    auxiliary_head=(),
    cut=TensorSpec("activations", DType.FLOAT32, (8, 16)),
    context=(TensorSpec("mask", DType.UINT8, (8,)),),
    lengths=(2, 4, 8),
)
PREDICTING = dataclasses.replace(MODEL, labels=TensorSpec("labels", DType.INT64, (8,)))
REGRESSION = dataclasses.replace(MODEL, labels=TensorSpec("labels", DType.FLOAT32, (8,)))
"""With as many numbers as the longest text has tokens, and they are not tokens."""


@pytest.mark.parametrize("rest", ["next-token", "negative,positive", "3", "regression:2"])
def test_lengths_are_written_with_commas_and_the_greatest_is_the_shape(rest: str) -> None:
    found, longest = parse_specification(f"text:32,64,128:{rest}"), parse_specification(f"text:128:{rest}")
    assert found == dataclasses.replace(longest, name=found.name, lengths=(32, 64, 128))
    assert longest.lengths == ()
    assert data_specification_from_proto(data_specification_to_proto(found)) == found


@pytest.mark.parametrize(
    ("lengths", "instead"),
    [("64,32", "32,64"), ("32,32", "32"), ("32,64,64", "32,64"), ("0,32", "32"), ("32,-8,64", "32,64"), ("0,0", "LENGTH")],
)
def test_lengths_that_do_not_ascend_are_refused_with_what_to_write(lengths: str, instead: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_specification(f"text:{lengths}:next-token")
    assert str(refusal.value).endswith(f"but 'text:{lengths}:next-token' has {lengths}: write text:{instead}:next-token")


@pytest.mark.parametrize("text", ["text:32,:2", "text:,32:2", "text:32;64:2", "text:a,b:2"])
def test_what_are_no_lengths_is_refused_with_every_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match="LENGTH a number or several like 32,64,128"):
        parse_specification(text)


def test_a_model_says_what_travels_at_each_length() -> None:
    for length in (2, 4, 8):
        found = of_length(MODEL, length)
        assert (found.cut.shape, found.labels.shape, found.context[0].shape) == ((length, 16), (), (length,))
        assert of_length(PREDICTING, length).labels.shape == (length,) and of_length(REGRESSION, length).labels.shape == (8,)
    plain = dataclasses.replace(MODEL, lengths=())
    assert of_length(plain, 0) is plain and announced_length(plain, ()) == 0
    for model, length in ((MODEL, 0), (MODEL, 3), (plain, 8)):
        with pytest.raises(ValueError, match="expected one of the lengths"):
            of_length(model, length)
    assert model_from_proto(model_to_proto(MODEL)) == MODEL


@pytest.mark.parametrize("model", [MODEL, PREDICTING, REGRESSION])
def test_an_uploads_tensors_name_their_length(model: ModelSpec) -> None:
    plan = preset("heron").plan
    for length in model.lengths:
        for specs in (upload_specs(plan, of_length(model, length)), evaluation_specs(plan, of_length(model, length), 3)):
            assert announced_length(model, specs) == length and announced_model(model, specs) == of_length(model, length)


@pytest.mark.parametrize("shape", [(5, 3, 16), (5, 16, 16), (5,), ()])
def test_an_upload_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedError, match=r"one of the lengths 2, 4, 8, but the header announces (3|16|none)") as refusal:
        announced_length(MODEL, (TensorSpec("activations", DType.FLOAT32, shape),))
    assert refusal.value.code is ErrorCode.INVALID_TENSOR
    with pytest.raises(RefusedError):
        announced_length(MODEL, ())


def test_the_smallest_length_holds_tokens_and_labels() -> None:
    x = np.full((5, 8), PADDING)
    x[0, :1] = x[1, :2] = x[2, :3] = x[3, :8] = x[4, :1] = 5
    labels = np.full((5, 8), IGNORED)
    labels[0, :2] = labels[1, :4] = labels[2, 6] = 1
    assert smallest_lengths(x, None, (2, 4, 8)).tolist() == [2, 2, 4, 8, 2]
    assert smallest_lengths(x, labels, (2, 4, 8)).tolist() == [2, 4, 8, 8, 2]


def reader_of(tmp_path: Path, data_spec: str, texts: list[str]) -> SampleReader:
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"{text},{index % 2}\n" for index, text in enumerate(texts)))
    return SampleReader(open_source(f"csv:{path}:text:label"), parse_specification(data_spec), WORDS)


TEXTS = [" ".join(f"w{number}" for number in range(count)) for count in (1, 2, 3, 4, 5, 8, 9, 12)]


@pytest.mark.parametrize("task", ["2", "next-token"])
def test_a_batch_at_a_length_is_the_beginning_of_the_batch_at_the_greatest(tmp_path: Path, task: str) -> None:
    several, one = (reader_of(tmp_path, f"text:{lengths}:{task}", TEXTS) for lengths in ("2,4,8", "8"))
    lengths = several.lengths()
    assert lengths is not None and lengths.tolist() == [2, 2, 4, 4, 8, 8, 8, 8] and one.lengths() is None
    assert several.truncated == 2, "each once, however often it is read"
    for length in (2, 4, 8):
        rows = np.flatnonzero(lengths <= length)
        (x, y), (longest, labels) = several.batch(rows, length), one.batch(rows)
        assert x.shape == (len(rows), length) and x.flags.c_contiguous
        assert np.array_equal(x, longest[:, :length]) and (longest[:, length:] == PADDING).all()
        assert np.array_equal(y, labels[:, :length] if task == "next-token" else labels)
        if task == "next-token":
            assert (labels[:, length:] == IGNORED).all()
        shortest = several.shortest_batch(rows)
        assert np.array_equal(shortest[0], x) and np.array_equal(shortest[1], y)
    assert np.array_equal(one.shortest_batch(np.arange(2))[0], one.batch(np.arange(2))[0])


def test_running_text_is_cut_into_windows_of_the_greatest_length(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(" ".join(f"w{number % 20}" for number in range(20)))
    reader = SampleReader(open_source(f"text:{tmp_path / 'book.txt'}"), parse_specification("text:2,4,8:next-token"), WORDS)
    lengths = reader.lengths()
    assert lengths is not None and lengths.tolist() == [8, 8, 4]
    x, y = reader.batch(np.array([2]), 4)
    assert (x[0] >= 0).sum() == 4 and (y[0] != IGNORED).sum() == 3


def test_a_text_that_is_refused_is_refused_when_lengths_are_looked_at(tmp_path: Path) -> None:
    specification = dataclasses.replace(parse_specification("text:2,4,8:2"), refuses_overlong=True)
    reader_of(tmp_path, "text:8:2", TEXTS)
    reader = SampleReader(open_source(f"csv:{tmp_path / 'texts.csv'}:text:label"), specification, WORDS)
    with pytest.raises(DataError, match="has 9 tokens, but the run takes at most 8"):
        reader.lengths()


def test_a_check_says_how_many_texts_each_length_has(tmp_path: Path) -> None:
    reader_of(tmp_path, "text:8:2", TEXTS)
    source = open_source(f"csv:{tmp_path / 'texts.csv'}:text:label")
    several = "\n".join(page(inspect_source(source, parse_specification("text:2,4,8:2"), WORDS), 8))
    assert "by length     2 of up to 2 tokens, 2 of up to 4 tokens, 4 of up to 8 tokens" in several
    assert "2 of 8 have more than the 8 that the run takes" in several and "fits the run" in several
    assert "by length" not in "\n".join(page(inspect_source(source, parse_specification("text:8:2"), WORDS), 8))
