"""CIFAR-10 as published: binary files read row by row; pickles and archives turned into such a file once, in the cache."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from heron_common.data.cifar_pickle import write_records
from heron_common.data.file_rows import FileRows, JoinedRows
from heron_common.data.unpacked import PACKING_ERRORS, unpacked_once
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import DataSpecification

CIFAR_10_SPECIFICATION = DataSpecification("cifar-10", (3, 32, 32), num_classes=10, mean=120.7, standard_deviation=64.2)

_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_BINARY_FOLDER = "cifar-10-batches-bin"
_PICKLE_FOLDER = "cifar-10-batches-py"
_IMAGE_BYTES = 3 * 32 * 32
# A record is a label byte, then the image: its red, green and blue plane.
_RECORD_BYTES = 1 + _IMAGE_BYTES
# Twice a published batch of ten thousand: an archive of nothing but zeros unpacks to a thousand times its size.
_MAX_MEMBER_BYTES = 20_000 * _RECORD_BYTES


def open_cifar_10(argument: str) -> tuple[JoinedRows, JoinedRows]:
    """Open `train:FOLDER` (50000 samples) or `test:FOLDER` (10000): images [n, 3, 32, 32] and labels [n].

    Raises:
        ConfigurationError: part or folder is missing.
        DataError: the files are missing or damaged, or a pickle holds more than arrays of bytes.

    """
    part, _, folder = argument.partition(":")
    if part not in _BATCHES or not folder:
        raise ConfigurationError(
            f"data source 'cifar-10' needs a part and a folder, not {argument!r}: write cifar-10:train:FOLDER or cifar-10:test:FOLDER"
        )
    return _open_records(_record_files(Path(folder), part))


def _record_files(folder: Path, part: str) -> Sequence[Path]:
    for place in (folder, folder / _BINARY_FOLDER):
        if files := _batch_files(place, part, ".bin"):
            return files
    for place in (folder, folder / _PICKLE_FOLDER):
        if files := _batch_files(place, part, ""):
            return [unpacked_once(files, f"cifar-10-{part}", partial(_convert, files))]
    for name, inside, suffix in (("cifar-10-binary.tar.gz", _BINARY_FOLDER, ".bin"), ("cifar-10-python.tar.gz", _PICKLE_FOLDER, "")):
        archive = folder / name
        if archive.is_file():
            members = [f"{inside}/{batch}{suffix}" for batch in _BATCHES[part]]
            return [unpacked_once([archive], f"cifar-10-{part}", partial(_extract, archive, members))]
    raise DataError(
        f"{folder} holds neither the CIFAR-10 files {_BATCHES[part][0]}.bin or {_BATCHES[part][0]}, nor the folder {_BINARY_FOLDER} or "
        f"{_PICKLE_FOLDER}, nor cifar-10-binary.tar.gz or cifar-10-python.tar.gz: give the folder that one of them lies in"
    )


def _batch_files(folder: Path, part: str, suffix: str) -> list[Path]:
    """Return every file of the part, or nothing if none is there."""
    files = [folder / f"{batch}{suffix}" for batch in _BATCHES[part]]
    missing = [file.name for file in files if not file.is_file()]
    if 0 < len(missing) < len(files):
        raise DataError(f"{folder} must hold all {len(files)} files of the part, but has no {', '.join(missing)}: put them there too")
    return [] if missing else files


def _open_records(files: Sequence[Path]) -> tuple[JoinedRows, JoinedRows]:
    images, labels = [], []
    for path in files:
        try:
            count, rest = divmod(path.stat().st_size, _RECORD_BYTES)
            if rest or not count:
                raise DataError(
                    f"{path} must hold rows of {_RECORD_BYTES} bytes, but has {count * _RECORD_BYTES + rest} bytes: fetch the file again"
                )
            images.append(FileRows(path, 1, shape=(count, 3, 32, 32), dtype=np.dtype(np.uint8), stride=_RECORD_BYTES))
            labels.append(FileRows(path, 0, shape=(count,), dtype=np.dtype(np.uint8), stride=_RECORD_BYTES))
        except OSError as exc:
            raise DataError(f"cannot read {path} ({exc}): make it readable for this user") from exc
    return JoinedRows(images), JoinedRows(labels)


def _convert(files: Sequence[Path], output: BinaryIO) -> None:
    for path in files:
        with path.open("rb") as file:
            write_records(file, str(path), output)


def _extract(path: Path, members: Sequence[str], output: BinaryIO) -> None:
    """Append the members to `output`; they are read by name and never become files, so no name in the archive matters to the disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for name in members:
                member = archive.getmember(name)
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.size > _MAX_MEMBER_BYTES:
                    raise DataError(
                        f"{name} of {path} must be a regular file of at most {_MAX_MEMBER_BYTES} bytes: fetch the archive again"
                    )
                if name.endswith(".bin"):
                    shutil.copyfileobj(content, output)
                else:
                    write_records(content, f"{name} of {path}", output)
    except KeyError as exc:
        raise DataError(f"{path} is not the published archive ({exc.args[0]}): fetch it again") from exc
    except PACKING_ERRORS as exc:
        raise DataError(f"{path} is damaged ({exc}): fetch it again") from exc
