"""Text: labels of next tokens by hand, prompts masked, windows of running text, JSON lines, and what is cut off or refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_common.data import SampleReader, open_source
from heron_common.data.check import check_source
from heron_common.data.inspection import inspect_source, page
from heron_common.data.partition import Shard, parse_partition
from heron_common.data.specification import parse_specification
from heron_common.data.text_files import _pieces
from heron_common.data.tokeniser import Tokeniser
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import IGNORED, PADDING, DataSpecification
from tests.harness.tokenizers import END, START, UNKNOWN, word_tokenizer

WORDS = word_tokenizer("a b c d e f g h")
NEXT = parse_specification("text:4:next-token")
P, I = PADDING, IGNORED  # noqa: E741 - a column of a table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(name: str, specification: DataSpecification, tokenizer: bytes | None = WORDS) -> tuple[list[Any], list[Any]]:
    reader = SampleReader(open_source(name), specification, tokenizer)
    x, y = reader.batch(np.arange(reader.num_examples))
    assert (x.dtype, x.flags.c_contiguous) == (np.int64, True)
    return x.tolist(), y.tolist()


def test_each_label_is_the_token_that_follows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"t": "a b"}, {"t": "a b c d"}, {"t": "a b c d e"}, {"t": "a"})
    x, y = read(f"jsonl:{path}:t", NEXT)
    assert x == [[3, 4, P, P], [3, 4, 5, 6], [3, 4, 5, 6], [3, P, P, P]]
    # The fifth token is too many to be read, not to be predicted.
    assert y == [[4, I, I, I], [4, 5, 6, I], [4, 5, 6, 7], [I, I, I, I]]


def test_nothing_within_a_prompt_is_to_be_predicted(tmp_path: Path) -> None:
    records = [
        {"p": "a b", "c": "c d"},
        {"p": "", "c": "a b"},
        {"p": "a b c d", "c": "e"},
        {"p": "a b c d e f", "c": "g"},
        {"p": "a", "c": ""},
    ]
    x, y = read(f"jsonl:{jsonl(tmp_path / 'd.jsonl', *records)}:p+c", NEXT)
    assert x == [[3, 4, 5, 6], [3, 4, P, P], [3, 4, 5, 6], [3, 4, 5, 6], [3, P, P, P]]
    assert y == [[I, 5, 6, I], [4, I, I, I], [I, I, I, 7], [I, I, I, I], [I, I, I, I]]


def test_a_text_with_one_label_is_framed_as_its_tokenizer_wants_and_keeps_its_end_when_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"t": "a b c d", "n": 1}, {"t": "a what", "n": "0"})
    framed = word_tokenizer("a b c d", framed=True)
    reader = SampleReader(open_source(f"jsonl:{path}:t:n"), parse_specification("text:5:2"), framed)
    x, y = reader.batch(np.array([0, 1]))
    assert x.tolist() == [[START, 3, 4, 5, END], [START, 3, UNKNOWN, END, P]]
    assert (y.tolist(), reader.truncated) == ([1, 0], 1)
    reader.batch(np.array([0, 0]))
    assert reader.truncated == 1


def test_half_a_character_is_found_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"t": "a \\ud83d\\ude00", "u": "\\ud83d", "u": 1}\n{"t": "b \\ud83d"}\n')
    with pytest.raises(DataError, match=rf"line 2 of {path} holds a character that is no text"):
        open_source(f"jsonl:{path}:t")
    # Both halves are a character, and what is not read is nobody's concern.
    path.write_text('{"t": "a \\ud83d\\ude00", "u": "\\ud83d", "u": 1}\n')
    assert read(f"jsonl:{path}:t", NEXT)[0] == [[3, UNKNOWN, P, P]]


def test_running_text_is_looked_at_when_it_is_opened_and_the_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "1.txt").write_text("a b\n")
    (tmp_path / "books" / "2.txt").write_bytes(b"a\n\nb \xed\xa0\xbd c\n")
    with pytest.raises(DataError, match=rf"line 3 of {tmp_path}/books/2\.txt is not UTF-8 \(invalid continuation byte\)"):
        open_source(f"text:{tmp_path / 'books'}")


def test_a_byte_order_mark_is_no_token_and_lines_end_as_they_did(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa b\r\nc\rd\n")
    assert read(f"text:{tmp_path / 't.txt'}", NEXT)[0] == [[3, 4, 5, 6]]
    for ends in (b"\r\n", b"\n", b"\r"):
        (tmp_path / "t.txt").write_bytes(b"a" + ends + b"b" + ends + ends)
        assert "".join(_pieces(tmp_path / "t.txt")) == "a\nb\n\n"


def test_tokens_with_a_byte_order_mark_are_not_taken_from_the_cache_of_before(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa b c d e")
    old = tmp_path / "cache" / "heron" / "data"
    source = open_source(f"text:{tmp_path / 't.txt'}")
    SampleReader(source, NEXT, WORDS)
    made = next(old.glob("text*-4-*"))
    made.rename(made.with_name(made.name.replace("text2", "text")))
    made.with_name(made.name.replace("text2", "text")).write_bytes(np.full(5, UNKNOWN, "<i4").tobytes())
    assert read(f"text:{tmp_path / 't.txt'}", NEXT)[0] == [[3, 4, 5, 6]]


def test_a_folder_of_text_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "books" / "more.txt").mkdir(parents=True)
    for file in ("1.txt", "2.md", "3.TXT", "more.txt/4.txt", "._1.txt"):
        (tmp_path / "books" / file).write_text("a b")
    with caplog.at_level(logging.WARNING):
        source = open_source(f"text:{tmp_path / 'books'}")
    said = "4 (1 .TXT, 1 .md, 1 hidden, 1 in folders within it)"
    assert [record.getMessage() for record in caplog.records] == [f"files of the folder are left out: {said}"]
    found = inspect_source(source, NEXT, WORDS)
    assert (found.num_examples, found.left_out) == (1, said)


def test_overlong_text_is_refused_where_the_run_says_so(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"t": "a b c d"}, {"t": "a b c d e"})
    reader = SampleReader(open_source(f"jsonl:{path}:t"), dataclasses.replace(NEXT, refuses_overlong=True), WORDS)
    reader.batch(np.array([0]))
    with pytest.raises(DataError, match=r"line 2 of .* has 5 tokens, but the run takes at most 4 and refuses longer text"):
        reader.batch(np.array([1]))


def test_running_text_is_cut_into_windows_that_share_one_token_and_never_span_files(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "2.txt").write_text("h g\n")
    (tmp_path / "books" / "1.txt").write_text("a b c\nd e f g\n")
    x, y = read(f"text:{tmp_path / 'books'}", NEXT)
    assert x == [[3, 4, 5, 6], [7, 8, 9, P], [10, 9, P, P]]
    assert y == [[4, 5, 6, 7], [8, 9, I, I], [9, I, I, I]]


@pytest.mark.parametrize("count", [2, 4, 5, 6, 8, 9, 10])
def test_every_token_but_the_first_is_predicted_once(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heron_common.data.text_files._PIECE_CHARACTERS", 5)
    words = [f"w{number}" for number in range(count)]
    (tmp_path / "t.txt").write_text("\n".join(words))
    _, y = read(f"text:{tmp_path / 't.txt'}", NEXT, word_tokenizer(" ".join(words)))
    assert [token for window in y for token in window if token != I] == list(range(4, 3 + count))


def test_running_text_is_tokenised_once_for_a_tokenizer_and_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("a b c d e f")
    name = f"text:{tmp_path / 't.txt'}"
    first = read(name, NEXT)
    calls: list[str] = []
    plain = Tokeniser.plain
    monkeypatch.setattr(Tokeniser, "plain", lambda self, text: calls.append(text) or plain(self, text))
    assert read(name, NEXT) == first
    assert not calls
    read(name, NEXT, word_tokenizer("f e d c b a"))
    read(name, parse_specification("text:3:next-token"))
    assert len(calls) == 2


def test_a_shard_of_running_text_is_taken_once_it_is_cut(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b c d e f g h " * 8)
    source = open_source(f"text:{tmp_path / 't.txt'}")
    assert (source.num_examples, source.is_counted) == (0, False)
    readers = [SampleReader(source.shard(parse_partition("iid"), Shard(index, 3)), NEXT, WORDS) for index in range(3)]
    rows = sorted(int(row) for reader in readers for row in reader.source.rows)
    assert rows == list(range(16))
    with pytest.raises(DataError, match="has no labels"):
        source.shard(parse_partition("labels:2"), Shard(0, 3))
    with pytest.raises(DataError, match="would be empty"):
        SampleReader(source.shard(parse_partition("iid"), Shard(0, 17)), NEXT, WORDS)


def test_ready_tokens_are_taken_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.array([[3, 4, 5, 6, 7], [3, 4, P, P, P]], np.int32))
    assert read(f"npz:{tmp_path / 't.npz'}", NEXT, None) == ([[3, 4, 5, 6], [3, 4, P, P]], [[4, 5, 6, 7], [4, I, I, I]])
    np.savez(tmp_path / "l.npz", x=np.array([[3, 4, 5, 6]]), y=np.array([[I, 9, 8, I]]))
    assert read(f"npz:{tmp_path / 'l.npz'}", NEXT, None) == ([[3, 4, 5, 6]], [[I, 9, 8, I]])
    np.savez(tmp_path / "c.npz", x=np.array([[3, 4, P, P]], np.int16), y=np.array([1]))
    assert read(f"npz:{tmp_path / 'c.npz'}", parse_specification("text:4:2"), None) == ([[3, 4, P, P]], [1])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{broken", "line 3 of {path} is not JSON"),
        ("[1]", "line 3 of {path} should hold a JSON object, but holds list"),
        ('{"n": 1}', "line 3 of {path} has no key 't', only n"),
        ('{"t": "a"}', "line 3 of {path} has no key 'n', only t"),
        ('{"t": null, "n": 1}', "line 3 of {path} should have a string or a number under 't', but has null"),
        ('{"t": "a", "n": true}', "under 'n', but has true"),
        ('{"t": "a", "n": "cow"}', "line 3 of {path} has label 'cow', but the run's classes are cat, dog"),
        ('{"t": "a", "n": 2}', "has 2 (line 3 of {path})"),
        ('{"t": " ", "n": 0}', "line 3 of {path} should hold a text, but has no token"),
        ("\udcff", "line 3 of {path} is not utf-8"),
        (r'{"t": "a \ud83d", "n": 0}', "line 3 of {path} holds a character that is no text (half of a pair, U+D83D): mend it there"),
        (r'{"t": "a", "n": "\ude00"}', "line 3 of {path} holds a character that is no text (half of a pair, U+DE00)"),
        ('{"t": "a", "n": 0, "t": "b"}', "line 3 of {path} has the key 't' more than once"),
        ('{"t": "a", "n": "1_0"}', "line 3 of {path} has label '1_0'"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"t": "a", "n": "dog"}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DataError) as refusal:
        reader = check_source(open_source(f"jsonl:{path}:t:n"), parse_specification("text:4:cat,dog"), WORDS)
        reader.batch(np.arange(reader.num_examples))
    assert sentence.format(path=path) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "specification", "tokenizer", "sentence"),
    [
        ("jsonl:{path}:t", "text:4:next-token", None, "is text, but the run names no tokenizer"),
        ("jsonl:{path}:t", "text:4:next-token", b"{}", "the run's tokenizer cannot be loaded"),
        ("jsonl:{path}:t+u:n", "text:4:2", WORDS, "the run expects one text a sample"),
        ("jsonl:{path}:t+u+n", "text:4:next-token", WORDS, "the run expects a text, or a prompt and a completion a sample"),
        ("jsonl:{path}:t", "text:4:2", WORDS, "opened without a label key"),
        ("text:{path}", "text:4:2", WORDS, "is running text, which fits only a run that predicts the next token"),
        ("text:{path}", "3:2", None, "is running text"),
        ("text:{path}", "text:4:next-token", None, "is text, but the run names no tokenizer"),
        ("text:{empty}", "text:4:next-token", WORDS, "should hold at least two tokens"),
        ("text:{latin}", "text:4:next-token", WORDS, "is not UTF-8"),
        ("text:{folder}", "text:4:next-token", WORDS, "has none: give another path"),
        ("text:{path}.none", "text:4:next-token", WORDS, "is not there: give another path"),
        ("npz:{ready}", "text:3:2", None, "the run expects 3 tokens a sample (text:3:2), but"),
        ("npz:{floats}", "text:4:2", None, "token ids are whole numbers, but"),
        ("npz:{ready}", "text:4:2", None, "token ids are -1 behind the end or from 0"),
    ],
)
def test_text_that_does_not_fit_the_run_is_refused(
    tmp_path: Path, name: str, specification: str, tokenizer: bytes | None, sentence: str
) -> None:
    places = {key: tmp_path / key for key in ("path", "empty", "latin", "folder")} | {
        key: tmp_path / f"{key}.npz" for key in ("ready", "floats")
    }
    jsonl(places["path"], {"t": "a b c", "u": "d", "n": 1})
    places["empty"].write_text("\n")
    places["latin"].write_bytes(b"na\xefve")
    places["folder"].mkdir()
    np.savez(places["ready"], x=np.array([[3, 4, -7, 6]]), y=np.array([1]))
    np.savez(places["floats"], x=np.ones((1, 4)), y=np.array([1]))
    with pytest.raises(DataError) as refusal:
        reader = check_source(open_source(name.format(**places)), parse_specification(specification), tokenizer)
        reader.batch(np.arange(reader.num_examples))
    assert sentence in str(refusal.value)


def test_a_next_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.array([[3, 4, 5, 6]]))
    with pytest.raises(DataError, match=r"from 0 to 5, but .* has 6"):
        read(f"npz:{tmp_path / 't.npz'}", dataclasses.replace(NEXT, num_classes=6), None)


def test_names_without_arguments_are_refused() -> None:
    for name in ("text:", "jsonl:path", "jsonl:"):
        with pytest.raises(ConfigurationError, match="needs a path"):
            open_source(name)


def test_without_the_library_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'heron-sfl\[text\]'"):
        Tokeniser(WORDS)


def test_an_inspection_counts_labels_lengths_and_what_would_be_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"t": "a b c d e f", "n": "dog"}, {"t": "a", "n": "dog"}, {"t": "a b c d e", "n": "dog"})
    specification = parse_specification("text:4:cat,dog")
    found = inspect_source(open_source(f"jsonl:{path}:t:n"), specification, WORDS)
    assert (found.num_examples, found.sample, found.labels, found.absent) == (3, "[4] int64, tokens", "dog 3", ["cat"])
    assert (found.longest, found.overlong, found.num_differences) == (6, 2, 0)
    assert "6 tokens; 2 of 3 have more than the 4 that the run takes" in "\n".join(page(found, 4))
    refusing = inspect_source(open_source(f"jsonl:{path}:t:n"), dataclasses.replace(specification, refuses_overlong=True), WORDS)
    assert refusing.num_differences == 2
    assert "\n".join(page(refusing, 4)).count("refuses longer text") == 2


def test_an_inspection_finds_every_difference_and_shows_the_first(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *({"t": "" if row % 2 else "a", "n": f"cow{row}"} for row in range(30)))
    found = inspect_source(open_source(f"jsonl:{path}:t:n"), parse_specification("text:4:cat,dog"), WORDS)
    assert (found.num_differences, len(found.differences)) == (45, 20)
    assert "and 25 more that do not fit" in "\n".join(page(found, 4))
    assert "fits the run" not in "\n".join(page(found, 4))
