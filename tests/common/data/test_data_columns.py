"""Columns by name: a run that names them gets them in its own order, whoever's file they stand in; others are refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from heron_common.data import SampleReader, open_source
from heron_common.data.check import check_source
from heron_common.data.columns import with_columns, with_names
from heron_common.data.inspection import inspect_source, page
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import DataSpecification

NAMED = parse_specification("temperature+pressure:2")


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """The same columns in two orders, one with another column, and JSON lines."""
    (tmp_path / "a.csv").write_text("temperature,pressure,label\n20,1013,0\n")
    (tmp_path / "b.csv").write_text("pressure,label,temperature\n1013,0,20\n")
    (tmp_path / "c.csv").write_text("temperature,humidity,label\n20,40,0\n")
    (tmp_path / "d.csv").write_text("temp,press,label\n20,1013,0\n")
    (tmp_path / "e.jsonl").write_text('{"pressure": 1013, "temperature": 20, "label": 0}\n')
    return tmp_path


def samples(name: str, specification: DataSpecification) -> list[list[float]]:
    rows: list[list[float]] = SampleReader(open_source(name), specification).batch(np.arange(1))[0].tolist()
    return rows


@pytest.mark.parametrize(
    "source",
    [
        "csv:{}/a.csv:*:label",
        "csv:{}/b.csv:*:label",
        "csv:{}/b.csv:pressure+temperature:label",
        "jsonl:{}/e.jsonl:pressure+temperature:label",
        # Who writes other names says what is meant by which.
        "csv:{}/d.csv:temp+press:label",
    ],
)
def test_columns_come_in_the_order_of_the_run(sites: Path, source: str) -> None:
    assert samples(source.format(sites), NAMED) == [[20, 1013]]


def test_labels_are_not_moved(sites: Path) -> None:
    (sites / "f.csv").write_text("u,pressure,v,temperature\n1,2,3,4\n")
    reader = SampleReader(open_source(f"csv:{sites}/f.csv:*:v+u"), parse_specification("temperature+pressure:regression:2"))
    x, y = reader.batch(np.arange(1))
    assert (x.tolist(), y.tolist()) == ([[4, 2]], [[3, 1]])


def test_a_number_is_missed_in_the_column_that_it_is_missing_from(sites: Path) -> None:
    (sites / "b.csv").write_text("pressure,label,temperature\n1013,0,warm\n")
    with pytest.raises(DataError, match="should have a number in temperature, but has 'warm'"):
        samples(f"csv:{sites}/b.csv:*:label", NAMED)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("c.csv", "should be the run's columns temperature, pressure, but there is no pressure and there is humidity too"),
        ("d.csv", "but there is no temperature, pressure and there is temp, press too: write the columns instead of *"),
    ],
)
def test_other_columns_are_refused_by_name(sites: Path, file: str, sentence: str) -> None:
    with pytest.raises(DataError) as refusal:
        SampleReader(open_source(f"csv:{sites}/{file}:*:label"), NAMED)
    assert sentence in str(refusal.value)


def test_written_names_are_refused_where_the_run_s_stand_at_another_place_or_are_a_client_s(sites: Path) -> None:
    (sites / "f.csv").write_text("pressure,press,label\n1013,20,0\n")
    with pytest.raises(
        DataError,
        match=r"names the columns pressure, press, but those of the run are temperature, pressure, with 'pressure' at another place",
    ):
        samples(f"csv:{sites}/f.csv:pressure+press:label", NAMED)
    learnt = with_names(parse_specification("2:2"), ("temperature", "pressure"), of_client=True)
    assert samples(f"csv:{sites}/b.csv:*:label", learnt) == samples(f"csv:{sites}/b.csv:pressure+temperature:label", learnt) == [[20, 1013]]
    with pytest.raises(
        DataError, match=r"names the columns temp, press, but those of the run are temperature, pressure, as its first client names them"
    ):
        samples(f"csv:{sites}/d.csv:temp+press:label", learnt)


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", ""), ("a", "b", "c"), ("a", "b" * (1 << 20)), ("a", "\u00e9" * (1 << 19)), ()])
def test_names_that_cannot_be_a_sample_s_are_not_taken(names: tuple[str, ...]) -> None:
    unnamed = parse_specification("2:2")
    assert with_names(unnamed, names, of_client=True) is unnamed
    assert with_names(NAMED, ("a", "b"), of_client=True) is NAMED
    assert with_names(parse_specification("text:2:2"), ("a", "b")).columns == ()


def test_a_run_learns_the_columns_of_its_held_out_data(sites: Path) -> None:
    unnamed = parse_specification("1x2:2")
    learned = with_columns(unnamed, open_source(f"csv:{sites}/a.csv:*:label").inputs)
    assert learned.columns == ("temperature", "pressure")
    assert samples(f"csv:{sites}/b.csv:*:label", learned) == [[[20, 1013]]]
    assert with_columns(NAMED, open_source(f"csv:{sites}/c.csv:*:label").inputs) == NAMED


@pytest.mark.parametrize("header", [",,label", "a,b,c,label"])
def test_nothing_is_learned_from_columns_that_are_not_the_run_s(sites: Path, header: str) -> None:
    (sites / "f.csv").write_text(f"{header}\n{'1,' * header.count(',')}0\n")
    unnamed = parse_specification("2:2")
    assert with_columns(unnamed, open_source(f"csv:{sites}/f.csv:*:label").inputs) == unnamed
    text = parse_specification("text:2:2")
    assert with_columns(text, open_source(f"csv:{sites}/a.csv:*:label").inputs) == text


def test_the_order_is_logged_and_printed(sites: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="heron_common"):
        source = open_source(f"csv:{sites}/b.csv:*:label")
    assert [vars(record)["columns"] for record in caplog.records] == ["pressure, temperature"]
    unnamed = "\n".join(page(inspect_source(source, parse_specification("2:2"), None), 0))
    assert (
        "columns       pressure, temperature (as they stand in this file: the run names none yet, and takes those of the first client that has names)\n"
        in unnamed
    )
    assert "columns       temperature, pressure (the run's order)" in page(inspect_source(source, NAMED, None), 0)


def test_columns_that_can_have_no_names_are_warned_of_once(sites: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sites / "f.csv").write_text(",,label\n20,1013,0\n")
    check_source(open_source(f"csv:{sites}/a.csv:*:label"), parse_specification("2:2"))
    source = open_source(f"csv:{sites}/f.csv:*:label")
    for specification in (parse_specification("2:2"), parse_specification("2:2"), parse_specification("2:2")):
        check_source(source, specification)
    assert [record.getMessage()[:38] for record in caplog.records if record.levelname == "WARNING"] == [
        "the run has no names for its columns a"
    ]


def test_names_stand_in_place_of_a_shape() -> None:
    expected = DataSpecification(
        "b+a:cat,dog:1:2", (2,), num_classes=2, mean=1.0, standard_deviation=2.0, class_names=("cat", "dog"), columns=("b", "a")
    )
    assert parse_specification("b+a:cat,dog:1:2") == expected
    for wrong in ("a+:2", "a+a:2", "a+b", "+:2"):
        with pytest.raises(ConfigurationError, match="names of columns like temperature"):
            parse_specification(wrong)


@pytest.mark.parametrize("text", ["1_0:2", "2:1_0", "2:2:1_0", "2:2:0:1_0", "text:1_0:2", "2:regression:1_0"])
def test_a_number_is_written_as_the_rest_of_the_world_does(text: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown data specification"):
        parse_specification(text)
