"""Image files, decoded one by one as they are read: upright, and with the range of grey that they were taken with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.data.left_out import LeftOut
from heron_common.data.rows import RowReader
from heron_common.data.tokeniser import Tokeniser
from heron_common.errors import ConfigurationError, DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import DataSpecification

_MODES = {1: "L", 3: "RGB"}

_GREY_STEPS = 257
"""Of 16-bit grey to one of 8 bits: 65535 becomes 255."""


_END_OF_JPEG = b"\xff\xd9"

_BYTES_AT_ONCE = 1 << 16

_ORIENTATION = 0x0112

_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What each orientation asks for. pillow's own `exif_transpose` also writes the other tags anew, and fails on those that cameras write wrongly."""

_ON_ITS_SIDE = (5, 6, 7, 8)


class ImageFiles:
    """Image files; they have a form once the run says how many channels and pixels it expects."""

    def __init__(self, files: Sequence[Path], resizes: bool, left_out: LeftOut) -> None:
        self.files = files
        self.left_out = left_out
        self._resizes = resizes
        self._whole: set[Path] = set()
        """Found to be whole: a client that joins again need not read everything again."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows."""
        return (len(self.files),)

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Refuse: images are decoded only for a run."""
        raise DataError("images have no form before a run says which: join one first")

    def fitted(self, specification: DataSpecification, tokeniser: Tokeniser | None) -> RowReader:
        """Return rows of decoded images.

        Raises:
            ConfigurationError: the library that decodes is not installed.
            DataError: the run expects no images.

        """
        shape = specification.input_shape
        if len(shape) != 3 or shape[0] not in _MODES:
            raise DataError(
                f"images have 1 or 3 channels, height and width, but the run expects {list(shape)}: choose other data or another --data-spec on the server"
            )
        try:
            import PIL.Image  # noqa: F401 - to say so now and not when the first image is read
        except ImportError:
            raise ConfigurationError(
                "images are decoded by the library pillow, which is not installed here: pip install 'heron-sfl[images]'"
            ) from None
        return ImageRows(self.files, (shape[0], shape[1], shape[2]), resizes=self._resizes, whole=self._whole)


class ImageRows:
    """Images [n, channels, height, width]: bytes, or float32 from 0 to 255 where one has finer grey."""

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int], *, resizes: bool, whole: set[Path]) -> None:
        """`whole` are files that are known to be, and takes further ones."""
        self._files = files
        self._whole = whole
        self._image_shape = shape
        self._resizes = resizes

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._files), *self._image_shape

    def place(self, row: int) -> str:
        """Return which file a row is, for messages."""
        return str(self._files[row])

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        if not len(rows):
            return np.empty((0, *self._image_shape), np.uint8)
        return np.stack([self._decode(self._files[int(row)]) for row in rows])

    def check(self, rows: Int64Array) -> None:
        """Look at the head of every file and whether its end is there; only what is in doubt is decoded.

        Raises:
            DataError: one is no image, not of the run's size, or damaged so that it cannot be decoded.

        """
        from PIL import Image

        for path in (self._files[int(row)] for row in rows):
            if path in self._whole:
                continue
            try:
                with Image.open(path) as image:
                    # A PNG that does not say so in its head would have to be decoded to know how it is to be turned.
                    known = image.format != "PNG" or "exif" in image.info
                    size, on_its_side = image.size, known and _orientation(image) in _ON_ITS_SIDE
                    is_whole = _is_whole(image)
            except Exception as exc:
                raise _unreadable(path, exc) from exc
            self._check_size(path, size[::-1] if on_its_side else size)
            if not is_whole:
                self._decode(path)
            self._whole.add(path)

    def _decode(self, path: Path) -> npt.NDArray[Any]:
        from PIL import Image

        channels, height, width = self._image_shape
        try:
            with Image.open(path) as image:
                image.load()
                upright = _upright(image)
            self._check_size(path, upright.size)
            grey_or_colour = _grey(upright, path) if upright.mode[0] in "IF" else upright.convert(_MODES[channels])
            resized = grey_or_colour if upright.size == (width, height) else grey_or_colour.resize((width, height))
            pixels = np.asarray(resized)
        except DataError:
            raise
        # Damaged files make pillow raise almost anything: SyntaxError, ValueError, struct.error, errors of its own.
        except Exception as exc:
            raise _unreadable(path, exc) from exc
        if pixels.ndim == 3:
            return np.moveaxis(pixels, 2, 0)
        # Resampling swings beyond the ends of a range that is not that of bytes.
        return np.broadcast_to(np.clip(pixels, 0, 255), self._image_shape)

    def _check_size(self, path: Path, size: tuple[int, int]) -> None:
        _, height, width = self._image_shape
        if size != (width, height) and not self._resizes:
            raise DataError(
                f"{path} has {size[0]}x{size[1]} pixels, but the run expects {width}x{height} (width x height): "
                "scale the images, or write :resize behind the source"
            )


def _is_whole(image: Any) -> bool:
    """Whether the checksums of a PNG hold, or a JPEG ends behind its pixels; False where only decoding would tell. The image is of no use afterwards."""
    if image.format == "JPEG":
        # pillow has read to where the pixels begin; previews, which have ends of their own, come before that.
        last = b""
        while piece := image.fp.read(_BYTES_AT_ONCE):
            if _END_OF_JPEG in last + piece:
                return True
            last = piece[-1:]
        return False
    if image.format != "PNG":
        return False
    try:
        image.verify()
    except Exception:
        return False
    return True


def _grey(image: Any, path: Path) -> Any:
    """Return grey of more than 8 bits on the scale of bytes, with its fractions; pillow's own conversion makes everything above 255 white.

    Raises:
        DataError: the pixels have 32 bits, which have no range of their own.

    """
    from PIL import Image

    values = np.asarray(image)
    # Older versions of pillow read the 16 bits of a PNG into 32.
    if image.mode == "F" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise DataError(
            f"{path} has 32-bit pixels from {values.min():g} to {values.max():g}, and nobody knows which of them is white: "
            "save the images with 8 or 16 bits, or their numbers in an .npz"
        )
    return Image.fromarray(values.astype(np.float32) / _GREY_STEPS)


def _upright(image: Any) -> Any:
    """Return the picture as viewers show it: cameras store it as the sensor lies, and beside it how it is to be turned."""
    from PIL import Image

    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _orientation(image: Any) -> int:
    """Return what the tags say; 1, upright, where they are damaged, as viewers have it."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _unreadable(path: Path, exc: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image ({exc or type(exc).__name__}): replace or remove it")
