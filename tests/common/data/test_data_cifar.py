"""CIFAR-10 in each published form: the same rows from binary files, pickles and archives; a pickle can do nothing but hold bytes."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_common.data import open_source
from heron_common.data.check import check_source
from heron_common.data.cifar import CIFAR_10_SPECIFICATION
from heron_common.data.sources import DataSource
from heron_common.errors import ConfigurationError, DataError

# Batches of different sizes, so that rows taken from the wrong batch show.
SIZES = {"data_batch_1": 7, "data_batch_2": 1, "data_batch_3": 12, "data_batch_4": 5, "data_batch_5": 9, "test_batch": 6}
_RANDOM = np.random.default_rng(0)
PIXELS = {name: _RANDOM.integers(0, 256, (count, 3072), np.uint8) for name, count in SIZES.items()}
LABELS = {name: _RANDOM.integers(0, 10, count) for name, count in SIZES.items()}
TRAIN = [name for name in SIZES if name != "test_batch"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "heron" / "data"


def binary(name: str) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(LABELS[name], PIXELS[name], strict=True))


def published_pickle(name: str) -> bytes:
    """Return the pickle as Python 2 and its numpy wrote it: protocol 2, byte strings, the old module names."""
    data, count = PIXELS[name].tobytes(), len(PIXELS[name])
    labels = b"".join(b"K" + bytes([label]) for label in LABELS[name])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01M"
        + count.to_bytes(2, "little")
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tb"
    )
    return b"\x80\x02}(U\x0bbatch_labelU\x05batchU\x06labels](" + labels + b"eU\x04data" + array + b"U\x09filenames]u."


def modern_pickle(name: str, protocol: int, order: str = "C") -> bytes:
    pixels = np.asfortranarray(PIXELS[name]) if order == "F" else PIXELS[name]
    return pickle.dumps({"labels": LABELS[name].tolist(), "data": pixels, "filenames": ["a.png"]}, protocol)


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        (folder / f"{name}.bin").write_bytes(binary(name))


def write_pickles(folder: Path, content: Callable[[str], bytes] = published_pickle) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        (folder / name).write_bytes(content(name))


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def archived(kind: str) -> dict[str, bytes]:
    """Return the members in an order in which none comes when it is wanted."""
    if kind == "binary":
        return {f"cifar-10-batches-bin/{name}.bin": binary(name) for name in reversed(SIZES)}
    return {f"cifar-10-batches-py/{name}": published_pickle(name) for name in reversed(SIZES)}


FORMS: dict[str, Callable[[Path], None]] = {
    "binary": write_binary,
    "binary-folder": lambda folder: write_binary(folder / "cifar-10-batches-bin"),
    "pickles": write_pickles,
    "pickles-folder": lambda folder: write_pickles(folder / "cifar-10-batches-py"),
    "binary-archive": lambda folder: write_archive(folder / "cifar-10-binary.tar.gz", archived("binary")),
    "pickles-archive": lambda folder: write_archive(folder / "cifar-10-python.tar.gz", archived("python")),
    "protocol-2-anew": lambda folder: write_pickles(folder, lambda name: published_pickle(name).replace(b"numpy.core", b"numpy._core")),
    "protocol-4": lambda folder: write_pickles(folder, lambda name: modern_pickle(name, 4)),
    "protocol-5": lambda folder: write_pickles(folder, lambda name: modern_pickle(name, 5)),
    "protocol-4-columns": lambda folder: write_pickles(folder, lambda name: modern_pickle(name, 4, "F")),
    "protocol-5-columns": lambda folder: write_pickles(folder, lambda name: modern_pickle(name, 5, "F")),
}


def open_part(folder: Path, part: str = "train") -> DataSource:
    return open_source(f"cifar-10:{part}:{folder}")


def refusal_of(folder: Path, part: str = "train") -> str:
    with pytest.raises(DataError) as refusal:
        open_part(folder, part)
    return str(refusal.value)


def unpacked_files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_gives_the_same_rows(tmp_path: Path, form: str, part: str) -> None:
    FORMS[form](tmp_path)
    names = TRAIN if part == "train" else ["test_batch"]
    pixels, labels = (np.concatenate([table[name] for name in names]) for table in (PIXELS, LABELS))
    source = open_part(tmp_path, part)
    assert source.input_shape == (3, 32, 32)
    rows = np.random.default_rng(1).permutation(len(labels))
    assert np.array_equal(source.inputs.read(rows), pixels[rows].reshape(-1, 3, 32, 32))
    assert np.array_equal(source.labels.read(rows), labels[rows])
    check_source(source, CIFAR_10_SPECIFICATION)


def test_the_published_pickles_of_this_test_are_what_python_reads() -> None:
    batch = pickle.loads(published_pickle("test_batch"), encoding="bytes")
    assert np.array_equal(batch[b"data"], PIXELS["test_batch"])
    assert batch[b"labels"] == LABELS["test_batch"].tolist()


def test_binary_files_are_read_where_they_lie(tmp_path: Path, cache: Path) -> None:
    write_binary(tmp_path)
    source = open_part(tmp_path)
    assert not cache.exists()
    changed = bytearray(binary("data_batch_1"))
    changed[:4] = bytes([3, 251, 252, 253])
    (tmp_path / "data_batch_1.bin").write_bytes(changed)
    assert source.labels.read(np.array([0])).tolist() == [3]
    assert source.inputs.read(np.array([0]))[0, 0, 0, :3].tolist() == [251, 252, 253]


@pytest.mark.parametrize("form", ["pickles", "binary-archive", "pickles-archive"])
def test_pickles_and_archives_are_converted_once(tmp_path: Path, cache: Path, form: str) -> None:
    FORMS[form](tmp_path)
    open_part(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in unpacked_files(cache)}
    open_part(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in unpacked_files(cache)} == before
    assert [path.stat().st_size for path in before] == [3073 * sum(SIZES[name] for name in TRAIN)]


class Bomb:
    """Unpickled by Python itself, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("archive", [False, True])
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(tmp_path: Path, cache: Path, protocol: int, archive: bool) -> None:
    bomb = pickle.dumps({"data": PIXELS["test_batch"], "labels": Bomb(tmp_path / "exploded")}, protocol)
    if archive:
        write_archive(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/test_batch": bomb})
    else:
        (tmp_path / "test_batch").write_bytes(bomb)
    sentence = refusal_of(tmp_path, "test")
    # Old protocols write the array's own bytes by a function that is not allowed either, and stop there.
    assert "it may hold arrays of bytes only, but names " in sentence
    assert any(name in sentence for name in (f"{os.name}.mkdir", "_codecs.encode"))
    assert not (tmp_path / "exploded").exists()
    assert unpacked_files(cache) == []


@pytest.mark.parametrize(
    "name", ["builtins.eval", "numpy.fromfile", "numpy.core.multiarray.fromfile", "numpy.load", "numpy.ndarray.tofile", "numpy.dtype.type"]
)
def test_numpys_own_functions_are_refused_too(tmp_path: Path, name: str) -> None:
    module, _, function = name.rpartition(".")
    (tmp_path / "test_batch").write_bytes(b"\x80\x02c" + module.encode() + b"\n" + function.encode() + b"\n.")
    assert f"names {name}" in refusal_of(tmp_path, "test")


def test_a_dotted_name_does_not_reach_through_an_allowed_one(tmp_path: Path) -> None:
    content = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    (tmp_path / "test_batch").write_bytes(content)
    assert "names numpy.ndarray.tofile" in refusal_of(tmp_path, "test")


def batch_of(**changes: Any) -> bytes:
    return pickle.dumps({"data": PIXELS["test_batch"], "labels": LABELS["test_batch"].tolist()} | changes, 4)


WRONG = {
    "empty": (b"", "not a published CIFAR-10 batch"),
    "text": (b"no pickle at all", "not a published CIFAR-10 batch"),
    "truncated": (published_pickle("test_batch")[:-99], "not a published CIFAR-10 batch"),
    "no-dictionary": (pickle.dumps([1, 2]), "it holds no dictionary"),
    "no-data": (pickle.dumps({"labels": [1]}), "its images are not an array of bytes"),
    "data-list": (batch_of(data=[1, 2]), "its images are not an array of bytes"),
    "objects": (batch_of(data=np.array([[None] * 3072] * 6)), "its images are not an array of bytes"),
    "floats": (batch_of(data=PIXELS["test_batch"].astype(np.float32)), "are of type 'f4' instead of unsigned bytes"),
    "few-pixels": (batch_of(data=PIXELS["test_batch"][:, :3000].copy()), "have shape [6, 3000] instead of [n, 3072]"),
    "shape-beyond-data": (batch_of().replace(b"K\x06M\x00\x0c", b"K\x07M\x00\x0c"), "cannot reshape"),
    "few-labels": (batch_of(labels=[1, 2]), "6 images but 2 labels"),
    "label-ten": (batch_of(labels=[10] * 6), "not a list of numbers from 0 to 9"),
    "label-text": (batch_of(labels=["1"] * 6), "not a list of numbers from 0 to 9"),
    "label-true": (batch_of(labels=[True] * 6), "not a list of numbers from 0 to 9"),
    "labels-missing": (batch_of(labels=None), "not a list of numbers from 0 to 9"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_pickle_that_is_no_batch_is_refused_by_name_and_nothing_is_kept(tmp_path: Path, cache: Path, wrong: str) -> None:
    content, sentence = WRONG[wrong]
    (tmp_path / "test_batch").write_bytes(content)
    refusal = refusal_of(tmp_path, "test")
    assert str(tmp_path / "test_batch") in refusal
    assert sentence in refusal
    assert "fetch cifar-10-python.tar.gz again" in refusal
    assert unpacked_files(cache) == []


@pytest.mark.parametrize("size", [0, 3072, 3073 * 5 + 1])
def test_a_binary_file_of_broken_rows_is_refused_with_its_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    assert f"test_batch.bin must hold rows of 3073 bytes, but has {size} bytes" in refusal_of(tmp_path, "test")


@pytest.mark.parametrize("form", ["binary", "pickles"])
def test_a_missing_batch_is_named(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    name = "data_batch_3.bin" if form == "binary" else "data_batch_3"
    (tmp_path / name).unlink()
    assert f"must hold all 5 files of the part, but has no {name}:" in refusal_of(tmp_path)


def test_members_outside_the_published_folder_are_neither_read_nor_written(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    evil = {"../evil": b"evil", str(tmp_path / "absolute"): b"evil", "../cifar-10-batches-bin/test_batch.bin": bytes(3073)}
    write_archive(folder / "cifar-10-binary.tar.gz", evil | archived("binary"))
    source = open_part(folder, "test")
    assert np.array_equal(source.read_labels(), LABELS["test_batch"])
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()} == {"data", "cache"}
    assert len(unpacked_files(cache)) == 1
    write_archive(folder / "cifar-10-binary.tar.gz", evil)
    assert "is not the published archive" in refusal_of(folder, "test")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_link_in_an_archive_is_not_followed(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        info.type, info.linkname = kind, "/etc/hostname"
        archive.addfile(info)
    assert "must be a regular file" in refusal_of(tmp_path, "test")


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped"])
def test_a_damaged_archive_is_refused_by_name_and_nothing_is_kept(tmp_path: Path, cache: Path, damage: str) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, archived("binary"))
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 4000])
    path.write_bytes(
        {"text": b"no archive", "truncated": content[:middle], "flipped": content[:middle] + flipped + content[middle + 4000 :]}[damage]
    )
    assert str(path) in refusal_of(tmp_path)
    assert "again" in refusal_of(tmp_path)
    assert unpacked_files(cache) == []


def test_a_folder_without_any_form_is_refused_with_all_of_them(tmp_path: Path) -> None:
    sentence = refusal_of(tmp_path)
    assert all(name in sentence for name in ("data_batch_1.bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", str(tmp_path)))


@pytest.mark.parametrize("argument", ["", "train", "train:", "validation:/folder", "/folder:train"])
def test_a_source_without_part_or_folder_is_refused_with_how_to_write_it(argument: str) -> None:
    with pytest.raises(ConfigurationError, match="write cifar-10:train:FOLDER or cifar-10:test:FOLDER") as refusal:
        open_source(f"cifar-10:{argument}")
    assert repr(argument) in str(refusal.value)
