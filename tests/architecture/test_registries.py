"""What may be added: of each kind one registry, and one test that every entry passes, also one that is not written yet (docs/extend.md)."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heron_common.algorithm import presets
from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.algorithm.algorithm import DirectionScale
from heron_common.algorithm.plan import ClientOptimiser, Estimator, Objective, UpdateEncoding
from heron_common.algorithm.plan_checks import algorithm_mistakes, plan_mistakes
from heron_common.algorithm.plan_counts import forward_equivalents
from heron_common.algorithm.presets import PRESETS
from heron_common.data import sources
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.image_files import ImageFiles
from heron_common.data.partition import Shard, parse_partition
from heron_common.data.sources import SOURCES, open_source
from heron_common.errors import ConfigurationError, DataError
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.wire_dtypes import WireDtype, check_row_values, decode_rows, encode_rows, row_bytes
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.wire import plan_from_proto, plan_to_proto
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import read_options
from heron_server.models import registry
from heron_server.models.registry import FAMILIES, build_model
from heron_server.models.split_model import flat_parameters, predict
from heron_server.programs.publish import complete_algorithm, scales_of
from heron_server.training.aggregation import aggregate
from tests.client.models import tiny_model, tiny_model_of
from tests.client.rounds import Network, run_round, small_plan
from tests.harness.sources import ROOT
from tests.server.running_server import SOURCE

PAGE = (ROOT / "docs/extend.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete_for_a_model_crosses_the_wire_and_is_told_to_users(name: str) -> None:
    algorithm, _ = complete_algorithm(PRESETS[name], tiny_model(2).model)
    assert algorithm_mistakes(algorithm) == [] and algorithm.plan.preset == name
    for round_index in (0, 1, 9):
        plan = algorithm.plan_for_round(round_index, 10)
        assert plan_from_proto(plan_to_proto(plan)) == plan
    assert read_options(ServerConfig, SOURCE, arguments=["--preset", name], environment={}).algorithm == PRESETS[name]
    assert f"`{name}`" in (ROOT / "docs/choose-an-algorithm.md").read_text(encoding="utf-8")


ESTIMATORS: list[Any] = [
    {"estimator": Estimator.NONE, "objective": Objective.NONE},
    # A gradient's program takes long to export.
    *(
        pytest.param(
            {"estimator": member, "optimiser": ClientOptimiser.SGD}, marks=[pytest.mark.slow] * (member is not Estimator.ZEROTH_ORDER)
        )
        for member in Estimator
        if member is not Estimator.NONE
    ),
    *({"difference": member} for member in FiniteDifference),
    *({"distribution": member} for member in DirectionDistribution),
    *({"optimiser": member} for member in ClientOptimiser),
]


@pytest.mark.parametrize("changes", ESTIMATORS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_an_estimator_trains_a_front_by_the_passes_that_its_plan_counts(changes: dict[str, Any]) -> None:
    plan = small_plan("heron", update_encoding=UpdateEncoding.DENSE, learning_rate=0.05, **changes)
    tiny = tiny_model_of(plan)
    start = tiny.random_weights(1)
    first, second = (run_round(tiny, plan, Network(), start) for _ in range(2))
    assert first.meter.forward_equivalents == forward_equivalents(plan)
    assert np.array_equal(first.theta, second.theta) and bool(np.isfinite(first.theta).all())
    assert np.array_equal(first.theta, start) == (not plan.trains_front)
    assert plan_mistakes(plan) == [] and plan_from_proto(plan_to_proto(plan)) == plan


@pytest.mark.parametrize("scale", DirectionScale)
def test_a_direction_scale_is_one_number_for_each_trained_tensor(scale: DirectionScale) -> None:
    model = tiny_model(2).model
    scales = scales_of(model, PRESETS["heron"].with_options({"direction_scale": scale}))
    assert scales.shape == (len(model.to_spec().client_model),) and bool((scales >= 0).all()) and scales.max() > 0


@pytest.mark.parametrize("rule", AggregationRule)
def test_an_aggregation_rule_keeps_what_all_agree_on_and_heeds_no_order(rule: AggregationRule) -> None:
    generator = np.random.default_rng(0)
    reference = generator.standard_normal(50).astype(np.float32)
    alike, weights = reference + np.float32(0.25), np.full(7, 1 / 7)
    np.testing.assert_allclose(aggregate(rule, [alike] * 7, weights=weights, reference=reference), alike, rtol=1e-6)
    differing = [reference + generator.standard_normal(50).astype(np.float32) for _ in range(7)]
    result = aggregate(rule, differing, weights=weights, reference=reference)
    assert (result.shape, result.dtype) == (reference.shape, np.float32)
    np.testing.assert_allclose(aggregate(rule, differing[::-1], weights=weights, reference=reference), result, atol=1e-6)
    assert bool((result >= np.min(differing, axis=0) - 1e-6).all() and (result <= np.max(differing, axis=0) + 1e-6).all())
    assert aggregate(rule, [alike], weights=np.ones(1), reference=reference).shape == reference.shape, "a cohort may shrink to one"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_family_is_cut_in_two_that_together_are_one_and_the_same_from_a_seed(family: str) -> None:
    one, again, other = (build_model(family, {}, data=DIGITS_SPECIFICATION, seed=seed) for seed in (1, 1, 2))
    weights = flat_parameters(one.front)
    assert (
        weights.size and np.array_equal(weights, flat_parameters(again.front)) and not np.array_equal(weights, flat_parameters(other.front))
    )
    assert one.name == again.name
    spec, x = one.to_spec(), torch.from_numpy(one.random_batch(4, np.random.default_rng(0))[0])
    with torch.no_grad():
        z = one.front.eval()(x)
        assert tuple(z.shape[1:]) == spec.cut.shape
        assert one.auxiliary_head.eval()(z).shape == one.back.eval()(z).shape == (4, DIGITS_SPECIFICATION.num_classes)
        torch.testing.assert_close(predict(one.back, z, None), predict(again.back.eval(), again.front.eval()(x), None))
    with pytest.raises(ConfigurationError, match=r"colour.*options are "):
        build_model(family, {"colour": "red"}, data=DIGITS_SPECIFICATION, seed=1)


def npz(folder: Path) -> str:
    np.savez(folder / "a.npz", x=np.ones((6, 2), np.float32), y=np.arange(6))
    return f"npz:{folder / 'a.npz'}"


def idx_files(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (6, 28, 28)) + bytes(6 * 28 * 28)
    )
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x06" + bytes(range(6)))


def idx(folder: Path) -> str:
    idx_files(folder)
    return f"idx:{folder}:test"


def fashion_mnist(folder: Path) -> str:
    idx_files(folder)
    return f"fashion-mnist:test:{folder}"


def cifar_10(folder: Path) -> str:
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": np.zeros((6, 3072), np.uint8), b"labels": list(range(6))}, 4))
    return f"cifar-10:test:{folder}"


def csv(folder: Path) -> str:
    (folder / "a.csv").write_text("a,b\n" + "".join(f"{row},{row % 3}\n" for row in range(6)))
    return f"csv:{folder / 'a.csv'}:a:b"


def jsonl(folder: Path) -> str:
    (folder / "a.jsonl").write_text("".join(f'{{"a": "text {row}", "b": {row % 3}}}\n' for row in range(6)))
    return f"jsonl:{folder / 'a.jsonl'}:a:b"


def text(folder: Path) -> str:
    (folder / "a.txt").write_text("once upon a time")
    return f"text:{folder / 'a.txt'}"


def image_folder(folder: Path) -> str:
    for label in "012":
        (folder / label).mkdir()
        for number in range(2):
            Image.new("L", (4, 4)).save(folder / label / f"{number}.png")
    return f"image-folder:{folder}"


EXAMPLES: dict[str, Callable[[Path], str]] = {
    "digits": lambda _: "digits:test",
    "npz": npz,
    "fashion-mnist": fashion_mnist,
    "cifar-10": cifar_10,
    "idx": idx,
    "csv": csv,
    "jsonl": jsonl,
    "text": text,
    "image-folder": image_folder,
    "python": lambda _: "python:tests.architecture.test_registries:six_samples",
}
"""Of each kind of source one of six samples or more; a new kind needs one."""


def six_samples() -> tuple[np.ndarray, np.ndarray]:
    return np.ones((6, 2), np.float32), np.arange(6) % 3


@pytest.mark.parametrize("kind", SOURCES)
def test_a_data_source_is_shared_out_whole_read_by_rows_and_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    usage, _ = SOURCES[kind]
    assert usage.startswith(f"{kind}:")
    source = open_source(EXAMPLES[kind](tmp_path))
    if source.is_counted:
        shards = [source.shard(parse_partition("iid"), Shard(index, 2)) for index in range(2)]
        assert sorted(row for shard in shards for row in shard.rows) == list(range(source.num_examples))
        assert source.num_examples >= 6 and source.inputs.shape[0] == source.labels.shape[0]
        # Images have no form before a run says which.
        readable = source.labels if isinstance(source.inputs, ImageFiles) else source.inputs
        backwards = readable.read(np.array([1, 0]))
        assert len(backwards) == 2 and np.array_equal(backwards[::-1], readable.read(np.array([0, 1])))
    with pytest.raises((ConfigurationError, DataError)) as refusal:
        open_source(f"{kind}:nowhere")
    assert "nowhere" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", WireDtype)
def test_a_wire_dtype_keeps_rows_nearly_says_its_bytes_and_shows_what_is_not_finite(dtype: WireDtype) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    data = encode_rows(rows, dtype, noise_seed=None, first_row=0)
    assert len(data) == 5 * row_bytes(dtype, 12)
    assert np.abs(decode_rows(data, dtype, (5, 12)) - rows).max() <= 0.02 * np.abs(rows).max()
    assert [bytes(encode_rows(row[np.newaxis], dtype, noise_seed=None, first_row=place)) for place, row in enumerate(rows)] == [
        bytes(data[place * row_bytes(dtype, 12) : (place + 1) * row_bytes(dtype, 12)]) for place in range(5)
    ]
    assert check_row_values(data, dtype, elements_per_row=12, offset_in_tensor=0)
    for bad in (math.nan, math.inf, -math.inf):
        broken = rows.copy()
        broken[3, 4] = bad
        assert not check_row_values(
            encode_rows(broken, dtype, noise_seed=None, first_row=0), dtype, elements_per_row=12, offset_in_tensor=0
        )
    plan = small_plan("heron", wire_dtype=dtype, update_encoding=UpdateEncoding.DENSE)
    assert plan_from_proto(plan_to_proto(plan)).wire_dtype is dtype


def test_the_page_names_every_registry_and_where_it_is() -> None:
    of_estimators = (Estimator, FiniteDifference, DirectionDistribution, ClientOptimiser, DirectionScale)
    for kind in (*of_estimators, AggregationRule, WireDtype):
        assert f"`{kind.__name__}`" in PAGE and f"{kind.__module__.replace('.', '/')}.py" in PAGE
    for name, module in (("PRESETS", presets), ("FAMILIES", registry), ("SOURCES", sources)):
        assert f"`{name}`" in PAGE and f"{module.__name__.replace('.', '/')}.py" in PAGE and hasattr(module, name)
