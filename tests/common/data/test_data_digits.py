"""The handwritten digits: the same samples as scikit-learn's own loader gives, without importing scikit-learn, split once for all."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from heron_common.data import digits as digits_module
from heron_common.data import open_source
from heron_common.data.digits import DIGITS_SPECIFICATION, open_digits
from heron_common.data.reading import SampleReader
from heron_common.errors import ConfigurationError, DataError


def everything(part: str) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = open_digits(part)
    rows = np.arange(inputs.shape[0])
    return inputs.read(rows), labels.read(rows)


def fingerprints(images: np.ndarray, labels: np.ndarray) -> Counter[bytes]:
    """Return how often each sample with its label occurs."""
    return Counter(i.reshape(-1).astype(np.uint8).tobytes() + bytes([int(n)]) for i, n in zip(images, labels, strict=True))


def test_both_parts_together_are_scikit_learns_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="the oracle of this test; the package reads only its file")
    oracle = datasets.load_digits()
    ours = fingerprints(*everything("train")) + fingerprints(*everything("test"))
    assert ours == fingerprints(oracle.images, oracle.target)


@pytest.mark.process
def test_reading_digits_does_not_import_scikit_learn() -> None:
    script = (
        "import sys\n"
        "from heron_common.data import open_source\n"
        "assert open_source('digits:train').num_examples == 1437\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in ('sklearn', 'scipy', 'pandas', 'torch')))\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(("part", "count"), [("train", 1437), ("test", 360)])
def test_a_part_has_its_size_shape_dtypes_and_all_ten_digits(part: str, count: int) -> None:
    images, labels = everything(part)
    assert (images.shape, images.dtype) == ((count, 1, 8, 8), np.float32)
    assert (labels.shape, labels.dtype) == ((count,), np.int64)
    assert set(labels.tolist()) == set(range(10))
    assert (images.min(), images.max()) == (0, 16)
    # IID: a digit's count in a part of n is binomial with p = 1/10, standard deviation below sqrt(n) / 3.
    assert np.abs(np.bincount(labels) - count / 10).max() < 5 * np.sqrt(count) / 3


def test_the_parts_share_no_sample() -> None:
    train, test = fingerprints(*everything("train")), fingerprints(*everything("test"))
    assert not set(train) & set(test)


@pytest.mark.process
def test_the_split_is_the_same_every_time_and_in_every_process() -> None:
    script = (
        "import hashlib\n"
        "import numpy as np\n"
        "from heron_common.data.digits import open_digits\n"
        "print(hashlib.sha256(open_digits('test')[0].read(np.arange(360)).tobytes()).hexdigest())\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.strip() == hashlib.sha256(everything("test")[0].tobytes()).hexdigest()


def test_rows_are_read_by_index_as_copies() -> None:
    inputs, labels = open_digits("train")
    images, _ = everything("train")
    wanted = np.array([5, 5, 1436, 0])
    picked = inputs.read(wanted)
    assert np.array_equal(picked, images[wanted])
    picked[:] = -1
    assert np.array_equal(inputs.read(wanted), images[wanted])
    assert labels.read(wanted).shape == (4,)


def test_normalised_digits_lie_around_zero() -> None:
    source = open_source("digits:train")
    x, _ = SampleReader(source, DIGITS_SPECIFICATION).batch(source.rows)
    assert abs(float(x.mean())) < 0.05
    assert -1 <= float(x.min()) < 0 < float(x.max()) <= 1


@pytest.mark.parametrize("part", ["", "training", "Train", "train:1"])
def test_another_part_is_refused_with_the_parts_that_exist(part: str) -> None:
    with pytest.raises(ConfigurationError, match="write digits:train or digits:test") as refusal:
        open_source(f"digits:{part}")
    assert repr(part) in str(refusal.value)


def test_without_scikit_learn_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'heron-sfl\[digits\]'"):
        open_digits("train")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        gzip.compress(b"1,2,3\n" * 1797),
        gzip.compress(b"x,y\n"),
        gzip.compress(b"1,2\n1,2,3\n"),
        gzip.compress(b"1,2\n" * 9999)[:-9],
    ],
    ids=["empty", "no-gzip", "few-columns", "words", "ragged", "truncated"],
)
def test_a_damaged_file_is_named_in_the_refusal(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(content)
    monkeypatch.setattr(digits_module, "digits_file", lambda: path)
    with pytest.raises(DataError, match=r"digits\.csv\.gz is damaged .*: reinstall scikit-learn"):
        open_digits("train")


def test_flipped_bits_inside_the_file_are_a_data_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(digits_module.digits_file().read_bytes())
    # Just behind the gzip header, where the code tables of the first block lie.
    content[30:94] = bytes(byte ^ 0xFF for byte in content[30:94])
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(bytes(content))
    monkeypatch.setattr(digits_module, "digits_file", lambda: path)
    with pytest.raises(DataError, match=r"digits\.csv\.gz is damaged"):
        open_digits("train")
