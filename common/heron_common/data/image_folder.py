"""A folder of images with a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from heron_common.data.folder_labels import FolderLabels
from heron_common.data.image_files import ImageFiles
from heron_common.data.left_out import LeftOut, listed
from heron_common.errors import ConfigurationError, DataError

IMAGE_FOLDER_USAGE = "image-folder:PATH or image-folder:PATH:resize (a folder of .png or .jpeg for each class)"

_SUFFIXES = {".png", ".jpg", ".jpeg"}


def open_image_folder(argument: str) -> tuple[ImageFiles, FolderLabels]:
    """List the images of every class folder, in the order of their names, and count what else is there.

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
    left_out = LeftOut()
    folders = _class_folders(path, left_out)
    files: list[Path] = []
    places: list[int] = []
    for place, folder in enumerate(folders):
        images = _images(folder, left_out)
        if not images:
            raise DataError(f"class folder {folder} has no .png or .jpeg: put images there or remove it")
        files += images
        places += [place] * len(images)
    return ImageFiles(files, resizes, left_out), FolderLabels([folder.name for folder in folders], np.array(places, np.int64), path)


def _class_folders(path: Path, left_out: LeftOut) -> list[Path]:
    folders = []
    for child in listed(path):
        if child.is_dir() and not child.name.startswith("."):
            folders.append(child)
        else:
            left_out.add(child, "beside the class folders")
    if not folders:
        raise DataError(
            f"{path} should hold a folder for each class, but holds none: put the images of each class into a folder of its name"
        )
    return folders


def _images(folder: Path, left_out: LeftOut) -> list[Path]:
    images = []
    for child in listed(folder):
        if child.is_dir():
            left_out.add(child, "in folders within class folders")
        elif child.name.startswith(".") or child.suffix.lower() not in _SUFFIXES:
            left_out.add_kind(child)
        else:
            images.append(child)
    return images
