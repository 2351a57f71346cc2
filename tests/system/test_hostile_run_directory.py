"""A run directory from a stranger: whoever reads it runs no code of theirs, waits for no pipe, follows no link, and ends with a sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heron_cli.cli import main as heron
from heron_common.errors import StorageError
from heron_common.exit_codes import ExitCode
from heron_common.files.atomic import write_atomically
from heron_common.files.directory_lock import DirectoryLock
from heron_server.cli import main as heron_server
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.storage.spool import Spool
from tests.harness.trained import SHORT, TrainedRuns


@pytest.fixture(autouse=True)
def at_most_a_minute() -> Iterator[None]:
    """What waits for a pipe fails instead."""

    def ring(_number: int, _frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def stranger(runs: TrainedRuns, tmp_path: Path) -> Path:
    return shutil.copytree(runs["cnn"].directory, tmp_path / "run")


def evaluate(run: Path, *more: str) -> int:
    return heron(["evaluate", "--run-dir", str(run), "--data", "digits:test", *more])


def export(run: Path, *more: str) -> int:
    return heron(["export", "--run-dir", str(run), "--format", "safetensors", "--output", str(run.parent / "out.safetensors"), *more])


def audit(run: Path) -> int:
    return heron(["audit", "--run-dir", str(run)])


def report(run: Path) -> int:
    return heron(["report", "--run-dir", str(run)])


def resume(run: Path) -> int:
    given = {**SHORT, "rounds": 3, "model_options": "front_widths=2 front_strides=2 hidden=8", "data": "digits", "run_dir": run}
    return heron(["simulate", "--resume", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())])


def serve(run: Path) -> int:
    return heron_server(["--resume", "--run-dir", str(run), "--listen", "127.0.0.1:0", "--metrics-port", "0"])


def rewritten(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


HOSTILE = [pipe, device, folder, link, sparse, deep]


def refused(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert code in (ExitCode.CONFIGURATION, ExitCode.STORAGE), said
    assert "Traceback" not in said and "\x1b" not in said
    return said


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (evaluate, "run.json"),
        (export, "run.json"),
        (resume, "run.json"),
        (serve, "run.json"),
        (evaluate, "checkpoints/manifest.json"),
        (export, "checkpoints/round-000002.safetensors"),
        (audit, "checkpoints/manifest.json"),
        (report, "summary.json"),
    ],
)
def test_what_is_no_plain_small_file_is_refused_with_a_sentence(
    read: Callable[[Path], int], name: str, hostile: Callable[[Path], None], stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile(stranger / name)
    refused(read(stranger), capsys)


@pytest.mark.parametrize("named", ["/etc/hostname", "../../elsewhere", "..", "a/b", "", "\x1b[2Jx", "." * 300])
@pytest.mark.parametrize("read", [evaluate, export])
def test_a_manifest_names_files_beside_it(
    read: Callable[[Path], int], named: str, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stranger.parent / "elsewhere").write_bytes(b"of somebody else")
    rewritten(stranger / "checkpoints/manifest.json", lambda entries: [entry.update(file=named) for entry in entries])
    assert "a file beside it was expected" in refused(read(stranger), capsys)


def wrong(name: str, value: Any) -> Callable[[Path], None]:
    return lambda run: rewritten(run / "run.json", lambda document: document["configuration"].update({name: value}))


def test_a_run_directory_may_be_reached_by_a_link_but_its_folders_may_not(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latest = stranger.parent / "latest"
    latest.symlink_to(stranger)
    (latest.parent / "given.json").symlink_to(stranger / "summary.json")
    assert export(latest) == report(latest) == ExitCode.OK
    assert heron(["report", "--summary", str(latest.parent / "given.json"), "--output", str(latest.parent / "r.html")]) == ExitCode.OK
    shutil.move(stranger / "checkpoints", stranger.parent / "elsewhere")
    (stranger / "checkpoints").symlink_to(stranger.parent / "elsewhere")
    capsys.readouterr()
    for read in (evaluate, lambda run: export(run, "--force"), audit):
        assert "not a link" in refused(read(stranger), capsys)


@pytest.mark.parametrize(
    ("name", "value"), [("data_spec", ["digits"]), ("model", 3), ("model_options", [1]), ("seed", "x"), ("seed", None), ("cut", {})]
)
def test_options_of_another_kind_are_refused(name: str, value: Any, stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong(name, value)(stranger)
    refused(evaluate(stranger), capsys)
    refused(export(stranger), capsys)


def test_a_summary_that_is_none_is_refused(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change in ({"rounds": "many"}, {"clients": [1, 2]}, {"configuration": 3}, {"rounds": [{}]}, {"model": None}):
        rewritten(stranger / "summary.json", lambda summary, change=change: summary.update(change))
        refused(report(stranger), capsys)


def test_code_that_a_run_names_is_run_only_if_somebody_here_answers_for_it(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = stranger.parent / "it-ran"
    options = {"command": f"touch {marker}"}
    rewritten(stranger / "run.json", lambda d: d["configuration"].update(model="python:os:system", model_options=options))
    for read in (evaluate, export):
        assert "names code to run, 'python:os:system'" in refused(read(stranger), capsys)
        assert "--model is 'cnn'" in refused(read(stranger, "--model", "cnn"), capsys)
        assert not marker.exists()
        assert read(stranger, "--model", "python:os:system") == ExitCode.CONFIGURATION
        assert marker.exists(), "who repeats the name is taken at their word"
        marker.unlink()
        assert read(stranger, "--trust-run-code") == ExitCode.CONFIGURATION
        assert marker.exists()
        marker.unlink()
        capsys.readouterr()


def test_code_hidden_in_options_of_a_model_is_found(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"head": "python:os:abort", "deep": [{"er": "python:os:abort"}]}
    rewritten(stranger / "run.json", lambda d: d["configuration"].update(model="python:zoo_of_exports:resnet", model_options=options))
    for read in (evaluate, export):
        said = refused(read(stranger, "--model", "python:zoo_of_exports:resnet"), capsys)
        assert "names code to run, 'python:os:abort'" in said and "repeat --model-options" in said
        assert "--model-options is" in refused(
            read(stranger, "--model", "python:zoo_of_exports:resnet", "--model-options", "width=3"), capsys
        )


def test_a_checkpoint_of_something_else_is_refused_though_its_digest_is_right(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(stranger / "checkpoints", 3)
    for tensors, state in (({"x": torch.zeros(1)}, {"clients": 3}), ({}, {"open_round": None})):
        store.write(Checkpoint(2, tensors, state))
        for read in (evaluate, export, resume):
            refused(read(stranger), capsys)


@pytest.mark.parametrize("name", ["checkpoints", "spool", "blobs", "audit"])
@pytest.mark.parametrize("read", [resume, serve])
def test_a_run_whose_folder_is_a_link_is_not_gone_on_with(
    read: Callable[[Path], int], name: str, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = stranger.parent / "precious"
    precious.mkdir()
    for file in ("f" * 64, "000000001.upload", "round-000009.safetensors", ".x.tmp"):
        (precious / file).write_text("mine")
    shutil.rmtree(stranger / name, ignore_errors=True)
    (stranger / name).symlink_to(precious)
    assert "is a link" in refused(read(stranger), capsys)
    assert len(list(precious.iterdir())) == 4


def test_an_audit_does_not_count_to_a_number_that_a_stranger_chose(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewritten(stranger / "checkpoints/manifest.json", lambda entries: entries[-1].update(completed_rounds=10**15))
    refused(audit(stranger), capsys)


def test_what_a_ledger_names_in_the_spool_is_a_payload_in_it(tmp_path: Path) -> None:
    precious = tmp_path / "000000001.upload"
    precious.write_bytes(b"1234")
    for name in ("../000000001.upload", str(precious), "1.upload", "000000001.upload/../../x", "\u0661" * 9 + ".upload"):
        with pytest.raises(StorageError, match="no name of one"):
            Spool(tmp_path / "spool", 1 << 20, needed=(name,))
        spool = Spool(tmp_path / "spool", 1 << 20)
        with pytest.raises(StorageError, match="no name of one"):
            spool.recover(name, 4)
        with pytest.raises(StorageError, match="no name of one"):
            spool.discard([name])
    (tmp_path / "spool" / "000000002.upload").symlink_to(precious)
    with pytest.raises(StorageError, match="no plain file"):
        Spool(tmp_path / "spool", 1 << 20, needed=("000000002.upload",)).recover("000000002.upload", 4)
    assert precious.read_bytes() == b"1234"


def test_nothing_is_written_through_a_link_that_somebody_put_there(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("lock", f".run.json.{os.getpid()}.tmp", "run.json"):
        (run / name).symlink_to(precious)
    with pytest.raises(StorageError):
        DirectoryLock(run, "heron-server", "stop it")
    write_atomically(run / "run.json", b"yours")
    assert precious.read_bytes() == b"mine" and (run / "run.json").read_bytes() == b"yours"
