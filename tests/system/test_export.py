"""`heron export`: a trained model is opened where HERON is not installed, and is as good there as the run said; and what is refused."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from heron_cli.cli import main
from heron_common.errors import CheckpointError, ConfigurationError, HeronError, ParityError, ProgramError, StorageError
from heron_common.exit_codes import ExitCode
from heron_common.files.atomic import share
from heron_server.exports import delivery, formats
from heron_server.exports.delivery import ExportFormat, deliver
from heron_server.exports.trained_model import load_trained
from heron_server.exports.vouching import Vouched
from tests.harness.trained import OPTIONS, WORDS, TrainedRuns
from tests.system import plain_reader

SUFFIX = {"torch": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors", "hf": "", "peft": "-adapters"}


def export(runs: TrainedRuns, name: str, kind: str) -> Path:
    """Run the command in this process and return what it made."""
    output = runs.folder / "out" / f"{name}{SUFFIX[kind]}"
    words = ["--run-dir", str(runs[name].directory), "--format", "hf" if kind == "peft" else kind, "--output", str(output)]
    words += ["--model", OPTIONS[name]["model"]] if name in ("user", "language") else []
    assert main(["export", *words, *(["--keep-adapters"] if kind == "peft" else [])]) == ExitCode.OK
    return output


def scored(cases: list[tuple[str, Path, Path]], folder: Path) -> tuple[list[tuple[float, float, int]], str]:
    """Open each file where HERON cannot be imported; returns its figures, and what was printed beside them."""
    words = json.dumps([[kind, str(path), str(samples)] for kind, path, samples in cases])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, plain_reader.__file__, words], capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)], done.stderr


def test_images_are_classified_without_heron_as_well_as_the_run_said(runs: TrainedRuns) -> None:
    wanted = [("cnn", "torch", "torch"), ("cnn", "onnx", "onnx"), ("resnet", "torch", "torch"), ("resnet", "onnx", "onnx")]
    wanted += [("user", "torch", "torch"), ("user", "onnx", "onnx"), ("user", "safetensors", "python:zoo_of_exports:resnet")]
    cases = [(reader, export(runs, name, kind), runs[name].samples) for name, kind, reader in wanted]
    found, _ = scored(cases, runs.folder)
    for (name, _, _), (accuracy, loss, count) in zip(wanted, found, strict=True):
        assert (accuracy, count) == (runs[name].figures()[0], 360)
        assert loss == pytest.approx(runs[name].figures()[1], rel=1e-4)


def test_text_is_read_without_heron_as_well_as_the_run_said(runs: TrainedRuns, capfd: pytest.CaptureFixture[str]) -> None:
    kinds = {"gpt2": "AutoModelForCausalLM", "bert": "AutoModelForSequenceClassification"}
    wanted = [("gpt2", "onnx", "onnx"), ("bert", "torch", "torch")]
    wanted += [(name, "hf", auto) for name, auto in kinds.items()] + [(name, "peft", f"peft-{auto}") for name, auto in kinds.items()]
    cases = [(reader, export(runs, name, kind), runs[name].samples) for name, kind, reader in wanted]
    found, printed = scored(cases, runs.folder)
    for (name, _, _), (accuracy, loss, _) in zip(wanted, found, strict=True):
        assert accuracy == pytest.approx(runs[name].figures()[0], abs=1e-12)
        assert loss == pytest.approx(runs[name].figures()[1], rel=1e-4)
    w1, w3 = (3 + WORDS.split().index(word) for word in ("w1", "w3"))
    assert [json.loads(line) for line in printed.splitlines() if line.startswith("[")] == [[1, w3, w1, 0, 2]] * 2
    configuration = json.loads((runs.folder / "out/bert/config.json").read_text())
    assert configuration["id2label"] == {"0": "low", "1": "high"}
    folders = [path for name in kinds for kind in ("", "-adapters") for path in (runs.folder / f"out/{name}{kind}").rglob("*.json")]
    assert not [path for path in folders if str(runs.folder) in path.read_text()], "a path of this machine went along"
    assert "differ by" in capfd.readouterr().out


def test_a_users_model_of_tokens_is_read_without_heron_as_well_as_the_run_said(runs: TrainedRuns) -> None:
    kinds = {"torch": "torch", "onnx": "onnx", "safetensors": "python:zoo_of_tokens:language"}
    cases = [(reader, export(runs, "language", kind), runs["language"].samples) for kind, reader in kinds.items()]
    for accuracy, loss, count in scored(cases, runs.folder)[0]:
        assert (accuracy, loss) == pytest.approx(runs["language"].figures(), rel=1e-4) and count > 50
    note = json.loads((runs.folder / "out/language.json").read_text())
    assert note["inputs"] == {"input_ids": ["batch", 8], "attention_mask": ["batch", 8]} and note["num_outputs"] == 22
    with pytest.raises(ConfigurationError, match="--format hf is for transformers"):
        deliver(
            load_trained(runs["language"].directory, vouched=Vouched(trusts_code=True)), ExportFormat.HF, output=runs.folder / "out/never"
        )


def test_adapters_of_both_sides_moved_and_are_in_what_is_exported(runs: TrainedRuns) -> None:
    first, last = (load_trained(runs["gpt2"].directory, rounds).model for rounds in (1, 2))
    for part in ("front", "back"):
        old, new = getattr(first, part).state_dict(), getattr(last, part).state_dict()
        moved = [name for name in new if "lora_B" in name and float((new[name] - old[name]).abs().max()) > 1e-3]
        assert moved, part


def test_weights_have_the_names_of_the_original_and_a_note_says_what_they_are(runs: TrainedRuns) -> None:
    import zoo_of_exports  # type: ignore[import-not-found]

    tensors = load_file(export(runs, "resnet", "safetensors"))
    trained = load_trained(runs["resnet"].directory).model
    assert all(torch.equal(tensors[f"back.{name}"], value) for name, value in trained.back.state_dict().items())
    note = json.loads((runs.folder / "out/resnet.json").read_text())
    assert note["sample_shape"] == [1, 8, 8] and note["num_outputs"] == 10 and note["standard_deviation"] == trained_deviation(runs)
    assert note["inputs"] == {"x": ["batch", 1, 8, 8]} and note["run"]["completed_rounds"] == 2
    user = load_file(export(runs, "user", "safetensors"))
    assert user.keys() == zoo_of_exports.resnet((1, 8, 8), 10).state_dict().keys()
    tied = load_file(export(runs, "gpt2", "safetensors"))
    assert torch.equal(tied["lm_head.weight"], tied["transformer.wte.weight"]) and not [name for name in tied if "lora" in name]


def trained_deviation(runs: TrainedRuns) -> float:
    return load_trained(runs["resnet"].directory).data.standard_deviation


def test_onnx_files_hold_standard_operators_only_and_nothing_of_the_machine(runs: TrainedRuns) -> None:
    import onnx

    for name in ("user", "gpt2"):
        path = runs.folder / "out" / f"{name}.onnx"
        model = onnx.load(path if path.exists() else export(runs, name, "onnx"))
        onnx.checker.check_model(model, full_check=True)
        assert {opset.domain for opset in model.opset_import} == {""} and not model.functions
        assert {node.domain for node in model.graph.node} == {""}
        assert b"/heron_server/" not in path.read_bytes() and str(runs.folder).encode() not in path.read_bytes()


def test_weights_too_large_for_one_file_stand_beside_it(runs: TrainedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(formats, "LARGEST_PROTOBUF_BYTES", 0)
    output = runs.folder / "large" / "cnn.onnx"
    delivered = deliver(load_trained(runs["cnn"].directory), ExportFormat.ONNX, output=output)
    assert [path.name for path in delivered.paths] == ["cnn.onnx", "cnn.onnx.data"]
    elsewhere = shutil.copytree(output.parent, runs.folder / "moved")
    (logits,) = onnxruntime.InferenceSession(str(elsewhere / "cnn.onnx")).run(None, {"x": np.zeros((3, 1, 8, 8), np.float32)})
    assert logits.shape == (3, 10)


REFUSED: list[tuple[str, dict[str, Any], type[HeronError], str]] = [
    ("cnn", {"format": "hf"}, ConfigurationError, "--format hf is for transformers, .*'cnn': use one of torch, onnx, safetensors"),
    ("cnn", {"keep_adapters": True}, ConfigurationError, "--keep-adapters was given, but .* has none"),
    ("cnn", {"round": 7}, ConfigurationError, "no checkpoint after 7 rounds is kept .*: --round can be 1, 2"),
    ("cnn", {"run_dir": Path("nowhere")}, ConfigurationError, "nowhere holds no run"),
    ("cnn", {"output": Path("/proc/nowhere/model.pt2")}, StorageError, "cannot be written to /proc/nowhere/model.pt2"),
    (
        "cnn",
        {"output": Path("model.json"), "format": "safetensors"},
        ConfigurationError,
        "a file to be made that ends in .safetensors, not 'model.json'",
    ),
    ("cnn", {"output": Path("mine.pt2"), "force": True}, ConfigurationError, "mine.pt2 is a folder, and --format torch writes a file"),
    ("cnn", {"output": Path("mine.pt2")}, ConfigurationError, "mine.pt2 exists already: give --force"),
    ("cnn", {"output": Path("mine.pt2"), "format": "hf", "force": True}, ConfigurationError, "no folder that `heron export` made"),
]


def options(runs: TrainedRuns, name: str, **changes: Any) -> argparse.Namespace:
    given = {
        "run_dir": runs[name].directory,
        "format": "torch",
        "output": Path("refused.pt2"),
        "round": None,
        "checkpoint": None,
        "model": None,
        "model_options": None,
    }
    return argparse.Namespace(**{**given, "keep_adapters": False, "force": False, "trust_run_code": False, **changes})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, but for a folder that must stay."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt2").mkdir()
    return tmp_path


@pytest.mark.parametrize(("name", "changes", "error", "sentence"), REFUSED)
def test_what_cannot_be_exported_is_said_in_a_sentence(
    name: str, changes: dict[str, Any], error: type[HeronError], sentence: str, runs: TrainedRuns, here: Path
) -> None:
    from heron_cli.export import run_export

    with pytest.raises(error, match=sentence) as caught:
        run_export(options(runs, name, **changes))
    assert "\n" not in str(caught.value)
    assert [path.name for path in here.iterdir()] == ["mine.pt2"]


def copied(runs: TrainedRuns, name: str, folder: Path) -> Path:
    return shutil.copytree(runs[name].directory, folder / name)


def test_a_damaged_missing_or_foreign_checkpoint_is_refused_and_no_other_takes_its_place(runs: TrainedRuns, tmp_path: Path) -> None:
    directory = copied(runs, "cnn", tmp_path)
    newest = directory / "checkpoints" / "round-000002.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"round-000002.safetensors in .* is damaged .*one of 1, 2"):
        load_trained(directory)
    assert load_trained(directory, 1).completed_rounds == 1
    document = json.loads((directory / "run.json").read_text())
    document["configuration"]["model_options"]["hidden"] = "9"
    (directory / "run.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"the back in the checkpoint .* is not that of model 'cnn' as it is built here") as caught:
        load_trained(directory, 1)
    assert "\n" not in str(caught.value)
    del document["configuration"]["model"]
    (directory / "run.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match="has no option 'model'"):
        load_trained(directory, 1)
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(CheckpointError, match="there is none"):
        load_trained(directory)


def test_frozen_weights_that_are_not_the_run_s_are_refused(runs: TrainedRuns, tmp_path: Path) -> None:
    directory = copied(runs, "gpt2", tmp_path)
    document = json.loads((directory / "run.json").read_text())
    document["configuration"]["seed"] += 1
    (directory / "run.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match=r"the frozen weights of model .* are not those that the run was trained with"):
        load_trained(directory)


def test_a_model_whose_code_or_folder_is_gone_is_refused(runs: TrainedRuns, tmp_path: Path) -> None:
    for name, old, new, sentence in (
        ("user", "zoo_of_exports", "zoo_that_left", "no module named 'zoo_that_left'"),
        ("bert", "/bert", "/x", "/x' is no folder"),
    ):
        directory = copied(runs, name, tmp_path)
        text = (directory / "run.json").read_text().replace(old, new)
        (directory / "run.json").write_text(text)
        with pytest.raises(ConfigurationError, match=sentence) as caught:
            load_trained(directory, vouched=Vouched(trusts_code=True))
        assert "\n" not in str(caught.value)


def test_an_export_is_replaced_only_by_force_and_only_by_one_that_is_proved(runs: TrainedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    output = runs.folder / "once.safetensors"
    old = deliver(load_trained(runs["cnn"].directory, 1), ExportFormat.SAFETENSORS, output=output).paths[1].read_bytes()
    with pytest.raises(ConfigurationError, match="give --force"):
        deliver(load_trained(runs["cnn"].directory), ExportFormat.SAFETENSORS, output=output)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "open_safetensors", lambda whole, path: lambda inputs: whole.module(*inputs) * 1.001)
        with pytest.raises(ParityError, match=r"differs from the run's model by 1.0e-03"):
            deliver(load_trained(runs["cnn"].directory), ExportFormat.SAFETENSORS, output=output, replaces=True)
        patch.setattr(formats, "open_safetensors", lambda whole, path: whole.module)
        with pytest.raises(ProgramError, match="cannot be run again"):
            deliver(load_trained(runs["cnn"].directory), ExportFormat.SAFETENSORS, output=output, replaces=True)
    assert output.read_bytes() == old
    deliver(load_trained(runs["cnn"].directory), ExportFormat.SAFETENSORS, output=output, replaces=True)
    assert output.read_bytes() != old
    assert not list(runs.folder.glob(".heron-export-*"))


def test_an_operation_that_a_format_lacks_is_named(runs: TrainedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(runs["cnn"].directory)
    monkeypatch.setattr(
        delivery, "whole_of", lambda model, merges: formats.Whole(Branching(model), Branching(model), inputs=("x",), shapes=((1, 8, 8),))
    )
    with pytest.raises(ProgramError, match=r"cannot be written as --format torch \(.*use --format safetensors") as caught:
        deliver(trained, ExportFormat.TORCH, output=runs.folder / "branching.pt2")
    assert "\n" not in str(caught.value) and not (runs.folder / "branching.pt2").exists()


class Branching(torch.nn.Module):
    """Its way depends on its data."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.front, self.back = model.front, model.back

    def forward(self, x: torch.Tensor) -> Any:
        return self.back(self.front(x)) if x.sum() > 0 else self.back(self.front(-x))


def test_the_command_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("simulate", "demo", "audit", "cuts", "export", "evaluate"))
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "safetensors" in capsys.readouterr().out


def test_wrong_arguments_are_refused_together_before_torch_is_loaded(tmp_path: Path) -> None:
    script = "import sys\nfrom heron_cli.cli import main\ncode = main(sys.argv[1:])\nassert 'torch' not in sys.modules\nsys.exit(code)"

    def refused(*words: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", script, "export", *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == ExitCode.CONFIGURATION, done.stderr
        return done.stderr.splitlines()

    run = "run"
    (tmp_path / run).mkdir()
    (tmp_path / run / "run.json").write_text(json.dumps({"run_id": "r", "configuration": {"model": "cnn"}}))
    assert refused("--run-dir", "nowhere", "--format", "onnx", "--output", "x.pt") == [
        "heron export: nowhere holds no run: give the --run-dir of heron-server or heron simulate",
        "heron export: --output was expected to name a file to be made that ends in .onnx, not 'x.pt'",
    ]
    assert "is for transformers, but the run's model is 'cnn'" in refused("--run-dir", run, "--format", "hf", "--output", "x")[0]
    assert "has none: leave it out" in refused("--run-dir", run, "--format", "onnx", "--output", "x.onnx", "--keep-adapters")[0]


def test_an_export_has_the_mode_that_the_mask_allows(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").touch(mode=0o600)
    folder.chmod(0o700)
    before = os.umask(0o027)
    try:
        share(folder)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "inner", folder / "inner" / "weights")] == [0o750, 0o750, 0o640]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]
