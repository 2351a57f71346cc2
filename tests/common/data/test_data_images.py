"""Folders of images: classes by folder, channels and size by the run, every file that does not fit refused by name."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heron_common.data import SampleReader, open_source
from heron_common.data.check import check_samples, check_source
from heron_common.data.inspection import inspect_source, page
from heron_common.data.partition import Shard, parse_partition
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, DataError

GREY = parse_specification("1x2x3:cat,dog")
COLOUR = parse_specification("3x2x3:cat,dog")
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


def test_images_have_channels_first_and_the_class_of_their_folder_as_label(folder: Path) -> None:
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


def numbered(folder: Path, *names: str) -> str:
    """Write a folder for each name, with an image as grey as the folder's number; returns the source's name."""
    for place, name in enumerate(names):
        (folder / name).mkdir()
        Image.new("L", (2, 2), int(name) if name.isdigit() else place).save(folder / name / "a.png")
    return f"image-folder:{folder}"


def test_a_folder_named_by_a_number_is_that_class_however_folders_are_sorted(tmp_path: Path) -> None:
    name = numbered(tmp_path, *map(str, range(12)))
    x, y = SampleReader(open_source(name), parse_specification("1x2x2:12")).batch(np.arange(12))
    assert y.tolist() == x[:, 0, 0, 0].astype(int).tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_device_that_lacks_a_class_does_not_move_the_others(tmp_path: Path) -> None:
    assert check_source(open_source(numbered(tmp_path, "7", "03")), parse_specification("1x2x2:10")).labels(np.arange(2)).tolist() == [3, 7]


@pytest.mark.parametrize(
    ("names", "specification", "sentence"),
    [
        (
            ("0", "cat"),
            "1x2x2:2",
            "{path}/cat is no number from 0 to 1, and the run's classes have no names: name them in the server's --data-spec",
        ),
        (("0", "+1"), "1x2x2:2", "{path}/+1 is no number from 0 to 1"),
        (("0", "1_0"), "1x2x2:20", "{path}/1_0 is no number from 0 to 19"),
        (("1", "2"), "1x2x2:2", "labels from 0 to 1, but 'image-folder:{path}' has 2 (class folder {path}/2)"),
        (("1", "01"), "1x2x2:2", "class folders '01' and '1' of {path} are both class 1"),
        (("0", "1"), "1x2x2:2,1", "{path}/0 is none of the run's classes 2, 1"),
        (("0", "1"), "1x2x2:regression:1", "has classes, the names of its folders"),
    ],
)
def test_a_folder_that_is_no_class_is_refused_by_name(tmp_path: Path, names: tuple[str, ...], specification: str, sentence: str) -> None:
    source = open_source(numbered(tmp_path, *names))
    with pytest.raises(DataError) as refusal:
        check_source(source, parse_specification(specification))
    assert sentence.format(path=tmp_path) in str(refusal.value)


def test_sixteen_bits_of_grey_keep_their_range_and_their_fractions(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    (tmp_path / "0").mkdir()
    Image.fromarray(ramp).save(tmp_path / "0" / "ramp.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(tmp_path / "0" / "same.png")
    source = open_source(f"image-folder:{tmp_path}")
    x, _ = SampleReader(source, parse_specification("1x4x4:2")).batch(np.arange(2))
    assert x[0].reshape(-1).tolist() == x[1].reshape(-1).tolist() == list(range(0, 256, 17))
    colour, _ = SampleReader(source, parse_specification("3x4x4:2")).batch(np.array([0]))
    assert np.array_equal(colour[0], np.repeat(x[0], 3, axis=0))
    # Twelve bits in a file of sixteen are dark, but not black.
    Image.fromarray((ramp // 16).astype(np.uint16)).save(tmp_path / "0" / "ramp.png")
    dark, _ = SampleReader(source, parse_specification("1x4x4:2")).batch(np.array([0]))
    np.testing.assert_allclose(dark.reshape(-1), (ramp.reshape(-1) // 16) / 257, rtol=1e-6)


def test_sixteen_bits_of_grey_may_be_resized(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    Image.fromarray(np.kron([[0, 65535], [65535, 0]], np.ones((8, 8))).astype(np.uint16)).save(tmp_path / "0" / "x.png")
    x, _ = SampleReader(open_source(f"image-folder:{tmp_path}:resize"), parse_specification("1x8x8:2")).batch(np.array([0]))
    assert (x.min(), x.max()) == (0, 255) and x[0, 0, 0, 0] == 0 and x[0, 0, 0, -1] == 255


@pytest.mark.parametrize(
    "values", [np.linspace(0, 1, 4, dtype=np.float32), np.array([0, 1, 2, 1 << 20], np.int32), np.array([-1, 0, 1, 2], np.int32)]
)
def test_pixels_of_32_bits_are_refused_by_name(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "0").mkdir()
    Image.fromarray(values.reshape(2, 2)).save(tmp_path / "0" / "x.png", "TIFF")
    with pytest.raises(DataError, match=f"{tmp_path}/0/x.png has 32-bit pixels .* nobody knows which of them is white"):
        SampleReader(open_source(f"image-folder:{tmp_path}"), parse_specification("1x2x2:2")).batch(np.array([0]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_is_turned_as_its_camera_says_before_its_size_is_compared(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.arange(0, 256, 8, dtype=np.uint8).reshape(8, 4)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
    }
    back |= {6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(upright) if orientation == 1 else Image.fromarray(upright).transpose(back[orientation])
    (tmp_path / "0").mkdir()
    stored.save(tmp_path / "0" / f"x.{suffix}", exif=exif, quality=100)
    x, _ = check_source(open_source(f"image-folder:{tmp_path}"), parse_specification("1x8x4:2")).batch(np.array([0]))
    np.testing.assert_allclose(x[0, 0], upright, atol=3)


def test_other_tags_may_be_wrong_and_damaged_ones_say_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    good = exif.tobytes()
    (tmp_path / "0").mkdir()
    for place, tags in enumerate((good, good.replace(b"\x0e\x01\x02\x00", b"\x0e\x01\xff\x00"), b"Exif\0\0", b"Exif\0\0junkjunk")):
        Image.new("L", (4, 8) if place < 2 else (8, 4)).save(tmp_path / "0" / f"{place}.jpg", exif=tags)
    assert check_source(open_source(f"image-folder:{tmp_path}"), parse_specification("1x4x8:2")).batch(np.arange(4))[0].shape == (
        4,
        1,
        4,
        8,
    )


def test_a_picture_that_has_the_size_only_lying_on_its_side_is_refused_before_training(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "0").mkdir()
    Image.new("L", (4, 8)).save(tmp_path / "0" / "x.jpg", exif=exif)
    with pytest.raises(DataError, match="has 8x4 pixels, but the run expects 4x8"):
        check_source(open_source(f"image-folder:{tmp_path}"), parse_specification("1x8x4:2"))


def test_what_is_left_out_of_a_folder_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cat" / "sub" / "deep").mkdir(parents=True)
    for file in ("cat/a.png", "cat/sub/b.png", "cat/sub/deep/c.png", "cat/c.bmp", "cat/e.BMP", "cat/d.webp", "lost.png"):
        Image.new("L", (3, 2), 9).save(tmp_path / file)
    (tmp_path / "cat" / "readme").write_text("no image")
    for hidden in ("cat/._a.png", ".DS_Store"):
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    said = "9 (1 .BMP, 1 .bmp, 1 .webp, 1 beside the class folders, 2 hidden, 2 in folders within class folders, 1 without a suffix)"
    with caplog.at_level(logging.WARNING):
        source = open_source(f"image-folder:{tmp_path}")
    assert [record.getMessage() for record in caplog.records] == [f"files of the folder are left out: {said}"]
    found = inspect_source(source, GREY, None)
    assert (found.num_examples, found.num_differences) == (1, 0)
    assert f"left out      {said}" in page(found, 0)


def test_hidden_files_alone_are_no_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "cat" / "notes.txt").unlink()
    (folder / "cat" / ".DS_Store").write_text("")
    with caplog.at_level(logging.WARNING):
        assert open_source(f"image-folder:{folder}").num_examples == 3
    assert not caplog.records


def test_a_file_that_is_no_image_is_found_before_training(folder: Path) -> None:
    (folder / "dog" / "z.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"z\.png cannot be read as an image"):
        check_source(open_source(f"image-folder:{folder}"), GREY)


def damaged(path: Path, how: str) -> None:
    """Cut a file in half, or change a byte of its pixels, which the checksums of a PNG tell."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == "cut" else content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


@pytest.mark.parametrize(("suffix", "how"), [("png", "cut"), ("png", "flipped"), ("jpeg", "cut"), ("jpeg", "preview"), ("gif", "cut")])
def test_a_damaged_image_is_found_before_training_and_whole_ones_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, how: str
) -> None:
    (tmp_path / "cat").mkdir()
    specification = parse_specification("1x64x64:cat,dog")
    for name in ("a.png", "b.jpeg"):
        Image.fromarray(NOISE).save(tmp_path / "cat" / name, exif=small_exif())
    last = tmp_path / "cat" / ("z.png" if suffix == "gif" else f"z.{suffix}")
    Image.fromarray(NOISE).save(last, suffix, **({"exif": small_exif(preview=True)} if how == "preview" else {}))
    source = open_source(f"image-folder:{tmp_path}")
    if suffix != "gif":
        with monkeypatch.context() as patch:
            patch.setattr("heron_common.data.image_files.ImageRows._decode", None)
            check_source(source, specification)
    damaged(last, "cut" if how == "preview" else how)
    with pytest.raises(DataError, match=rf"{last.name} cannot be read as an image"):
        check_source(open_source(f"image-folder:{tmp_path}"), specification)
    if suffix != "gif":
        # Who joins again does not read everything again; what goes bad meanwhile is named when it is drawn.
        check_source(source, specification)
    with pytest.raises(DataError, match=rf"{last.name} cannot be read as an image"):
        check_samples(source, specification)


def small_exif(preview: bool = False) -> Image.Exif:
    """Tags as cameras write them; a preview is a whole JPEG within the file."""
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    if preview:
        buffer = io.BytesIO()
        Image.fromarray(NOISE[:8, :8]).save(buffer, "JPEG")
        exif[0x9286] = buffer.getvalue()
    return exif


def test_a_truncated_image_is_counted_by_an_inspection(folder: Path) -> None:
    whole = (folder / "dog" / "b.png").read_bytes()
    (folder / "dog" / "b.png").write_bytes(whole[: len(whole) // 2])
    found = inspect_source(open_source(f"image-folder:{folder}"), GREY, None)
    assert found.num_differences == 1 and "b.png cannot be read as an image" in "\n".join(page(found, 0))


def test_without_the_library_the_sentence_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'heron-sfl\[images\]'"):
        SampleReader(open_source(f"image-folder:{folder}"), GREY)
