"""Runs from Python: bit for bit those of the command, whole or stopped and resumed, and what can be asked of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import heron
from heron_cli.cli import main
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from tests.cli.python_api.handed_over import SMALL, build, load, load_test
from tests.harness.polling import eventually
from tests.harness.simulated import differing

HERE = "python:tests.cli.python_api.handed_over"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> heron.Run:
    """A run of a module and arrays that has ended."""
    run_dir = tmp_path_factory.mktemp("api") / "run"
    return heron.simulate(build(), load(), eval_data=load_test(), run_dir=run_dir, **SMALL).wait()


def tensors(run_dir: Path, rounds: int = 3) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"round-{rounds:06d}.safetensors")


def test_a_module_and_arrays_train_bit_for_bit_as_the_command_does_with_the_same_by_name(finished: heron.Run, tmp_path: Path) -> None:
    options = {"model": f"{HERE}:build", "data": f"{HERE}:load", "eval_data": f"{HERE}:load_test", "data_spec": "6:3"}
    summary = simulate(simulation_config(**SMALL, **options, run_dir=tmp_path))
    assert differing(load_file(summary["checkpoint"]), load_file(finished.summary["checkpoint"])) == []
    assert [row["test_accuracy"] for row in summary["rounds"]] == [record.test_accuracy for record in finished.history]


def test_a_module_that_is_handed_over_stays_bit_for_bit_as_it_was() -> None:
    module = build()
    hooks, before = len(module._forward_hooks), {name: value.clone() for name, value in module.state_dict().items()}
    flags = {name: part.training for name, part in module.named_modules()}
    asks = {name: (parameter.requires_grad, parameter.grad) for name, parameter in module.named_parameters()}
    classes = [type(part) for part in module.modules()]
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    heron.simulate(module, load(), **{**SMALL, "rounds": 1}).wait()
    assert differing(before, module.state_dict()) == []
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert {name: (parameter.requires_grad, parameter.grad) for name, parameter in module.named_parameters()} == asks
    assert ([type(part) for part in module.modules()], len(module._forward_hooks)) == (classes, hooks)
    assert torch.get_num_threads() == threads
    assert generator.shape == torch.get_rng_state().shape


def test_rounds_come_one_by_one_and_a_stopped_run_that_is_resumed_ends_like_one_that_was_not(finished: heron.Run, tmp_path: Path) -> None:
    run = heron.simulate(build(), load(), eval_data=load_test(), run_dir=tmp_path, **SMALL)
    seen = []
    for record in run:
        seen.append(record.round_index)
        run.stop()
    assert seen == list(range(len(seen))) and 1 <= len(seen) <= 3
    assert not run.is_training and [record.round_index for record in run.history] == seen
    assert run.ended_because == ("all 3 rounds are done" if len(seen) == 3 else None)
    again = run.resume()
    new = [record.round_index for record in again]
    assert seen + new == [0, 1, 2] and [record.round_index for record in again.history] == [0, 1, 2]
    assert again.ended_because == "all 3 rounds are done"
    assert differing(load_file(again.summary["checkpoint"]), load_file(finished.summary["checkpoint"])) == []


def test_a_callback_hears_of_every_round_and_may_end_the_run() -> None:
    told = list[int]()
    runs = list[heron.Run]()
    ready = threading.Event()

    def on_round(record: heron.RoundRecord) -> None:
        told.append(record.round_index)
        ready.wait(60)
        if len(told) == 2:
            runs[0].stop()

    runs.append(heron.simulate(build(), load(), on_round=on_round, **{**SMALL, "rounds": 500}))
    ready.set()
    ended = runs[0].wait()
    assert told == [record.round_index for record in ended] == list(range(len(told)))
    assert 2 <= len(told) < 500 and "stopped, can be resumed" in repr(ended)


def test_what_a_callback_raises_ends_the_run_and_is_raised_where_somebody_waits() -> None:
    def on_round(_: heron.RoundRecord) -> None:
        raise ValueError("the tracker is away")

    run = heron.simulate(build(), load(), on_round=on_round, **{**SMALL, "rounds": 500})
    with pytest.raises(ValueError, match="the tracker is away"):
        run.wait()
    with pytest.raises(ValueError, match="the tracker is away"):
        list(run)
    assert not run.is_training and not [thread for thread in threading.enumerate() if thread.name.startswith("client-")]


def test_a_run_gives_history_curves_a_report_and_shows_itself(finished: heron.Run, tmp_path: Path) -> None:
    assert [record.round_index for record in finished.history] == [0, 1, 2] and isinstance(finished.history[0], heron.RoundRecord)
    picture = finished.plot()
    assert picture._repr_png_()[:4] == b"\x89PNG" and len(picture._repr_png_()) < 60_000
    assert picture.save(tmp_path / "curves.svg").stat().st_size > 1000
    with pytest.raises(heron.ConfigurationError, match=r"ends in .png, .svg, .pdf, not"):
        picture.save(tmp_path / "curves.txt")
    assert "<html" in finished.report(tmp_path / "report.html").read_text()
    accuracy = f"{finished.history[-1].test_accuracy:.2%}"
    assert accuracy in repr(finished) and "all 3 rounds are done" in repr(finished)
    assert accuracy in finished._repr_html_() and "<polyline" in finished._repr_html_()


def test_history_becomes_a_data_frame(finished: heron.Run) -> None:
    pandas = pytest.importorskip("pandas")
    frame = finished.history.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame["test_accuracy"]) == [record.test_accuracy for record in finished.history]


def test_without_pandas_a_sentence_says_so(finished: heron.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(heron.ConfigurationError, match="pip install pandas"):
        finished.history.to_pandas()


def test_the_trained_module_is_of_the_same_class_and_scores_what_the_run_said(finished: heron.Run) -> None:
    x, y = load_test()
    module = finished.model()
    assert type(module) is type(build()) and not module.get_submodule("rest.1").training and module.training
    with torch.no_grad():
        correct = (module.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean()
    assert correct == pytest.approx(finished.history[-1].test_accuracy)
    assert differing(finished.model().state_dict(), finished.model(checkpoint=0).state_dict()) != []
    assert differing(build().state_dict(), finished.model(checkpoint=0).state_dict()) == []


def test_an_export_is_written_from_python_and_refused_by_the_command_in_a_sentence(
    finished: heron.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (written,) = finished.export(tmp_path / "net.onnx")
    import onnxruntime

    x, _ = load_test()
    session = onnxruntime.InferenceSession(str(written))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        expected = finished.model().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    with pytest.raises(heron.ConfigurationError, match="exists already: give force to replace it"):
        finished.export(tmp_path / "net.onnx")
    with pytest.raises(heron.ConfigurationError, match="format is one of torch, hf, onnx, safetensors, not 'tflite'"):
        finished.export(tmp_path / "net.tflite", format="tflite")
    words = ["export", "--run-dir", str(finished.directory), "--format", "onnx", "--output", str(tmp_path / "other.onnx")]
    assert main(words) == 2
    assert "was handed over as an object from Python, and no command can build it: use heron.open_run" in capsys.readouterr().err


def test_a_run_is_opened_again_with_its_module_and_refuses_another(finished: heron.Run) -> None:
    opened = heron.open_run(finished.directory, build())
    assert opened.history == finished.history and not opened.is_training and list(opened) == []
    assert differing(opened.model().state_dict(), finished.model().state_dict()) == []
    other = build()
    nn.init.zeros_(other.get_parameter("rest.0.weight"))
    with pytest.raises(heron.ConfigurationError, match="give the same module with its first weights"):
        heron.open_run(finished.directory, other).model()
    with pytest.raises(heron.ConfigurationError, match=r"only opened: go on with heron.simulate"):
        opened.resume()
    with pytest.raises(heron.ConfigurationError, match=r"the summary .* cannot be read"):
        heron.open_run(finished.directory / "nowhere")


@pytest.mark.parametrize("what", ["model", "data"])
def test_a_run_is_not_resumed_with_another_module_or_other_data(finished: heron.Run, what: str) -> None:
    other = build()
    nn.init.zeros_(other.get_parameter("rest.0.weight"))
    model, data = (other, load()) if what == "model" else (build(), load(5))
    with pytest.raises(
        heron.ConfigurationError, match=rf"resume continues a run as it was started, but {what} was 'object:.*' and is now 'object:"
    ):
        heron.simulate(model, data, eval_data=load_test(), run_dir=finished.directory, resume=True, **SMALL)
    with pytest.raises(heron.ConfigurationError, match="so it takes no data: leave it out"):
        finished.resume(data=load(5))


@pytest.mark.process
def test_clients_and_a_server_of_a_script_train_over_the_network(tmp_path: Path) -> None:
    x, y = load()
    network = {"listen": "127.0.0.1:0", "metrics_port": 0, "server_schedule": "lockstep"}
    run = heron.serve(build(), run_dir=tmp_path / "run", eval_data=load_test(), **{**SMALL, **network, "rounds": 2})
    clients = [
        heron.Client(str(run.address), (x, y), shard=(index, 2), name=f"client-{index}", state_dir=tmp_path / f"{index}")
        for index in (0, 1)
    ]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    assert [record.updates for record in run] == [2, 2]
    for thread in threads:
        thread.join(60)
    assert run.ended_because == "all 2 rounds are done"
    assert type(run.model()) is type(build())
    eventually(lambda: not any(thread.is_alive() for thread in threads), 60, "both clients have ended")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["clients"]["client-1"]["examples"] == 60


def test_a_client_is_told_everything_that_is_wrong_at_once() -> None:
    with pytest.raises(heron.ConfigurationError) as caught:
        heron.Client("nowhere", "digts", shard=(4, 4), threads=0)
    said = str(caught.value)
    assert "server is host:port" in said and "unknown data source 'digts'" in said and "shard" in said and "threads is a number" in said
    assert "--" not in said
    arguments: dict[str, Any] = {"server": "127.0.0.1:1", "data": (np.zeros((3, 2)), np.zeros(2))}
    with pytest.raises(heron.DataError, match="3 samples but 2 labels"):
        heron.Client(**arguments)
