"""Rows of an .npz file read from disk: equal to numpy's own reader, and every file that cannot be read row by row refused in a sentence."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_common.data import open_source
from heron_common.data.npz import open_npz
from heron_common.errors import ConfigurationError, DataError

X = np.random.default_rng(0).standard_normal((20, 3, 4)).astype(np.float32)
Y = np.arange(20) % 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def refusal_of(path: Path) -> str:
    with pytest.raises(DataError) as refusal:
        open_npz(str(path))
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def write_members(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


@pytest.mark.parametrize("x_dtype", ["f4", "f8", "f2", "u1", "i4", ">f4", ">i2", "?"])
@pytest.mark.parametrize("y_dtype", ["i8", "u1", ">i4"])
def test_rows_equal_those_of_numpys_own_reader(path: Path, x_dtype: str, y_dtype: str) -> None:
    np.savez(path, x=(X * 50).astype(x_dtype), y=Y.astype(y_dtype))
    inputs, labels = open_npz(str(path))
    rows = np.array([19, 0, 7, 7])
    with np.load(path) as oracle:
        assert (inputs.shape, labels.shape) == (oracle["x"].shape, oracle["y"].shape)
        assert np.array_equal(inputs.read(rows), oracle["x"][rows])
        assert np.array_equal(labels.read(rows), oracle["y"][rows])
        assert np.array_equal(inputs.read(np.arange(20)), oracle["x"])


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_header_versions_can_be_read(path: Path, version: tuple[int, int]) -> None:
    write_members(path, x=npy(X, version), y=npy(Y, version))
    inputs, labels = open_npz(str(path))
    assert np.array_equal(inputs.read(np.arange(20)), X)
    assert np.array_equal(labels.read(np.arange(20)), Y)


def test_other_arrays_and_their_order_do_not_matter(path: Path) -> None:
    np.savez(path, y=Y, unrelated=np.ones((9, 9)), x=X)
    inputs, _ = open_npz(str(path))
    assert np.array_equal(inputs.read(np.array([3])), X[3:4])


def test_no_rows_can_be_read(path: Path) -> None:
    np.savez(path, x=X, y=Y)
    assert open_npz(str(path))[0].read(np.array([], np.int64)).shape == (0, 3, 4)


def test_reading_a_batch_takes_memory_for_the_batch_only(path: Path) -> None:
    big = np.zeros((4096, 1024), np.float32)
    np.savez(path, x=big, y=np.zeros(4096, np.int64))
    tracemalloc.start()
    inputs, _ = open_npz(str(path))
    inputs.read(np.arange(8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Eight rows are 32 KiB, held as pieces, joined and as an array; the file has 16 MiB.
    assert peak < big.nbytes / 16


def test_the_files_are_closed_with_their_source(path: Path) -> None:
    np.savez(path, x=X, y=Y)

    def open_descriptors() -> int:
        return sum(1 for link in Path("/proc/self/fd").iterdir() if link.exists() and link.resolve() == path)

    source = open_npz(str(path))
    assert open_descriptors() == 2
    del source
    assert open_descriptors() == 0


def test_a_file_that_became_shorter_is_noticed_when_a_row_is_missing(path: Path) -> None:
    np.savez(path, x=X, y=Y)
    inputs, _ = open_npz(str(path))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="the data file changed while it was in use"):
        inputs.read(np.arange(20))


def test_a_compressed_file_is_refused_with_the_function_to_use(path: Path) -> None:
    np.savez_compressed(path, x=X, y=Y)
    assert "compressed" in refusal_of(path)
    assert "numpy.savez, not savez_compressed" in refusal_of(path)


def test_fortran_order_is_refused_with_the_function_to_use(path: Path) -> None:
    np.savez(path, x=np.asfortranarray(X), y=Y)
    assert "'x'" in refusal_of(path)
    assert "ascontiguousarray" in refusal_of(path)


def test_missing_samples_are_named_beside_the_arrays_that_exist(path: Path) -> None:
    np.savez(path, y=Y, other=Y)
    assert "no array 'x'" in refusal_of(path)
    assert "other.npy" in refusal_of(path)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X.astype(np.complex64), Y),
        (np.array([["a", "b"]] * 20), Y),
        (np.zeros((20, 2), [("a", "f4")]), Y),
        (np.zeros((20, 2), "M8[s]"), Y),
        (X, Y.reshape(20, 1, 1)),
        (X, Y > 3),
        (X[:, 0, 0], Y),
        (np.float32(3.0), Y),
        (X, np.int64(3)),
    ],
    ids=["complex", "text", "structured", "dates", "label-cube", "bool-labels", "vector", "scalar", "scalar-label"],
)
def test_arrays_of_the_wrong_kind_or_rank_are_refused_with_what_they_are(path: Path, x: Any, y: Any) -> None:
    np.savez(path, x=x, y=y)
    sentence = refusal_of(path)
    assert "must hold x [n, ...] of numbers and y [n] or [n, k] of numbers" in sentence
    assert all(f"{np.asarray(a).dtype}{list(np.asarray(a).shape)}" in sentence for a in (x, y))


def test_pickled_objects_are_refused_and_never_loaded(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    np.savez(path, x=np.array([[Bomb()]] * 20, dtype=object), y=Y)
    assert "object" in refusal_of(path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path: Path, kept: float) -> None:
    np.savez(path, x=X, y=Y)
    os.truncate(path, int(path.stat().st_size * kept))
    assert "numpy.savez(path, x=..., y=...)" in refusal_of(path)


BAD_MEMBERS = {
    "empty": b"",
    "magic-only": b"\x93NUMPY",
    "text": b"not numpy" * 9,
    "unknown-version": npy(X).replace(b"NUMPY\x01\x00", b"NUMPY\x09\x00"),
    "header-without-type": npy(X).replace(b"'descr'", b"'other'"),
    "unknown-type": npy(X).replace(b"<f4", b"<q9"),
    "header-cut": npy(X)[:40],
}


@pytest.mark.parametrize("member", BAD_MEMBERS)
def test_a_member_that_is_not_an_array_is_refused(path: Path, member: str) -> None:
    write_members(path, x=BAD_MEMBERS[member], y=npy(Y))
    assert "cannot read" in refusal_of(path)


@pytest.mark.parametrize("cut", [4, 48, 500])
def test_an_array_whose_data_is_shorter_than_its_header_says_is_refused(path: Path, cut: int) -> None:
    write_members(path, x=npy(X)[:-cut], y=npy(Y))
    refusal_of(path)


def test_a_path_that_does_not_exist_or_is_no_file_is_refused(path: Path) -> None:
    assert "cannot read" in refusal_of(path)
    assert "cannot read" in refusal_of(path.parent)


def test_no_path_is_a_configuration_error() -> None:
    for name in ("npz:", "npz"):
        with pytest.raises(ConfigurationError, match="write npz:PATH"):
            open_source(name)
