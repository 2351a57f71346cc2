"""IDX files and Fashion-MNIST: rows equal what was written, from disk and not from memory; a .gz is unpacked once; damage is named."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from heron_common.data import fashion_mnist, open_source
from heron_common.data.check import check_source
from heron_common.data.fashion_mnist import DEBIAN_FOLDER, FASHION_MNIST_SPECIFICATION
from heron_common.data.file_rows import FileRows, JoinedRows
from heron_common.data.sources import parse_specification
from heron_common.errors import ConfigurationError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 4, 6), np.uint8)
LABELS = (np.arange(300) % 10).astype(np.uint8)
ALL = np.arange(300)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HERON_DATA_DIR", raising=False)
    return tmp_path / "cache" / "heron" / "data"


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    """Return an array as an IDX file, written down from the format's description."""
    header = bytes([0, 0, kind, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def write(folder: Path, images: bytes, labels: bytes, packed: bool = False, prefix: str = "train") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)


def unpacked_files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name != ".lock")


def refusal_of(folder: Path) -> str:
    with pytest.raises(DataError) as refusal:
        open_source(f"idx:{folder}:train")
    return str(refusal.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("part", "prefix"), [("train", "train"), ("test", "t10k")])
def test_rows_equal_what_was_written(tmp_path: Path, packed: bool, part: str, prefix: str) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS), packed, prefix)
    source = open_source(f"idx:{tmp_path}:{part}")
    assert (source.num_examples, source.input_shape) == (300, (1, 4, 6))
    assert np.array_equal(source.inputs.read(ALL)[:, 0], IMAGES)
    assert np.array_equal(source.labels.read(np.array([299, 0, 7, 7])), LABELS[[299, 0, 7, 7]])
    assert isinstance(source.inputs, FileRows)
    assert isinstance(source.labels, FileRows)


def test_a_folder_may_hold_colons_and_a_plain_file_beats_its_gz(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "a:b", idx(IMAGES[::-1]), idx(LABELS), packed=True)
    write(tmp_path / "a:b", idx(IMAGES), idx(LABELS))
    assert np.array_equal(open_source(f"idx:{tmp_path / 'a:b'}:train").inputs.read(ALL)[:, 0], IMAGES)
    assert not cache.exists()


def test_a_gz_is_unpacked_once_and_again_only_after_it_changed(tmp_path: Path, cache: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS), packed=True)
    open_source(f"idx:{tmp_path}:train")
    before = {path: path.stat().st_mtime_ns for path in unpacked_files(cache)}
    open_source(f"idx:{tmp_path}:train")
    assert {path: path.stat().st_mtime_ns for path in unpacked_files(cache)} == before
    assert len(before) == 2
    write(tmp_path, idx(IMAGES[:5]), idx(LABELS[:5]), packed=True)
    assert open_source(f"idx:{tmp_path}:train").num_examples == 5


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_neither_unpacking_nor_reading_holds_the_file(tmp_path: Path, packed: bool) -> None:
    big = np.zeros((4096, 64, 64), np.uint8)
    write(tmp_path, idx(big), idx(np.zeros(4096, np.uint8)), packed)
    tracemalloc.start()
    open_source(f"idx:{tmp_path}:train").inputs.read(np.arange(8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Pieces of 256 KiB are copied, while the file has 16 MiB.
    assert peak < big.nbytes / 4


def test_the_cache_follows_the_desktop_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path, idx(IMAGES), idx(LABELS), packed=True)
    open_source(f"idx:{tmp_path}:train")
    assert len(unpacked_files(tmp_path / "home" / ".cache" / "heron" / "data")) == 2


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS), packed=True)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "set XDG_CACHE_HOME to another directory" in refusal_of(tmp_path)


DAMAGED = {
    "empty": (b"", "ends within its header of 16 bytes"),
    "header-cut": (idx(IMAGES)[:11], "ends within its header of 16 bytes"),
    "no-idx": (b"P5" + idx(IMAGES)[2:], "is not an IDX file, it begins with 5035"),
    "little-endian-magic": (struct.pack("<I", 0x803) + idx(IMAGES)[4:], "is not an IDX file"),
    "floats": (idx(IMAGES.astype(">f4"), 0x0D), "but holds type 0x0d in 3:"),
    "labels-for-images": (idx(LABELS) + bytes(9), "but holds type 0x08 in 1:"),
    "four-dimensions": (idx(IMAGES[None]), "but holds type 0x08 in 4:"),
    "no-pixels": (idx(IMAGES[:, :0]), "at least one pixel"),
    "truncated": (idx(IMAGES)[:-1], "must hold 7216 bytes by its header, but holds only 7215"),
    "too-long": (idx(IMAGES) + b"x", "must hold 7216 bytes by its header, but holds more"),
    "endless": (idx(IMAGES)[:4] + b"\xff" * 12 + bytes(99), "by its header, but holds only"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_by_name_and_nothing_of_it_is_kept(tmp_path: Path, cache: Path, damage: str, packed: bool) -> None:
    content, sentence = DAMAGED[damage]
    write(tmp_path, content, idx(LABELS), packed)
    refusal = refusal_of(tmp_path)
    assert f"{tmp_path / 'train-images-idx3-ubyte'}{'.gz' if packed else ''} " in refusal
    assert sentence in refusal
    assert not packed or unpacked_files(cache) == []


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped", "checksum"])
def test_a_damaged_gz_is_refused_and_nothing_of_it_is_kept(tmp_path: Path, cache: Path, damage: str) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS), packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    flipped = bytes(byte ^ 0xFF for byte in content[10:90])
    contents = {
        "text": b"not gzip",
        "truncated": content[:-200],
        "flipped": content[:10] + flipped + content[90:],
        "checksum": content[:-8] + bytes(4) + content[-4:],
    }
    path.write_bytes(contents[damage])
    assert f"{path} is damaged" in refusal_of(tmp_path)
    assert unpacked_files(cache) == []


def test_images_without_as_many_labels_are_refused_with_both_counts(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS[:299]))
    assert "has 300 samples but 299 labels" in refusal_of(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert "train-labels-idx1-ubyte is not there, neither plain nor as .gz" in refusal_of(tmp_path)


def test_a_file_that_became_shorter_is_noticed_when_a_row_is_missing(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    source = open_source(f"idx:{tmp_path}:train")
    os.truncate(tmp_path / "train-images-idx3-ubyte", 1000)
    with pytest.raises(DataError, match="the data file changed while it was in use"):
        source.inputs.read(ALL)


@pytest.mark.parametrize("argument", ["", ":train", "/folder", "/folder:", "/folder:validation", "train"])
def test_an_idx_source_without_folder_or_part_is_refused_with_how_to_write_it(argument: str) -> None:
    with pytest.raises(ConfigurationError, match="write idx:FOLDER:train or idx:FOLDER:test") as refusal:
        open_source(f"idx:{argument}")
    assert repr(argument) in str(refusal.value)


def test_joined_rows_are_those_of_the_files_one_after_the_other(tmp_path: Path) -> None:
    parts, start = [], 0
    for number, count in enumerate((5, 1, 94, 200)):
        (tmp_path / str(number)).write_bytes(IMAGES[start : start + count].tobytes())
        parts.append(FileRows(tmp_path / str(number), 0, shape=(count, 4, 6), dtype=np.dtype("u1")))
        start += count
    joined = JoinedRows(parts)
    rows = np.random.default_rng(1).integers(0, 300, 1000)
    assert joined.shape == (300, 4, 6)
    assert np.array_equal(joined.read(rows), IMAGES[rows])
    assert np.array_equal(joined.read(np.array([4, 5, 6, 299, 0])), IMAGES[[4, 5, 6, 299, 0]])
    assert joined.read(np.array([], np.int64)).shape == (0, 4, 6)


SQUARES = np.random.default_rng(2).integers(0, 256, (300, 28, 28), np.uint8)


def test_fashion_mnist_is_read_from_a_folder_or_from_heron_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "fashion-mnist", idx(SQUARES), idx(LABELS), packed=True)
    monkeypatch.setenv("HERON_DATA_DIR", str(tmp_path))
    for name in ("fashion-mnist:train", f"fashion-mnist:train:{tmp_path / 'fashion-mnist'}"):
        source = open_source(name)
        check_source(source, parse_specification("fashion-mnist"))
        assert np.array_equal(source.inputs.read(ALL)[:, 0], SQUARES)


def test_fashion_mnist_that_is_nowhere_is_refused_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("HERON_DATA_DIR", str(tmp_path / "own"))
    with pytest.raises(DataError, match="install Debian's package dataset-fashion-mnist, or give its folder") as refusal:
        open_source("fashion-mnist:test")
    assert all(str(path) in str(refusal.value) for path in (tmp_path / "debian", tmp_path / "own" / "fashion-mnist"))


def test_images_of_another_size_are_not_fashion_mnist(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    with pytest.raises(DataError, match="28x28, but these are 4x6: read them as idx:FOLDER:train"):
        open_source(f"fashion-mnist:train:{tmp_path}")


@pytest.mark.parametrize("part", ["", "Train", "validation", ":/folder"])
def test_another_part_of_fashion_mnist_is_refused_with_those_that_exist(part: str) -> None:
    with pytest.raises(ConfigurationError, match="write fashion-mnist:train or fashion-mnist:test"):
        open_source(f"fashion-mnist:{part}")


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize(("part", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_real_fashion_mnist_is_balanced_and_has_the_moments_of_its_specification(part: str, count: int) -> None:
    source = open_source(f"fashion-mnist:{part}")
    check_source(source, FASHION_MNIST_SPECIFICATION)
    assert np.bincount(source.read_labels()).tolist() == [count // 10] * 10
    if part == "train":
        # Moments of the whole training set, summed exactly; the specification rounds to two places.
        pieces = [source.inputs.read(np.arange(start, start + 6000)) for start in range(0, count, 6000)]
        total = sum(int(piece.sum(dtype=np.int64)) for piece in pieces)
        squares = sum(int(np.square(piece, dtype=np.int64).sum()) for piece in pieces)
        mean = total / (count * 784)
        assert mean == pytest.approx(FASHION_MNIST_SPECIFICATION.mean, abs=0.005)
        assert (squares / (count * 784) - mean**2) ** 0.5 == pytest.approx(FASHION_MNIST_SPECIFICATION.standard_deviation, abs=0.005)
