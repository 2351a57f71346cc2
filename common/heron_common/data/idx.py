"""IDX files, the format of MNIST and its relatives: a big-endian header, then unsigned bytes; read row by row, a .gz unpacked once."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from heron_common.data.file_rows import FileRows
from heron_common.data.unpacked import PACKING_ERRORS, unpacked_once
from heron_common.errors import ConfigurationError, DataError

IDX_PREFIXES = {"train": "train", "test": "t10k"}
"""How the files of each part begin."""

_UNSIGNED_BYTE = 0x08
_MAGIC = struct.Struct(">HBB")
_PIECE_BYTES = 1 << 18


def open_idx(argument: str) -> tuple[FileRows, FileRows]:
    """Open `FOLDER:train` or `FOLDER:test`: images [n, 1, height, width] and labels [n].

    Raises:
        ConfigurationError: folder or part is missing.
        DataError: a file is missing or damaged.

    """
    folder, _, part = argument.rpartition(":")
    if not folder or part not in IDX_PREFIXES:
        raise ConfigurationError(
            f"data source 'idx' needs a folder and a part, not {argument!r}: write idx:FOLDER:train or idx:FOLDER:test"
        )
    return open_idx_folder(Path(folder), part)


def open_idx_folder(folder: Path, part: str) -> tuple[FileRows, FileRows]:
    """Open images and labels of a part, each plain or as .gz; the plain one is taken if both are there.

    Raises:
        DataError: a file is missing or damaged.

    """
    prefix = IDX_PREFIXES[part]
    return _open_file(folder / f"{prefix}-images-idx3-ubyte", 3), _open_file(folder / f"{prefix}-labels-idx1-ubyte", 1)


def _open_file(plain: Path, rank: int) -> FileRows:
    packed = plain.with_name(f"{plain.name}.gz")
    path = plain
    if not plain.is_file():
        if not packed.is_file():
            raise DataError(f"{plain} is not there, neither plain nor as .gz: put the four published IDX files into that folder")
        path = unpacked_once([packed], plain.name, lambda output: _unpack(packed, rank, output))
    try:
        with path.open("rb") as file:
            header = file.read(_header_bytes(rank))
        shape = _shape(header, path, rank)
        _check_length(path, path.stat().st_size, len(header) + math.prod(shape))
        # Images have one channel; models expect it as a dimension.
        return FileRows(path, len(header), shape=(shape[0], 1, *shape[1:]) if rank == 3 else shape, dtype=np.dtype(np.uint8))
    except OSError as exc:
        raise DataError(f"cannot read {path} ({exc}): make it readable for this user") from exc


def _header_bytes(rank: int) -> int:
    return _MAGIC.size + 4 * rank


def _shape(header: bytes, path: Path, rank: int) -> tuple[int, ...]:
    if len(header) != _header_bytes(rank):
        raise DataError(f"{path} ends within its header of {_header_bytes(rank)} bytes: fetch the file again")
    zero, kind, dimensions = _MAGIC.unpack_from(header)
    if zero != 0:
        raise DataError(f"{path} is not an IDX file, it begins with {header[:4].hex()} instead of 0000: fetch the file again")
    if kind != _UNSIGNED_BYTE or dimensions != rank:
        raise DataError(
            f"{path} must hold unsigned bytes (type 0x08) in {rank} dimensions, "
            f"but holds type 0x{kind:02x} in {dimensions}: use the published files under their own names"
        )
    shape = struct.unpack_from(f">{rank}I", header, _MAGIC.size)
    if 0 in shape[1:]:
        raise DataError(f"{path} must hold images of at least one pixel, but its header says {list(shape)}: fetch the file again")
    return shape


def _unpack(packed: Path, rank: int, output: BinaryIO) -> None:
    """Copy what the header announces and not a byte more, so that a small file cannot fill the disk unannounced."""
    try:
        with gzip.open(packed, "rb") as file:
            header = file.read(_header_bytes(rank))
            shape = _shape(header, packed, rank)
            output.write(header)
            expected = math.prod(shape)
            remaining = expected
            while remaining and (piece := file.read(min(remaining, _PIECE_BYTES))):
                output.write(piece)
                remaining -= len(piece)
            # The last read also compares the checksum.
            _check_length(packed, len(header) + expected - remaining + len(file.read(1)), len(header) + expected)
    except PACKING_ERRORS as exc:
        raise DataError(f"{packed} is damaged ({exc}): fetch the file again") from exc


def _check_length(path: Path, length: int, expected: int) -> None:
    if length != expected:
        came = f"only {length}" if length < expected else "more"
        raise DataError(f"{path} must hold {expected} bytes by its header, but holds {came}: fetch the file again")
