"""Fashion-MNIST from where Debian's package puts it, or from any folder with its four IDX files."""

from __future__ import annotations

import os
from pathlib import Path

from heron_common.data.file_rows import FileRows
from heron_common.data.idx import IDX_PREFIXES, open_idx_folder
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import DataSpecification

FASHION_MNIST_SPECIFICATION = DataSpecification("fashion-mnist", (1, 28, 28), num_classes=10, mean=72.94, standard_deviation=90.02)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist keeps the files."""


def open_fashion_mnist(argument: str) -> tuple[FileRows, FileRows]:
    """Open `train` (60000 samples) or `test` (10000), with `:FOLDER` behind it if the files lie elsewhere.

    Raises:
        ConfigurationError: another part is asked for.
        DataError: the files are missing, damaged, or of another size.

    """
    part, _, folder = argument.partition(":")
    if part not in IDX_PREFIXES:
        raise ConfigurationError(
            f"unknown part {part!r} of data source 'fashion-mnist': write fashion-mnist:train or fashion-mnist:test, with :FOLDER if needed"
        )
    images, labels = open_idx_folder(Path(folder) if folder else _installed_folder(part), part)
    if images.shape[1:] != FASHION_MNIST_SPECIFICATION.input_shape:
        raise DataError(
            f"fashion-mnist has images of 28x28, but these are {images.shape[2]}x{images.shape[3]}: read them as idx:FOLDER:{part} instead"
        )
    return images, labels


def _installed_folder(part: str) -> Path:
    own = os.environ.get("HERON_DATA_DIR")
    candidates = [*([Path(own) / "fashion-mnist"] if own else []), DEBIAN_FOLDER]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"fashion-mnist is not in {' or '.join(map(str, candidates))}: install Debian's package dataset-fashion-mnist, "
        f"or give its folder as fashion-mnist:{part}:FOLDER"
    )
