"""Folders of images: classes by folder, channels and size by the run, every file that does not fit refused by name."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heron_common.data import SampleReader, open_source
from heron_common.data.check import check_source
from heron_common.data.partition import Shard, parse_partition
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, DataError

GREY = parse_specification("1x2x3:2")
COLOUR = parse_specification("3x2x3:2")
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, file in (("dog", "b.png"), ("dog", "a.PNG"), ("cat", "c.png")):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(PIXELS + len(file + name) + ord(file[0])).save(tmp_path / name / file, "PNG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def pixels_of(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def test_images_have_channels_first_and_the_place_of_their_folder_as_label(folder: Path) -> None:
    x, y = check_source(open_source(f"image-folder:{folder}"), COLOUR).batch(np.arange(3))
    assert (x.dtype, x.shape, y.tolist()) == (np.float32, (3, 3, 2, 3), [0, 1, 1])
    for place, name in enumerate(("cat/c.png", "dog/a.PNG", "dog/b.png")):
        assert np.array_equal(np.moveaxis(x[place], 0, 2), pixels_of(folder / name, "RGB"))


def test_the_run_says_whether_images_are_grey(folder: Path) -> None:
    x, _ = SampleReader(open_source(f"image-folder:{folder}"), GREY).batch(np.array([0]))
    assert np.array_equal(x[0, 0], pixels_of(folder / "cat" / "c.png", "L"))


def test_class_names_of_the_run_decide_over_the_order_of_folders(folder: Path) -> None:
    reader = check_source(open_source(f"image-folder:{folder}"), parse_specification("1x2x3:dog,bird,cat"))
    assert reader.labels(np.arange(3)).tolist() == [2, 0, 0]
    with pytest.raises(DataError, match=f"class folder {folder / 'dog'} is none of the run's classes cat, bird"):
        SampleReader(open_source(f"image-folder:{folder}"), parse_specification("1x2x3:cat,bird"))


def test_another_size_is_refused_unless_it_may_be_changed(folder: Path) -> None:
    specification = dataclasses.replace(GREY, input_shape=(1, 4, 5))
    reader = SampleReader(open_source(f"image-folder:{folder}"), specification)
    with pytest.raises(DataError, match=f"{folder / 'cat' / 'c.png'} has 3x2 pixels, but the run expects 5x4"):
        reader.batch(np.array([0]))
    x, _ = SampleReader(open_source(f"image-folder:{folder}:resize"), specification).batch(np.array([0]))
    assert x.shape == (1, 1, 4, 5)


def test_jpeg_is_read_too(folder: Path) -> None:
    Image.fromarray(PIXELS).save(folder / "cat" / "d.jpeg")
    assert SampleReader(open_source(f"image-folder:{folder}"), GREY).batch(np.array([1]))[0].shape == (1, 1, 2, 3)


def test_a_partition_goes_by_folder(folder: Path) -> None:
    shards = [open_source(f"image-folder:{folder}").shard(parse_partition("labels:1"), Shard(index, 2)) for index in range(2)]
    assert sorted(row for shard in shards for row in shard.rows) == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_damaged_image_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "dog" / "z.png").write_bytes(content)
    reader = SampleReader(open_source(f"image-folder:{folder}"), GREY)
    with pytest.raises(DataError, match=r"z\.png cannot be read as an image"):
        reader.batch(np.array([3]))


def test_folders_without_images_or_classes_are_refused_by_name(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=f"class folder {folder / 'empty'} has no .png or .jpeg"):
        open_source(f"image-folder:{folder}")
    with pytest.raises(DataError, match="should hold a folder for each class, but holds none"):
        open_source(f"image-folder:{folder / 'empty'}")
    with pytest.raises(DataError, match="but there is none"):
        open_source(f"image-folder:{folder / 'nowhere'}")
    with pytest.raises(ConfigurationError, match="needs a path"):
        open_source("image-folder:")


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [("6:2", "but the run expects [6]"), ("text:6:2", "holds images"), ("2x2x3:2", "but the run expects [2, 2, 3]")],
)
def test_a_run_of_something_else_is_refused(folder: Path, specification: str, sentence: str) -> None:
    with pytest.raises(DataError) as refusal:
        SampleReader(open_source(f"image-folder:{folder}"), parse_specification(specification))
    assert sentence in str(refusal.value)


def test_more_folders_than_classes_are_refused(folder: Path) -> None:
    (folder / "bird").mkdir()
    Image.fromarray(PIXELS).save(folder / "bird" / "x.png")
    with pytest.raises(DataError, match=r"labels from 0 to 1, but .* has 2"):
        check_source(open_source(f"image-folder:{folder}"), GREY)


def test_without_the_library_the_sentence_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'heron-sfl\[images\]'"):
        SampleReader(open_source(f"image-folder:{folder}"), GREY)
