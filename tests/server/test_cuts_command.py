"""`heron cuts`: every place with what it costs, the others counted with the reason, in lines that fit a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from heron_cli.cli import main
from heron_cli.cuts import costs, run_cuts
from heron_common.assignment import DataSpecification
from heron_common.errors import ConfigurationError
from heron_server.models.registry import build_model
from heron_server.models.survey import survey
from heron_server.programs.cost import client_cost
from tests.server.user_models import SOURCE


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
    data = DataSpecification("test", (1, 8, 8), 10)
    for family, options in ((f"{zoo}:resnet", {}), ("resnet", {"width": "8", "depth": "50", "blocks": ["1", "1"], "front_blocks": "2"})):
        named = {key: value for key, value in options.items() if key != "front_blocks"}
        for cost in costs(survey(family, options, data))[::3]:
            model = build_model(family, named, data, 0, cost.place)
            real, both = client_cost(model, with_head=False), client_cost(model, with_head=True)
            assert (cost.activations, cost.forward_flops) == (model.to_spec().cut.shape, real.forward_flops)
            assert (cost.front_weights, cost.head_weights) == (real.num_parameters, both.num_parameters - real.num_parameters)


def test_more_weights_and_larger_activations_need_more_memory() -> None:
    peaks = [cost.peak_bytes for cost in costs(survey("resnet", {}, DataSpecification("cifar", (3, 32, 32), 10)))]
    # Measured: 78 MB behind the first block, 85 behind the second stage, 124 behind the third.
    assert [round(peaks[i] / 1e6, -1) for i in (1, 4, 6)] == [80, 90, 120]


def test_a_family_without_names_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="no named places"):
        run_cuts(argparse.Namespace(model="cnn", model_options="", data_spec="digits"))
    with pytest.raises(ConfigurationError, match="number of its blocks"):
        run_cuts(argparse.Namespace(model="hf:gpt2", model_options="", data_spec="digits"))
    with pytest.raises(SystemExit):
        main(["cuts", "--help"])
    assert "--data-spec" in capsys.readouterr().out
