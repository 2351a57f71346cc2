"""What clients refuse, the server's own commands refuse too: --eval-data, `heron evaluate`, `heron simulate`; and columns by name from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from heron_cli.cli import main
from heron_cli.evaluate import evaluate_checkpoint
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_client.session import Session
from heron_common.data import open_source
from heron_common.errors import DataError
from heron_common.exit_codes import ExitCode
from heron_server.cli import main as serve
from tests.harness.cluster import Cluster, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.simulated import TINY_FRONT
from tests.harness.trained import TrainedRuns

NAMES = [f"p{place}" for place in range(64)]


def write_digits(path: Path, part: str, backwards: bool = False, **changes: str) -> str:
    """Write 60 digits with a name for each pixel; `changes` replace a field of the third sample. Returns the source's name."""
    source = open_source(f"digits:{part}")
    rows = np.arange(60)
    table = np.concatenate([source.inputs.read(rows).reshape(60, 64).astype(int), source.labels.read(rows)[:, None]], 1)
    header = [*NAMES, "label"]
    lines = [dict(zip(header, map(str, row), strict=True)) for row in table]
    lines[2] |= changes
    order = header[::-1] if backwards else header
    path.write_text("\n".join([",".join(order), *(",".join(line[name] for name in order) for line in lines)]) + "\n")
    return f"csv:{path}:*:label"


BAD = [
    ({"p5": "nan"}, "samples must be finite, but line 4 of {path} holds NaN or infinity in p5: clean the data"),
    ({"p5": "-inf"}, "samples must be finite, but line 4 of {path} holds NaN or infinity in p5: clean the data"),
    ({"p5": "dark"}, "line 4 of {path} should have a number in p5, but has 'dark'"),
    ({"label": "10"}, "the run expects labels from 0 to 9, but '{name}' has 10 (line 4 of {path})"),
]


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is built or a client begins."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr("heron_server.publication.build_model", begun)
    monkeypatch.setattr(Session, "run", begun)


@pytest.mark.usefixtures("nothing_begins")
@pytest.mark.parametrize(("bad", "sentence"), BAD)
@pytest.mark.parametrize("whose", ["eval-data", "data"])
def test_a_simulation_refuses_what_its_clients_would(
    bad: dict[str, str], sentence: str, whose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_digits(tmp_path / "d.csv", "train", **bad)
    words = {"data": "digits:train", "data-spec": "digits", "eval-data": "digits:test"} | {whose: name}
    assert main(["simulate", "--rounds", "1", *(f"--{option}={value}" for option, value in words.items())]) == ExitCode.DATA
    assert sentence.format(path=tmp_path / "d.csv", name=name) in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_begins")
@pytest.mark.parametrize(("bad", "sentence"), BAD)
def test_a_server_refuses_what_its_clients_would(
    bad: dict[str, str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_digits(tmp_path / "d.csv", "test", **bad)
    words = ["--listen", "127.0.0.1:0", "--metrics-port", "0", "--run-dir", str(tmp_path / "run"), "--eval-data", name]
    assert serve(words) == ExitCode.DATA
    assert sentence.format(path=tmp_path / "d.csv", name=name) in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_an_evaluation_refuses_what_clients_would(
    changes: dict[str, str], sentence: str, runs: TrainedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_digits(tmp_path / "d.csv", "test", **changes)
    assert main(["evaluate", "--run-dir", str(runs["cnn"].directory), "--data", name]) == ExitCode.DATA
    assert sentence.format(path=tmp_path / "d.csv", name=name) in capsys.readouterr().err


def test_data_that_go_bad_during_a_simulation_end_it_with_the_code_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(_: Session) -> None:
        raise DataError("line 7 of d.csv holds NaN: clean the data")

    monkeypatch.setattr(Session, "run", bad)
    with pytest.raises(DataError, match=r"client-0 ended the simulation: line 7 of d\.csv"):
        simulate(simulation_config(data="digits", clients=1, rounds=1, model_options=TINY_FRONT))


def test_columns_in_another_order_give_the_same_run_and_the_same_figures(tmp_path: Path) -> None:
    short = {"data_spec": "digits", "model_options": TINY_FRONT, "clients": 1, "rounds": 1, "local_steps": 2, "batch_size": 8}
    held_out = write_digits(tmp_path / "held_out.csv", "test")
    backwards = write_digits(tmp_path / "held_out_backwards.csv", "test", backwards=True)
    summaries = [
        simulate(
            simulation_config(
                data=write_digits(tmp_path / f"{order}.csv", "train", order), eval_data=held_out, run_dir=tmp_path / f"{order}", **short
            )
        )
        for order in (False, True)
    ]
    figures = [[summary["rounds"][0][name] for name in ("test_loss", "local_loss", "server_loss")] for summary in summaries]
    assert figures[0] == figures[1]
    assert json.loads((tmp_path / "True" / "run.json").read_text())["columns"] == NAMES
    assert evaluate_checkpoint(tmp_path / "True", backwards)["loss"] == figures[0][0]


@pytest.mark.slow
def test_devices_agree_on_columns_that_nobody_named_on_the_server(cluster: Cluster, tmp_path: Path) -> None:
    """Each device says `*`; the second has another order, the third other names."""
    short = {"data_spec": "digits", "model_options": TINY_FRONT, "local_steps": 2, "batch_size": 8}
    forwards, backwards = (write_digits(tmp_path / f"{order}.csv", "train", order) for order in (False, True))
    named, other = (tmp_path / name for name in ("named.csv", "other.csv"))
    named.write_text((tmp_path / "False.csv").read_text().replace("p3,", "q3,", 1))
    other.write_text(named.read_text())
    server = cluster.server(clients=2, min_updates=2, rounds=2, eval_data=None, **short)
    first = cluster.client(0, 1, data=forwards)
    eventually(lambda: "the names of its columns from a client" in log_of(server), 60, "the first client's names")
    strangers = [
        cluster.client(index, 1, data=data, name=f"stranger-{index}", shard="0/1")
        for index, data in (
            (1, f"csv:{named}:*:label"),
            (2, f"csv:{other}:{'+'.join(name if name != 'p3' else 'q3' for name in NAMES)}:label"),
        )
    ]
    assert [wait_for_exit(stranger) for stranger in strangers] == [ExitCode.DATA] * 2
    assert "there is no p3 and there is q3 too" in log_of(strangers[0])
    assert "as its first client names them" in log_of(strangers[1])
    second = cluster.client(3, 1, data=backwards, name="second", shard="0/1")
    assert [wait_for_exit(process) for process in (first, second, server)] == [0, 0, 0]
    assert evaluate_checkpoint(cluster.run_dir, forwards)["loss"] == evaluate_checkpoint(cluster.run_dir, backwards)["loss"]


def test_a_resumed_run_keeps_the_columns_that_it_began_with(tmp_path: Path) -> None:
    short = {
        "data_spec": "digits",
        "model_options": TINY_FRONT,
        "clients": 1,
        "local_steps": 2,
        "batch_size": 8,
        "run_dir": tmp_path / "run",
    }
    files = {"data": write_digits(tmp_path / "d.csv", "train"), "eval_data": write_digits(tmp_path / "held_out.csv", "test")}
    before = simulate(simulation_config(rounds=1, **files, **short))["rounds"][0]["test_loss"]
    write_digits(tmp_path / "held_out.csv", "test", backwards=True)
    assert evaluate_checkpoint(tmp_path / "run", files["eval_data"])["loss"] == before
    simulate(simulation_config(rounds=2, resume=True, **files, **short))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["columns"] == NAMES
