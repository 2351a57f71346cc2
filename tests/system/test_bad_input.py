"""Bad input on the command line gets one sentence and the documented exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from heron_cli.cli import main as heron
from heron_common.exit_codes import ExitCode
from tests.harness.cluster import Cluster, free_port, log_of, wait_for_exit, words_of
from tests.harness.polling import eventually
from tests.harness.trained import SHORT


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--preset", "magic"], ExitCode.CONFIGURATION, "unknown preset 'magic': choose one of heron, heron-paper"),
        (["--model", "magic"], ExitCode.CONFIGURATION, "unknown model 'magic': choose one of cnn"),
        (["--model-options", "depth=3"], ExitCode.CONFIGURATION, "options are front_widths"),
        (["--data-spec", "magic"], ExitCode.CONFIGURATION, "unknown data specification 'magic'"),
        (["--eval-data", "magic:test"], ExitCode.CONFIGURATION, "unknown data source 'magic:test': write one of digits:train"),
        (["--eval-data", "npz:/nonexistent.npz"], ExitCode.DATA, "cannot read /nonexistent.npz"),
        (["--listen", "0.0.0.0:0"], ExitCode.CONFIGURATION, "--insecure"),
        (["--rounds", "0", "--batch-size", "x"], ExitCode.CONFIGURATION, "--batch-size"),
        (["--direction-groups", "7"], ExitCode.CONFIGURATION, "direction_groups 7 does not divide batch_size 64"),
        (["--preset", "heron-server-loss", "--server-schedule", "sequential"], ExitCode.CONFIGURATION, "objective=server"),
        (["--resume"], ExitCode.CONFIGURATION, "there is no run in"),
        (["--device", "cuda:99"], ExitCode.CONFIGURATION, "cannot be used here"),
        (
            ["--device", "cuda:99", "--direction-groups", "7", "--eval-data", "npz:/none"],
            ExitCode.CONFIGURATION,
            "direction_groups 7 does not",
        ),
        (["--direction-groups", "7", "--device", "cuda:99", "--model", "python:none:none"], ExitCode.CONFIGURATION, "cannot be used here"),
    ],
)
def test_the_server_refuses_in_one_sentence(arguments: list[str], code: ExitCode, sentence: str, tmp_path: Path) -> None:
    result = _run("heron_server", "--run-dir", str(tmp_path / "run"), "--listen", "127.0.0.1:0", "--metrics-port", "0", *arguments)
    assert result.returncode == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("heron-server: ")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], ExitCode.CONFIGURATION, "--server is missing"),
        (["--server", "127.0.0.1:1", "--data", "magic:x"], ExitCode.CONFIGURATION, "unknown data source 'magic:x'"),
        (["--server", "127.0.0.1:1", "--data", "digits:train", "--shard", "0/9999"], ExitCode.DATA, "use at most 1437 shards"),
        (
            ["--server", "127.0.0.1:1", "--data", "digits:train", "--give-up-after-seconds", "1"],
            ExitCode.UNREACHABLE,
            "127.0.0.1:1 does not answer",
        ),
    ],
)
def test_the_client_refuses_in_one_sentence(arguments: list[str], code: ExitCode, sentence: str, tmp_path: Path) -> None:
    result = _run("heron_client", *arguments, "--state-dir", str(tmp_path / "state"))
    assert result.returncode == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreachable_server_is_tried_again_and_said_so_once(cluster: Cluster) -> None:
    client = cluster.client(0, 1, f"127.0.0.1:{free_port()}", log_level="debug")
    eventually(lambda: log_of(client).count("could not join, trying again") >= 3, 60, "three attempts")
    client.process.terminate()
    assert wait_for_exit(client, 15) == 0
    tries = [line for line in log_of(client).splitlines() if "could not join, trying again" in line]
    assert "WARNING" in tries[0] and "Connection refused" in tries[0]
    # The others are for those who look into it.
    assert all("DEBUG" in line for line in tries[1:] if "Connection refused" in line)
    assert "INFO heron_client: stopping" in log_of(client) and log_of(client).splitlines()[-1].endswith("left the run")


def test_a_run_directory_is_not_overwritten_and_resume_names_what_changed(cluster: Cluster) -> None:
    server = cluster.server(clients=1, rounds=3, local_steps=2, seed=1)
    eventually(lambda: "listening" in log_of(server), 60, "the server")
    server.process.terminate()
    assert wait_for_exit(server) == 0
    common = ["--run-dir", str(cluster.run_dir), "--listen", "127.0.0.1:0", "--metrics-port", "0", "--clients", "1", "--rounds", "3"]
    common += ["--eval-data", "digits:test", "--local-steps", "2", "--model-options", "front_widths=4,2 front_strides=1,2"]
    again = _run("heron_server", *common, "--seed", "1")
    assert again.returncode == ExitCode.CONFIGURATION
    assert "holds a run already: give --resume" in again.stderr
    changed = _run("heron_server", *common, "--seed", "2", "--resume")
    assert changed.returncode == ExitCode.CONFIGURATION
    assert "--seed was 1 and is now 2" in changed.stderr


def test_clients_whose_data_do_not_fit_or_whose_name_is_taken_leave_with_a_sentence(cluster: Cluster) -> None:
    cluster.server(clients=2, min_updates=2, rounds=1)
    np.savez(cluster.directory / "shape.npz", x=np.zeros((80, 3, 8, 8), np.float32), y=np.zeros(80, np.int64))
    np.savez(cluster.directory / "label.npz", x=np.zeros((80, 1, 8, 8), np.float32), y=np.full(80, 10))
    shape = cluster.client(0, 1, name="shape", data=f"npz:{cluster.directory / 'shape.npz'}", state_dir=cluster.directory / "s1")
    label = cluster.client(0, 1, name="label", data=f"npz:{cluster.directory / 'label.npz'}", state_dir=cluster.directory / "s2")
    assert [wait_for_exit(shape), wait_for_exit(label)] == [ExitCode.DATA, ExitCode.DATA]
    assert "expects samples of shape [1, 8, 8]" in log_of(shape)
    assert "expects labels from 0 to 9" in log_of(label)
    first = cluster.client(0, 2, name="twin")
    eventually(lambda: "joined" in log_of(first), 60, "the first twin")
    second = cluster.client(1, 2, name="twin", state_dir=cluster.directory / "s3")
    assert wait_for_exit(second) == ExitCode.REFUSED
    assert "a live client is called 'twin' already" in log_of(second)


def test_data_with_nan_is_refused_by_the_client_itself(cluster: Cluster) -> None:
    cluster.server(clients=1, rounds=1, local_steps=2)
    x = np.zeros((80, 1, 8, 8), np.float32)
    x[:, 0, 0, 0] = np.nan
    np.savez(cluster.directory / "nan.npz", x=x, y=np.zeros(80, np.int64))
    client = cluster.client(0, 1, data=f"npz:{cluster.directory / 'nan.npz'}")
    assert wait_for_exit(client) == ExitCode.DATA
    assert "samples must be finite" in log_of(client)


def test_a_full_disk_at_checkpoint_keeps_the_last_good_one_and_says_so(cluster: Cluster) -> None:
    # The first checkpoint fits; for the next ones the disk has no room, while the ledger's pages still find some.
    words = ["--eval-data", "digits:test", "--clients", "1", "--rounds", "2", "--local-steps", "2", "--run-dir", str(cluster.run_dir)]
    words += ["--model-options", "front_widths=4,2 front_strides=1,2", "--listen", "127.0.0.1:0", "--metrics-port", "0"]
    script = cluster.directory / "limited_server.py"
    script.write_text(
        "import errno, sys\n"
        "import heron_server.storage.checkpoint as checkpoint\n"
        "write = checkpoint.write_atomically\n"
        "def refuse(path, data):\n"
        "    if path.name != 'round-000000.safetensors':\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    write(path, data)\n"
        "checkpoint.write_atomically = refuse\n"
        "from heron_server.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    server = cluster.start_script("limited", script, words)
    client = cluster.client(0, 1)
    assert wait_for_exit(server) == ExitCode.STORAGE
    wait_for_exit(client)
    log = log_of(server)
    assert "cannot be written" in log
    assert "the last good checkpoint stands" in log
    assert sorted(p.name for p in (cluster.run_dir / "checkpoints").glob("round-*")) == ["round-000000.safetensors"]
    assert len(cluster.final_tensors()) > 0


def test_a_simulation_ends_with_the_code_of_whose_fault_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.zeros((80, 1, 8, 8), np.float32)
    x[:, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", x=x, y=np.zeros(80, np.int64))
    options = {
        **SHORT,
        "model_options": "front_widths=2 front_strides=2 hidden=8",
        "data": f"npz:{tmp_path / 'nan.npz'}",
        "data_spec": "digits",
    }
    assert heron(["simulate", *words_of(options)]) == ExitCode.DATA
    said = capsys.readouterr().err
    assert "samples must be finite" in said and "Traceback" not in said
