"""`heron leakage`: of a run's trained front and of first weights, of images and of text; what the report says of it; what is refused."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest

from heron_cli.cli import main
from heron_cli.cuts import run_cuts
from heron_cli.leakage import wire_dtype_of
from heron_common.exit_codes import ExitCode
from heron_common.numerics.wire_dtypes import WireDtype
from heron_server.leakage import decoder_network, inversion, tokens
from heron_server.leakage.decoder_network import TrainingSettings
from tests.harness.trained import TrainedRuns

FEW = ["--attacked", "6", "--own", "60", "--threads", "1"]
NARROW = ["--model", "cnn", "--model-options", "front_widths=2 front_strides=2", "--data-spec", "digits", "--data", "digits:train"]


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """How strong attacks are is tested where they lie; here they may be short."""
    monkeypatch.setattr(inversion, "STEPS", 30)
    monkeypatch.setattr(inversion, "PRIOR_WEIGHTS", (0.1, 1e-3))
    for module, name in ((decoder_network, "FLAT"), (tokens, "PLACES")):
        monkeypatch.setattr(module, name, TrainingSettings(steps=150, batch=32))


def test_the_front_of_a_run_is_attacked_and_the_report_shows_what_came_back(
    runs: TrainedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["cnn"]
    picture = tmp_path / "back.png"
    words = ["leakage", "--run-dir", str(run.directory), "--data", "digits:test", *FEW]
    assert main([*words, "--picture", str(picture)]) == ExitCode.OK
    printed = capsys.readouterr()
    assert picture.read_bytes().startswith(b"\x89PNG") and "white-box" in printed.err
    assert max(map(len, printed.out.splitlines())) < 100
    kept = json.loads((run.directory / "leakage.json").read_text())
    assert (kept["run_id"], kept["completed_rounds"], kept["attacked_rows"]) == (run.summary["run_id"], 2, 6)
    (cut,) = kept["cuts"]
    assert set(cut["guesses"]) == {"mean sample", "class mean"} and cut["activations"] == [2, 4, 4] and cut["attacker_rows"] == 60
    assert 0 < cut["recovered"] < 1 and 0 < cut["distance_correlation"] < 1 and cut["fisher_information_leakage"] is None
    assert cut["attacks"][cut["strongest"]]["mse"] == min(score["mse"] for score in cut["attacks"].values())
    for score in (*cut["guesses"].values(), *cut["attacks"].values()):
        assert f"{score['mse']:.5f}" in printed.out
    # What a run does not do is not kept as its own.
    assert main([*words, "--clip", "1", "--noise", "0.5", "--json"]) == ExitCode.OK
    defended = json.loads(capsys.readouterr().out)
    assert defended["cuts"][0]["recovered"] < cut["recovered"] and defended["cuts"][0]["fisher_information_leakage"] > 0
    assert json.loads((run.directory / "leakage.json").read_text()) == kept
    page = tmp_path / "report.html"
    assert main(["report", "--run-dir", str(run.directory), "--output", str(page)]) == ExitCode.OK
    shown = page.read_text()
    assert "What the cut gives away" in shown and f"removes {cut['recovered']:.0%} of the mean sample" in shown
    assert all(f"{score['psnr']:,.4g}" in shown for score in cut["attacks"].values())


def test_a_report_without_figures_has_no_such_section_and_damaged_ones_are_named(
    runs: TrainedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, page = runs["bert"].directory, tmp_path / "report.html"
    words = ["report", "--run-dir", str(run), "--output", str(page)]
    kept = run / "leakage.json"
    kept.unlink(missing_ok=True)
    assert main(words) == ExitCode.OK and "What the cut gives away" not in page.read_text()
    kept.write_text(json.dumps({"run_id": runs["bert"].summary["run_id"], "cuts": []}))
    assert main(words) != ExitCode.OK
    assert "leakage.json of the run does not hold what was expected" in capsys.readouterr().err
    kept.write_text("{")
    assert main(words) != ExitCode.OK and "leakage.json cannot be read" in capsys.readouterr().err
    kept.unlink()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_tokens_of_text_come_back(name: str, runs: TrainedRuns, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs[name]
    words = ["leakage", "--run-dir", str(run.directory), "--data", run.eval_data, "--attacked", "4", "--threads", "1", "--json"]
    if name == "bert":
        words += ["--own", "36"]
    assert main(words) == ExitCode.OK
    (cut,) = json.loads(capsys.readouterr().out)["cuts"]
    assert cut["recovered"] == max(cut["attacks"].values()) == cut["attacks"][cut["strongest"]]
    assert cut["recovered"] > 0.9 > 2 * cut["guesses"]["most frequent token"]
    (run.directory / "leakage.json").unlink()


def test_first_weights_are_attacked_at_every_place_or_at_those_that_are_named(
    runs: TrainedRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.folder)
    few = ["--data", "digits:test", *FEW, "--json"]
    user = ["leakage", "--model", "python:zoo_of_exports:gated", "--data-spec", "1x8x8:10"]
    assert main([*user, *few]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert len(found["cuts"]) == 1 and found["weights"] == "first weights of seed 0"
    resnet = ["leakage", "--model", "resnet", "--model-options", "width=4 groups=2 blocks=1,1", "--data-spec", "digits", "--cut", "layer1"]
    assert main([*resnet, *few]) == ExitCode.OK
    (cut,) = json.loads(capsys.readouterr().out)["cuts"]
    assert cut["cut"] == "layer1" and cut["recovered"] > 0.5


def test_cuts_have_a_column_of_what_comes_back(
    runs: TrainedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.folder)
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", x=generator.random((100, 1, 8, 8), np.float32), y=generator.integers(0, 10, 100))
    options = argparse.Namespace(
        model="python:zoo_of_exports:gated", model_options="", data_spec="1x8x8:10", leakage=f"npz:{tmp_path / 'few.npz'}"
    )
    assert run_cuts(options) == ExitCode.OK
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split()[-1] == "recovered" and re.fullmatch(r"\d+%", printed[3].split()[-1])
    assert max(map(len, printed)) < 100 and any("`heron leakage`" in line for line in printed)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            [*NARROW, "--attacked", "5000"],
            "an attacker needs 32 rows of its own beside the 5000 that are attacked, but 'digits:train' has 1437 in all",
        ),
        ([*NARROW, "--cut", "layer1"], "has no named places to cut"),
        ([*NARROW, "--noise", "0.3"], "--noise 0.3 is a share of the largest root mean square of a row: give it by --clip"),
        ([*NARROW, "--clip", "0"], "--clip: a number above 0 was expected, not '0'"),
        ([*NARROW, "--round", "1"], "--round names a checkpoint of a run, but there is no --run-dir"),
        ([*NARROW, "--picture", "x.txt"], "--picture ends in .png, .svg, .pdf, not in '.txt'"),
        ([*NARROW, "--wire-dtype", "int4"], "--wire-dtype"),
        (["--data", "digits:train"], "either --run-dir is needed, for a trained front, or --model and --data-spec"),
        (["--data", "digits:train", "--run-dir", "nowhere", "--cut", "x"], "--cut is the run's own where --run-dir is given"),
        (["--data", "digits:train", "--run-dir", "nowhere"], "nowhere"),
        (
            ["--model", "resnet", "--data-spec", "digits", "--data", "digits:train", "--cut", "layer9"],
            "cannot be cut at 'layer9': did you mean layer",
        ),
        (
            ["--model", "hf:x", "--data-spec", "text:8:2", "--data", "text:x", "--picture", "x.png"],
            "--picture shows images, but the model reads text",
        ),
        (
            ["--model", "python:m:f", "--data-spec", "a+b:2", "--data", "digits:train", "--picture", "x.png"],
            "samples here have the shape 2",
        ),
    ],
)
def test_what_cannot_be_attacked_is_said_in_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("words")
    assert main(["leakage", *words]) != ExitCode.OK
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_a_run_s_wire_dtype_is_its_option_s_or_its_own_preset_s() -> None:
    assert wire_dtype_of({"preset": "heron", "wire_dtype": None}) is WireDtype.FLOAT32
    assert wire_dtype_of({"preset": "heron", "wire_dtype": "int8"}) is WireDtype.INT8
    assert wire_dtype_of({"preset": "mine", "wire_dtype": None, "presets.mine": {"wire_dtype": "float16"}}) is WireDtype.FLOAT16
