"""A folder of images with a folder for each class, decoded one by one as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.assignment import DataSpecification
from heron_common.data.rows import RowReader
from heron_common.data.tokeniser import Tokeniser
from heron_common.errors import ConfigurationError, DataError
from heron_common.tensors import Int64Array

IMAGE_FOLDER_USAGE = "image-folder:PATH or image-folder:PATH:resize (a folder of .png or .jpeg for each class)"

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_MODES = {1: "L", 3: "RGB"}


class FolderLabels:
    """The class of each image: the place of its folder among their sorted names."""

    def __init__(self, names: Sequence[str], places: Int64Array, path: Path) -> None:
        self.names = tuple(names)
        self.path = path
        self._places = places

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows."""
        return self._places.shape

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return [n] places."""
        return self._places[rows]


class ImageFiles:
    """Image files; they have a form once the run says how many channels and pixels it expects."""

    def __init__(self, files: Sequence[Path], resizes: bool) -> None:
        self.files = files
        self._resizes = resizes

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
        return _ImageRows(self.files, (shape[0], shape[1], shape[2]), self._resizes)


class _ImageRows:
    """Images [n, channels, height, width] of bytes."""

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int], resizes: bool) -> None:
        self._files = files
        self._image_shape = shape
        self._resizes = resizes

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._files), *self._image_shape

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        result = np.empty((len(rows), *self._image_shape), np.uint8)
        for place, row in enumerate(rows):
            result[place] = self._decode(self._files[int(row)])
        return result

    def _decode(self, path: Path) -> npt.NDArray[Any]:
        from PIL import Image

        channels, height, width = self._image_shape
        try:
            with Image.open(path) as image:
                if image.size != (width, height) and not self._resizes:
                    raise DataError(
                        f"{path} has {image.size[0]}x{image.size[1]} pixels, but the run expects {width}x{height} (width x height): "
                        "scale the images, or write :resize behind the source"
                    )
                converted = image.convert(_MODES[channels])
                pixels = np.asarray(converted if converted.size == (width, height) else converted.resize((width, height)))
        # Damaged files make pillow raise SyntaxError and ValueError too; a bomb of pixels is an error of its own.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
            raise DataError(f"{path} cannot be read as an image ({exc}): replace or remove it") from exc
        return pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0)


def open_image_folder(argument: str) -> tuple[ImageFiles, FolderLabels]:
    """List the images of every class folder, in the order of their names.

    Raises:
        ConfigurationError: no path is given.
        DataError: there is no such folder, it has no folders, or one of them has no image.

    """
    path_text, _, last = argument.rpartition(":")
    resizes = last == "resize" and bool(path_text)
    path = Path(path_text if resizes else argument)
    if not argument:
        raise ConfigurationError(f"data source 'image-folder' needs a path: write {IMAGE_FOLDER_USAGE}")
    if not path.is_dir():
        raise DataError(f"{path} should be a folder with a folder for each class, but there is none: give its path")
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise DataError(
            f"{path} should hold a folder for each class, but holds none: put the images of each class into a folder of its name"
        )
    files: list[Path] = []
    places: list[int] = []
    for place, folder in enumerate(folders):
        images = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not images:
            raise DataError(f"class folder {folder} has no .png or .jpeg: put images there or remove it")
        files += images
        places += [place] * len(images)
    return ImageFiles(files, resizes), FolderLabels([folder.name for folder in folders], np.array(places, np.int64), path)
