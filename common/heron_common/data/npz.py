"""Arrays in an uncompressed .npz file, read row by row from disk; nothing is held, so a source may be larger than memory."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
from pathlib import Path

from numpy.lib import format as npy_format

from heron_common.data.file_rows import FileRows
from heron_common.data.rows import NoLabels, RowReader
from heron_common.errors import ConfigurationError, DataError

_DAMAGE = (
    OSError,
    zipfile.BadZipFile,
    ValueError,
    struct.error,
    # A dtype in a header goes through the parser of Python where numpy takes it for a list of them.
    SyntaxError,
    tokenize.TokenError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    TypeError,
)
"""What zipfile and numpy raise for files that are no archives, headers that nest too deep, and kinds of archive that they do not know."""

_LOCAL_HEADER = struct.Struct("<26xHH")


def open_npz(argument: str) -> tuple[FileRows, RowReader]:
    """Open array `x` [n, *shape] of numbers or token ids and, if it is there, `y` [n] or [n, k] of classes, numbers or tokens that follow.

    Raises:
        ConfigurationError: no path is given.
        DataError: the file is missing, compressed, not an .npz, or its arrays have the wrong kind or rank.

    """
    if not argument:
        raise ConfigurationError("data source 'npz' needs a path: write npz:PATH")
    path = Path(argument)
    try:
        with zipfile.ZipFile(path) as archive:
            x = _member(archive, path, "x")
            y = _member(archive, path, "y") if "y.npy" in archive.namelist() else None
    except _DAMAGE as exc:
        raise DataError(f"cannot read {path} as an .npz file ({exc}): write it with numpy.savez(path, x=..., y=...)") from exc
    if x.dtype.kind not in "fiub" or len(x.shape) < 2 or (y is not None and (y.dtype.kind not in "fiu" or not 1 <= len(y.shape) <= 2)):
        came = f"x {x.dtype}{list(x.shape)}" + (f" and y {y.dtype}{list(y.shape)}" if y is not None else "")
        raise DataError(f"{path} must hold x [n, ...] of numbers and y [n] or [n, k] of numbers, but holds {came}: convert them first")
    if y is None:
        why = f"{path} has no array 'y', but labels are needed: write it with numpy.savez(path, x=..., y=...)"
        return x, NoLabels(x.shape[0], why)
    return x, y


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> FileRows:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise DataError(f"{path} has no array {name!r}, only {archive.namelist()}: write it with numpy.savez(path, x=..., y=...)") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise DataError(f"array {name!r} of {path} is compressed, so rows cannot be read from disk: use numpy.savez, not savez_compressed")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(info.header_offset + _LOCAL_HEADER.size + name_length + extra_length)
        version = npy_format.read_magic(file)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if fortran_order:
            raise DataError(
                f"array {name!r} of {path} is in Fortran order, so rows cannot be read from disk: save numpy.ascontiguousarray of it"
            )
        if any(dimension < 0 for dimension in shape):
            raise DataError(f"array {name!r} of {path} has the shape {list(shape)[:8]} by its header: write the file again")
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        # The directory of the archive may claim any size; the file has its own.
        end = file.tell() + math.prod(shape) * dtype.itemsize
        if end > min(start + info.file_size, path.stat().st_size):
            raise DataError(f"array {name!r} of {path} is shorter than its header says: write the file again")
        return FileRows(path, file.tell(), shape=shape, dtype=dtype)
