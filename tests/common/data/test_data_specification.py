"""The forms of --data-spec, and numbers normalised and labelled as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heron_common.data import SampleReader, open_source
from heron_common.data.specification import SPECIFICATION_FORMS, parse_specification
from heron_common.errors import ConfigurationError, DataError
from heron_common.protocol.wire import data_specification_from_proto, data_specification_to_proto
from heron_common.specification.data_specification import DataSpecification, Task

FORMS = {
    "text:64:next-token": {"input_shape": (64,), "num_classes": 0, "tokens": True, "task": Task.NEXT_TOKEN},
    "text:64:3": {"input_shape": (64,), "num_classes": 3, "tokens": True},
    "text:8:bad, good": {"input_shape": (8,), "num_classes": 2, "tokens": True, "class_names": ("bad", "good")},
    "text:8:regression:1": {"input_shape": (8,), "num_classes": 1, "tokens": True, "task": Task.REGRESSION},
    "3x4x4:cat,dog:2:3": {
        "input_shape": (3, 4, 4),
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "mean": 2.0,
        "standard_deviation": 3.0,
    },
    "5:regression:2:1": {"input_shape": (5,), "num_classes": 2, "task": Task.REGRESSION, "mean": 1.0},
    "3x4x4:10:1,2,3:4,5,6": {
        "input_shape": (3, 4, 4),
        "num_classes": 10,
        "channel_means": (1.0, 2.0, 3.0),
        "channel_deviations": (4.0, 5.0, 6.0),
    },
    "2x4:10:1,2": {"input_shape": (2, 4), "num_classes": 10, "channel_means": (1.0, 2.0), "channel_deviations": (1.0, 1.0)},
    "2x4:10:7:1,2": {"input_shape": (2, 4), "num_classes": 10, "channel_means": (7.0, 7.0), "channel_deviations": (1.0, 2.0)},
}


@pytest.mark.parametrize("text", FORMS)
def test_each_form_says_what_a_sample_and_its_label_are(text: str) -> None:
    specification = parse_specification(text)
    assert specification == DataSpecification(text, **FORMS[text])
    assert data_specification_from_proto(data_specification_to_proto(specification)) == specification


@pytest.mark.parametrize(
    "text",
    [
        "text", "text:8", "text:0:2", "text:8:1", "text:8:next-token:1", "text:8:2:0:1", "text:8:a,", "text:8:a,a", "text:8:regression",
        "text:8:regression:0", "text:8x8:2", "5:next-token", "5:regression", "5:regression:x", "5:a,,b", "3x4:10:1,2:1", "3x4:10:1,2,3:0,1,1",
        "3x4:10:1,2,nan", "3x4:10:", "5:a,b:0:1:2",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_every_form(text: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_specification(text)
    assert SPECIFICATION_FORMS in str(refusal.value)


def test_each_channel_is_normalised_by_its_own_numbers(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 255, (5, 3, 2, 2)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=raw, y=np.zeros(5, int))
    x, _ = SampleReader(open_source(f"npz:{tmp_path / 'd.npz'}"), parse_specification("3x2x2:2:10,20,30:2,4,8")).batch(np.array([4, 1]))
    for channel, (mean, deviation) in enumerate(((10, 2), (20, 4), (30, 8))):
        np.testing.assert_allclose(x[:, channel], (raw[[4, 1], channel].astype(np.float64) - mean) / deviation, rtol=1e-6)
    assert (x.dtype, x.flags.c_contiguous) == (np.float32, True)


@pytest.mark.parametrize("labels", [np.array([0.5, 2.0]), np.array([[0.5], [2.0]]), np.array([1, 2], np.int8)])
def test_numbers_to_predict_are_float32_rows(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3)), y=labels)
    _, y = SampleReader(open_source(f"npz:{tmp_path / 'd.npz'}"), parse_specification("3:regression:1")).batch(np.array([1, 0]))
    assert (y.dtype, y.shape) == (np.float32, (2, 1))
    assert y.ravel().tolist() == labels.ravel()[::-1].tolist()


@pytest.mark.parametrize(
    ("specification", "labels", "sentence"),
    [
        ("3:2", np.array([0.5, 1.0]), "expects a whole number as label"),
        ("3:2", np.array([[0, 1], [1, 0]]), "expects a whole number as label"),
        ("3:regression:2", np.array([0.5, 1.0]), "expects 2 numbers as label"),
        ("3:regression:1", np.array([0.5, np.nan]), "labels must be finite"),
        ("3:2", None, "has no array 'y'"),
    ],
)
def test_labels_of_another_task_are_refused(tmp_path: Path, specification: str, labels: np.ndarray | None, sentence: str) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3)), **({} if labels is None else {"y": labels}))
    with pytest.raises(DataError, match=sentence):
        SampleReader(open_source(f"npz:{tmp_path / 'd.npz'}"), parse_specification(specification)).batch(np.array([0, 1]))
