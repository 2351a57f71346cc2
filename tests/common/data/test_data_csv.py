"""CSV files: rows equal to those of Python's own reader, columns by name, and every bad file refused with its line."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_common.data import SampleReader, open_source
from heron_common.data.check import check_source
from heron_common.data.csv_rows import open_csv
from heron_common.data.partition import Shard, parse_partition
from heron_common.data.rows import StringRows
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import DataSpecification
from tests.harness.tokenizers import word_tokenizer

TWO_FEATURES = parse_specification("2:cat,dog")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.csv"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def refusal(name: str, specification: DataSpecification | None = None, tokenizer: bytes | None = None) -> str:
    with pytest.raises(DataError) as caught:
        source = open_source(name)
        if specification is not None:
            check_source(source, specification, tokenizer).batch(np.arange(source.num_examples))
    return str(caught.value)


def test_features_and_class_names_become_numbers(path: Path) -> None:
    write(path, "height,weight,kind\n1,2.5,dog\n-3,4e1,cat\n")
    x, y = SampleReader(open_source(f"csv:{path}:height+weight:kind"), TWO_FEATURES).batch(np.array([1, 0]))
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert x.tolist() == [[-3.0, 40.0], [1.0, 2.5]]
    assert y.tolist() == [0, 1]


def test_a_star_takes_all_columns_but_the_label_in_the_shape_of_the_run(path: Path) -> None:
    write(path, "label,a,b,c,d\n1,1,2,3,4\n")
    x, y = SampleReader(open_source(f"csv:{path}:*:label"), parse_specification("1x2x2:2:1:2")).batch(np.array([0]))
    assert x.tolist() == [[[[0.0, 0.5], [1.0, 1.5]]]]
    assert y.tolist() == [1]


def test_numbers_to_predict_may_stand_in_several_columns(path: Path) -> None:
    write(path, "a,u,v\n1,0.5,-2\n")
    _, y = SampleReader(open_source(f"csv:{path}:a:u+v"), parse_specification("1:regression:2")).batch(np.array([0]))
    assert (y.dtype, y.tolist()) == (np.float32, [[0.5, -2.0]])


def test_text_with_commas_quotes_and_line_ends_is_one_field(path: Path) -> None:
    write(path, 'text,label\r\n"one, ""two""\r\nthree",1\r\n\r\nfour,0\r\n')
    source = open_source(f"csv:{path}:text:label")
    assert isinstance(source.inputs, StringRows)
    assert source.inputs.read(np.array([1, 0])).tolist() == [["four"], ['one, "two"\r\nthree']]
    assert [source.inputs.place(row) for row in (0, 1)] == [f"line 2 of {path}", f"line 5 of {path}"]


def test_a_byte_order_mark_is_no_part_of_the_header(path: Path) -> None:
    write(path, "text,label\nhello,1\n", "utf-8-sig")
    assert open_source(f"csv:{path}:text:label").num_examples == 1


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=8), end=st.sampled_from(["\n", "\r\n"]))
def test_rows_are_those_of_pythons_own_reader(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("first", "second"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / "d.csv", buffer.getvalue())
    inputs, labels = open_csv(f"{path}:first:second")
    order = np.arange(len(rows))[::-1]
    both = [list(pair) for pair in zip(inputs.read(order)[:, 0], labels.read(order)[:, 0], strict=True)]
    assert both == list(csv.reader(io.StringIO(buffer.getvalue(), newline="")))[1:][::-1]


def test_a_large_file_is_not_held(path: Path) -> None:
    write(path, "text,label\n" + f"{'word ' * 100},1\n" * 20_000)
    tracemalloc.start()
    source = open_source(f"csv:{path}:text:label")
    source.inputs.read(np.arange(8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Ten megabytes of text: what is kept are two numbers a record and its row index.
    assert peak < 1_500_000


@pytest.mark.parametrize(
    ("text", "columns", "sentence"),
    [
        ("a,b,label\n1,2,cat\n1,2,cow\n", "a+b:label", "line 3 of {path} has label 'cow', but the run's classes are cat, dog"),
        ("a,b,label\n1,2,5\n", "a+b:label", "the run expects labels from 0 to 1, but '{name}' has 5 (line 2 of {path})"),
        ("a,b,label\n1,two,cat\n", "a+b:label", "line 2 of {path} should have a number in b, but has 'two'"),
        ("a,b,label\n1_000,2,cat\n", "a+b:label", "line 2 of {path} should have a number in a, but has '1_000'"),
        ("a,b,label\n1,nan,cat\n", "a+b:label", "samples must be finite, but line 2 of {path} holds NaN or infinity in b"),
        ("a,b,label\n1,2,cat\n-Infinity,0,cat\n", "a+b:label", "samples must be finite, but line 3 of {path} holds NaN or infinity in a"),
        ("a,b,label\n1,1e300,cat\n", "a+b:label", "but line 2 of {path} holds 1e+300, which is beyond float32 once it is normalised in b"),
        ("a,b,label\n1,2,1_0\n", "a+b:label", "line 2 of {path} has label '1_0', but the run's classes are cat, dog"),
        ("a,label,label\n1,2,3\n", "*:label", "the header of {path} has the name 'label' 2 times (columns 2, 3)"),
        ("a,a,label\n1,2,3\n", "a:label", "the header of {path} has the name 'a' 2 times (columns 1, 2)"),
        (",,label\n1,2,cat\n", "+label:label", "{path} has 2 columns without a name, so none of them can be asked for"),
        (
            "a;b;label\n1,5;2,5;cat\n",
            "a+b:label",
            "the header of {path} has one column 'a;b;label': columns are separated by commas, not semicolons",
        ),
        ('"a";"b";"label"\n1;2;"cat"\n', "*:label", "columns are separated by commas, not semicolons"),
        ("a\tb\tlabel\n1\t2\tcat\n", "*:label", "columns are separated by commas, not tabs"),
        ("a,b,label\n1,2\n", "a+b:label", "line 2 of {path} has 2 fields, but the header has 3"),
        ("a,b,label\n1,2,cat,4\n", "a+b:label", "line 2 of {path} has 4 fields, but the header has 3"),
        ("a,b,label\n1,2,cat\n", "a+c:label", "{path} has no column 'c', only a, b, label"),
        ("a,b,label\n1,2,cat\n", "a+b:kind", "{path} has no column 'kind', only a, b, label"),
        ("a,b,label\n1,2,cat\n", "a:label", "the run expects samples of shape [2] (2:cat,dog), but '{name}' names 1 columns"),
        ("a,b,label\n1,2,cat\n", "a+b", "{path} was opened without a label column"),
        ("a,b,label\n1,2,cat\n", "a:label+b", "the run expects samples of shape [2]"),
        ("a,b,label\n1,2,cat\n", "a+b:label+b", "the run expects one label, a class, but '{name}' names 2 columns"),
        ('a,b,label\n1,2,"cat\n', "a+b:label", "line 2 of {path} is not CSV (unexpected end of data)"),
        ("a,b,label\n", "a+b:label", "is empty: at least one sample is needed"),
        ("", "a+b:label", "{path} should begin with a header of column names"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_what_was_expected(path: Path, text: str, columns: str, sentence: str) -> None:
    write(path, text)
    name = f"csv:{path}:{columns}"
    assert sentence.format(path=path, name=name) in refusal(name, TWO_FEATURES)


def test_columns_without_a_name_may_repeat(path: Path) -> None:
    write(path, ",a,,label\n7,1,8,cat\n")
    assert SampleReader(open_source(f"csv:{path}:*:label"), parse_specification("3:cat,dog")).batch(np.array([0]))[0].tolist() == [
        [7, 1, 8]
    ]
    assert SampleReader(open_source(f"csv:{path}:a:label"), parse_specification("1:cat,dog")).batch(np.array([0]))[0].tolist() == [[1]]


def test_a_semicolon_may_be_part_of_the_only_name(path: Path) -> None:
    write(path, "text;comment\nhello\n")
    assert open_source(f"csv:{path}:text;comment").num_examples == 1


@pytest.mark.parametrize("classes", ["1,2,3", "3,1,2", "0,1,other"])
def test_where_names_of_classes_are_numbers_a_number_is_a_name(path: Path, classes: str) -> None:
    names = classes.split(",")
    write(path, "a,label\n" + "".join(f"0,{name}\n" for name in names))
    specification = parse_specification(f"1:{classes}")
    assert SampleReader(open_source(f"csv:{path}:a:label"), specification).labels(np.arange(3)).tolist() == [0, 1, 2]
    write(path, "a,label\n0,1\n0,7\n")
    assert f"line 3 of {path} has label '7', but the run's classes are {', '.join(names)}" in refusal(f"csv:{path}:a:label", specification)


def test_class_names_without_a_run_that_knows_them_are_refused(path: Path) -> None:
    write(path, "a,label\n1,cat\n")
    assert "the run's classes have no names, only numbers" in refusal(f"csv:{path}:a:label", parse_specification("1:2"))


def test_another_encoding_is_refused_with_the_line_and_read_when_it_is_named(path: Path) -> None:
    write(path, "text,label\nplain,0\nna\xefve,1\n", "latin-1")
    assert f"line 3 of {path} is not utf-8" in refusal(f"csv:{path}:text:label")
    source = open_source(f"csv:{path}:text:label:latin-1")
    assert source.inputs.read(np.array([1])).tolist() == [["na\xefve"]]


def test_a_missing_file_and_missing_columns_are_refused(tmp_path: Path) -> None:
    assert "cannot read" in refusal(f"csv:{tmp_path / 'none.csv'}:a:b")
    with pytest.raises(ConfigurationError, match="needs a path and columns"):
        open_source("csv:only-a-path")


def test_a_path_may_hold_colons(tmp_path: Path) -> None:
    write(tmp_path / "a:b.csv", "text,label\nhello,1\n")
    assert open_source(f"csv:{tmp_path / 'a:b.csv'}:text:label").num_examples == 1
    assert open_source(f"csv:{tmp_path / 'a:b.csv'}:text").num_examples == 1


def test_a_file_that_changed_is_noticed(path: Path) -> None:
    write(path, "text,label\nhello,1\nworld,0\n")
    source = open_source(f"csv:{path}:text:label")
    write(path, "text,label\nhe\n")
    with pytest.raises(DataError, match="changed while it was in use"):
        source.inputs.read(np.array([0, 1]))


@pytest.mark.parametrize("line", [b"\xff\xff\xff\xff\xff,1\n", b'"h"llo,1\n'])
def test_a_line_that_changed_is_no_traceback(path: Path, line: bytes) -> None:
    write(path, "text,label\nhello,1\n")
    source = open_source(f"csv:{path}:text:label")
    path.write_bytes(b"text,label\n" + line)
    with pytest.raises(DataError, match="changed while it was in use"):
        source.inputs.read(np.array([0]))


def test_a_partition_by_label_goes_by_class_names_and_iid_reads_none(path: Path) -> None:
    write(path, "text,label\n" + "".join(f"t,{'cat' if row % 2 else 'dog'}\n" for row in range(40)))
    source = open_source(f"csv:{path}:text:label")
    shards = [source.shard(parse_partition("labels:1"), Shard(index, 2)) for index in range(2)]
    assert [set(shard.labels.read(shard.rows)[:, 0]) for shard in shards] in ([{"cat"}, {"dog"}], [{"dog"}, {"cat"}])
    unlabelled = open_source(f"csv:{path}:text")
    assert unlabelled.shard(parse_partition("iid"), Shard(0, 2)).num_examples == 20
    with pytest.raises(DataError, match="opened without a label column"):
        unlabelled.shard(parse_partition("labels:1"), Shard(0, 2))


def test_text_is_tokenised_as_it_is_read(path: Path) -> None:
    write(path, "kind,text\n1,one two\n0,two three four\n")
    reader = SampleReader(open_source(f"csv:{path}:text:kind"), parse_specification("text:2:2"), word_tokenizer("one two three four"))
    x, y = reader.batch(np.array([0, 1]))
    assert (x.tolist(), y.tolist(), reader.truncated) == ([[3, 4], [4, 5]], [1, 0], 1)
