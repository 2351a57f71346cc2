"""`heron cuts`: every place with what it costs, the others counted with the reason, in lines that fit a terminal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import transformers

from heron_cli.cli import main
from heron_cli.cuts import costs, run_cuts
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.base import write_base
from heron_server.models.registry import build_model
from heron_server.models.survey import survey
from heron_server.programs.cost import client_cost
from tests.harness.transformers import write_configuration
from tests.server.models.token_models import SOURCE as TOKENS_SOURCE
from tests.server.models.user_models import SOURCE


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "zoo_of_cuts.py").write_text(SOURCE)
    return "python:zoo_of_cuts"


def lines(capsys: pytest.CaptureFixture[str], model: str, options: str, data: str) -> list[str]:
    assert run_cuts(argparse.Namespace(model=model, model_options=options, data_spec=data)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) < 100
    return printed


def test_places_stand_in_a_table_and_the_others_are_counted_with_a_reason(zoo: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys, f"{zoo}:resnet", "norm=frozen", "1x8x8:10")
    table = printed[2:12]
    assert [line.split()[0] for line in table[1:]] == [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1.0",
        "layer1",
        "layer2.0",
        "layer2",
        "avgpool",
    ]
    assert len({len(line) for line in table}) == 1
    assert table[4].split()[1:4] == ["4x4x4", "256", "44"]
    text = "\n".join(printed)
    assert "19  another tensor would have to cross as well, e.g. layer1.0.conv1" in text
    assert "4  called several times" in text and "1  no weights to train behind, e.g. fc" in text and "client peak    estimate" in text


def test_what_could_not_be_traced_is_named_with_the_line(zoo: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join("\n".join(lines(capsys, f"{zoo}:gated", "", "1x8x8:10")).split())
    assert "gated on 1x8x8:10: 1 place to cut" in text
    assert "2 the front would branch on the values of the data, e.g. second" in text
    assert "inner stays whole because it branches on the values of the data (zoo_of_cuts.py, line" in text


def test_a_model_that_normalises_by_the_batch_can_be_cut_and_its_memory_is_said_to_be_a_batchs(
    zoo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    users = lines(capsys, f"{zoo}:resnet", "norm=moving batch_norm=batch", "1x8x8:10")
    assert [line.split()[0] for line in users[3:12]][:2] == ["conv1", "bn1"] and "times the batch size" in "\n".join(users)
    assert "times the batch size" in "\n".join(lines(capsys, "resnet", "width=8 norm=batch blocks=1,1", "1x8x8:10"))
    assert "times the batch size" not in "\n".join(lines(capsys, f"{zoo}:resnet", "norm=frozen", "1x8x8:10"))


def test_costs_are_those_of_the_model_that_would_be_cut_there(zoo: str) -> None:
    data = DataSpecification("test", (1, 8, 8), num_classes=10)
    for family, options in ((f"{zoo}:resnet", {}), ("resnet", {"width": "8", "depth": "50", "blocks": ["1", "1"], "front_blocks": "2"})):
        named = {key: value for key, value in options.items() if key != "front_blocks"}
        for cost in costs(survey(family, options, data=data))[::3]:
            model = build_model(family, named, data=data, seed=0, cut=cost.place)
            real, both = client_cost(model, with_head=False), client_cost(model, with_head=True)
            assert (cost.activations, cost.forward_flops) == (model.to_spec().cut.shape, real.forward_flops)
            assert (cost.front_weights, cost.head_weights) == (real.num_parameters, both.num_parameters - real.num_parameters)


def test_more_weights_and_larger_activations_need_more_memory() -> None:
    found = {cost.place: cost for cost in costs(survey("resnet", {}, data=DataSpecification("cifar", (3, 32, 32), num_classes=10)))}
    # Peaks of whole client processes (VmHWM), in MB.
    measured = {"stem": 79.8, "layer1": 80.7, "layer2": 83.4, "layer3": 98.4, "layer4": 164.3}
    for place, peak in measured.items():
        assert found[place].peak_bytes / 1e6 == pytest.approx(peak, rel=0.05), place


def test_every_number_of_blocks_of_a_transformer_is_counted_as_the_run_would_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_configuration("gpt2", tmp_path)
    data, options = parse_specification("text:8:next-token"), {"head_blocks": "1", "rank": "2", "base": "int8"}
    found = survey(f"hf:{folder}", options, data=data)
    counted = costs(found)
    assert [cost.place for cost in counted] == ["0", "1", "2"]
    for cost in counted:
        model = build_model(f"hf:{folder}", {**options, "weights": "random"}, data=data, seed=0, cut=cost.place)
        spec, front = model.to_spec(), client_cost(model, with_head=False)
        assert (cost.activations, cost.forward_flops, cost.front_weights) == (spec.cut.shape, front.forward_flops, front.num_parameters)
        assert cost.head_weights == sum(tensor.num_elements for tensor in spec.auxiliary_head)
        reference = write_base(model.frozen, tmp_path / "blobs")
        assert cost.memory.base_bytes == reference.size_bytes > cost.frozen_bytes > 0
    monkeypatch.chdir(tmp_path)
    text = "\n".join(lines(capsys, f"hf:{folder.name}", "head_blocks=2", "text:8:next-token"))
    assert "2 places to cut" in text and "1  fewer blocks behind than head_blocks asks for, e.g. 2" in text and "mapped" in text


def test_the_estimate_is_what_whole_clients_of_gpt2_took(tmp_path: Path) -> None:
    transformers.GPT2Config().save_pretrained(tmp_path)
    measured = json.loads((Path(__file__).parents[2] / "docs/results/gpt2.json").read_text())["GPT-2-small"]["rows"]
    for base in ("float32", "bfloat16", "int8"):
        (row,) = [row for row in measured if row["runtime"] == f"heron-client, {base} base" and row["step"] == "heron"]
        found = survey(f"hf:{tmp_path}", {"head_blocks": "1", "base": base}, data=parse_specification("text:128:next-token"))
        cost = costs(dataclasses.replace(found, places=("3",)))[0]
        assert cost.peak_bytes == pytest.approx(row["peak_memory_bytes"], rel=0.05), base
        assert (cost.memory.base_bytes, cost.front_weights) == (row["base_bytes"], row["trained_weights"])


def test_frozen_weights_and_tokens_of_a_users_model_count(zoo: str, tmp_path: Path) -> None:
    (tmp_path / "zoo_of_token_cuts.py").write_text(TOKENS_SOURCE)
    data, options = parse_specification("text:6:next-token"), {"vocabulary_size": "30000"}
    trained, frozen = (
        {cost.place: cost for cost in costs(survey(f"python:zoo_of_token_cuts:{name}", options, data=data))}["blocks.0"]
        for name in ("language", "frozen_and_tied")
    )
    table = 30_000 * 8
    assert trained.front_weights - frozen.front_weights == table and (trained.frozen_bytes, frozen.frozen_bytes) == (0, 4 * table)
    # Two copies of what is trained, one of what is mapped.
    assert trained.peak_bytes - frozen.peak_bytes == pytest.approx(1.05 * 4 * table, rel=0.01)


def test_a_family_without_names_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="no named places"):
        run_cuts(argparse.Namespace(model="cnn", model_options="", data_spec="digits"))
    with pytest.raises(ConfigurationError, match="reads text"):
        run_cuts(argparse.Namespace(model="hf:gpt2", model_options="", data_spec="digits"))
    with pytest.raises(SystemExit):
        main(["cuts", "--help"])
    assert "--data-spec" in capsys.readouterr().out
