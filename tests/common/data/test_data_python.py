"""Data by a user's own function: arrays or an object, importable from the current directory, its contract checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heron_common.data import SampleReader, open_source
from heron_common.data.check import check_source
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, DataError
from tests.harness.tokenizers import word_tokenizer

NUMBERS = itertools.count()
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module with a function `load` into the current directory; returns the source's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))

    def writer(body: str) -> str:
        name = f"users_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{body}\n")
        return f"python:{name}:load"

    return writer


OBJECT = """
class Samples:
    def __len__(self): return 3
    def __getitem__(self, i):
        {item}
load = Samples
"""


def test_arrays_are_samples(write: Write) -> None:
    name = write("def load(): return np.arange(6).reshape(3, 2), [0, 1, 1]")
    x, y = check_source(open_source(name), parse_specification("2:2")).batch(np.array([2, 0]))
    assert (x.tolist(), y.tolist()) == ([[4, 5], [0, 1]], [1, 0])


def test_an_object_is_asked_for_one_sample_at_a_time(write: Write) -> None:
    name = write(OBJECT.format(item="return np.full((1, 2), i, np.uint8), i % 2"))
    x, y = check_source(open_source(name), parse_specification("1x2:2:1:2")).batch(np.array([2, 1]))
    assert (x.tolist(), y.tolist()) == ([[[0.5, 0.5]], [[0.0, 0.0]]], [0, 1])


def test_text_and_names_may_be_returned_too(write: Write) -> None:
    tokenizer, specification = word_tokenizer("a b"), parse_specification("text:2:cat,dog")
    arrays = write("def load(): return ['a', 'b a'], ['dog', 'cat']")
    single = write(OBJECT.format(item="return ['a', 'b a', 'a'][i], ['dog', 'cat', 'dog'][i]"))
    for name in (arrays, single):
        x, y = check_source(open_source(name), specification, tokenizer).batch(np.array([0, 1]))
        assert (x.tolist(), y.tolist()) == ([[3, -1], [4, 3]], [1, 0])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("def load(): raise KeyError('nothing there')", "failed (KeyError: 'nothing there')"),
        ("raise RuntimeError('no')\ndef load(): pass", "failed while it was imported (RuntimeError: no)"),
        ("def load(): return 1, 2, 3", "should return x and y, but returned 3 values"),
        ("def load(): return 5", "or an object with __len__ and __getitem__, but returned int"),
        ("def load(): return np.ones((3, 2)), np.zeros(2, int)", "has 3 samples but 2 labels"),
        ("def load(): return np.ones(()), np.zeros(2, int)", "a row for each sample, but returned a single value"),
        ("def load(): return [[1, 2], [1]], [0, 1]", "its rows differ in shape"),
        ("def load(): return np.ones((2, 2), complex), [0, 1]", "should return x of numbers or strings, but returned complex128"),
        ("def load(): return np.ma.masked_array(np.ones((2, 2)), mask=[[0, 1], [0, 0]]), [0, 1]", "returned x with masked values"),
        ("def load(): return [np.ma.masked_array([1, 2], mask=[0, 1]), [1, 2]], [0, 1]", "returned x with masked values"),
        ("def load(): return np.ones((2, 2)), np.ma.masked_equal([0, 1], 1)", "returned y with masked values"),
        (
            "class T:\n    def __array__(self, *a, **k): raise RuntimeError('grad')\ndef load(): return T(), [0, 1]",
            "made one (RuntimeError: grad)",
        ),
        ("def load(): return np.ones((2, 2)), ['0', None]", "should return y of numbers or strings, but returned object"),
        ("def load(): return np.ones((2, 2)), ['0', float('nan')]", "should return y of numbers or of strings, but mixes them"),
        (
            "def load(): return [['1_0', '2'], ['3', '4']], [0, 1]",
            "sample 0 of 'python:{name}' should have a number in column 0, but has '1_0'",
        ),
        ("def load(): return np.array([[1, 2], [1, np.nan]]), [0, 1]", "samples must be finite, but sample 1 of 'python:{name}' holds NaN"),
        ("def load(): return np.ones((2, 3)), [0, 1]", "the run expects samples of shape [2]"),
        ("def load(): return np.ones((2, 2)), [0.5, 1]", "expects a whole number as label, its class, but"),
        ("def load(): return np.ones((2, 2)), [0, 2]", "expects labels from 0 to 1, but"),
        ("def load(): return np.ones((0, 2)), []", "is empty"),
        (OBJECT.format(item="return 1"), "should return x and y for sample 0, but returned int"),
        (OBJECT.format(item="return np.ones(2 + i // 2), 0"), "float64[2] as for its first sample, but returned float64[3] for sample 2"),
        (OBJECT.format(item="return np.ones(2), 0 if i < 2 else 0.5"), "should return y int64[] as for its first sample"),
        (OBJECT.format(item="return np.ma.masked_array(np.ones(2), mask=[i == 2, False]), 0"), "returned x with masked values"),
        (OBJECT.format(item="return np.ones(2), [0, 1, 2][i]"), "expects labels from 0 to 1, but"),
        (OBJECT.format(item="return np.ones(2), 1 // (i - 2)"), "failed at sample 2 (ZeroDivisionError"),
        (OBJECT.replace("3", "0"), "is empty: at least one sample is needed"),
    ],
)
def test_a_broken_contract_is_refused_in_a_sentence(write: Write, body: str, sentence: str) -> None:
    name = write(body)
    with pytest.raises(DataError) as refusal:
        reader = check_source(open_source(name), parse_specification("2:2"))
        reader.batch(np.arange(reader.num_examples))
    assert sentence.replace("{name}", name.removeprefix("python:")) in str(refusal.value)


def test_a_masked_array_that_masks_nothing_is_an_array(write: Write) -> None:
    name = write("def load(): return np.ma.masked_array(np.ones((2, 2)), mask=False), [0, 1]")
    assert check_source(open_source(name), parse_specification("2:2")).batch(np.array([0]))[0].tolist() == [[1, 1]]


@pytest.mark.parametrize("specification", ["text:4:2", "text:4:next-token"])
@pytest.mark.parametrize(
    "body",
    [
        r"def load(): return ['a', 'b \ud83d'], [0, 1]",
        OBJECT.format(item=r"return ['a', 'b \ud83d', 'a'][i], 0"),
        OBJECT.format(item=r"return 'a', ['0', '1\ud83d', '0'][i]"),
    ],
)
def test_half_a_character_is_found_before_training(write: Write, body: str, specification: str) -> None:
    name = write(body)
    if specification.endswith("token") and "return 'a'" in body:
        return
    with pytest.raises(DataError, match=rf"sample 1 of '{name}' holds a character that is no text \(half of a pair, U\+D83D\)"):
        check_source(open_source(name), parse_specification(specification), word_tokenizer("a b"))


@pytest.mark.parametrize("name", ["python:", "python:module", "python::load", "python:module:1x"])
def test_a_name_without_module_and_callable_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a module and a callable"):
        open_source(name)


def test_a_module_or_function_that_is_not_there_is_refused(write: Write) -> None:
    name = write("def other(): pass")
    for wrong in (name, "python:no_such_module_at_all:load"):
        with pytest.raises(ConfigurationError, match="cannot be imported"):
            open_source(wrong)


def test_a_function_returns_data_for_every_task(write: Write) -> None:
    name = write("def load(): return np.ones((2, 2)), np.array([[0.5, 1], [2, 3]])")
    _, y = SampleReader(open_source(name), parse_specification("2:regression:2")).batch(np.array([1]))
    assert (y.dtype, y.tolist()) == (np.float32, [[2.0, 3.0]])
