"""A test for each verb: what a server, a device or a run directory says reaches a terminal as text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from heron_cli import audit, cuts, demo, status
from heron_cli.cli import main
from heron_cli.evaluate import _print as print_evaluation
from heron_cli.report_page.markup import paragraph, table
from heron_cli.simulation import run as simulation
from heron_cli.status_page.page import rows_of
from heron_cli.status_page.scrape import parse
from heron_client.device.device_findings import Finding
from heron_client.device.self_check import _Page
from heron_client.network.channel import translate
from heron_common.data.inspection import Inspection, page
from heron_common.error_catalog import ERROR_CODE_METADATA
from heron_common.errors import HeronError
from heron_common.exit_codes import ExitCode
from heron_common.terminal.console import LiveConsole, make_table
from heron_common.terminal.output import refuse, say
from tests.common.terminal.test_foreign_text import HOSTILE, harmless
from tests.harness.trained import TrainedRuns


class Refusal(grpc.RpcError):
    """What a hostile server answers."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.ALREADY_EXISTS

    def details(self) -> str:
        return HOSTILE

    def trailing_metadata(self) -> Any:
        return ((ERROR_CODE_METADATA, "name_in_use"),)


def test_the_client_says_what_a_server_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    error = translate(Refusal(), "127.0.0.1:1", has_joined=False)
    assert refuse("heron-client", error) is ExitCode.REFUSED
    assert harmless(capsys.readouterr().err, 1)


def test_check_data_prints_the_names_that_a_server_gave(capsys: pytest.CaptureFixture[str]) -> None:
    say(*page(Inspection(name=HOSTILE, num_examples=1, sample=HOSTILE, labels=HOSTILE, absent=[HOSTILE]), 0))
    said = capsys.readouterr().out
    assert "owned" in said and harmless(said, 6)


def test_self_check_prints_what_a_server_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    _Page().add(Finding("server", HOSTILE, go=False))
    assert harmless(capsys.readouterr().out, 1)


def scraped() -> Any:
    registry = CollectorRegistry()
    for name, labels in (("round", ()), ("phase", ("phase",)), ("dropped_clients_total", ("reason",)), ("rejections_total", ("reason",))):
        gauge = Gauge(
            f"heron_server_{name}".removesuffix("_total") + ("_total" if name.endswith("_total") else ""), "x", labels, registry=registry
        )
        (gauge.labels(HOSTILE.replace("\udcff", "")) if labels else gauge).set(1)
    return parse(generate_latest(registry).decode(), "here:1")


def test_status_prints_what_a_process_says_of_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status, "scrape", lambda _: scraped())
    assert main(["status", "127.0.0.1:1", "--once"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "owned" in said and harmless(said, len(rows_of(scraped())))


def test_tables_on_a_terminal_hold_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console(force_terminal=False, width=400)
    for shown in (
        make_table(HOSTILE, [(HOSTILE, HOSTILE)], box=None),
        status._table("h:1", scraped(), None),
        LiveConsole(HOSTILE, lambda: [(HOSTILE, HOSTILE)])._render(),
    ):
        console.print(shown)
        said = capsys.readouterr().out
        assert "\x1b" not in said and "[red]x[/red]" in said and "\u202e" not in said


def test_evaluate_prints_the_names_of_a_runs_classes(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": HOSTILE, "examples": 1, "correct": 1, "accuracy": 1.0}
    figures = {"accuracy": 1.0, "loss": 1.0, "perplexity": None, "truncated": 0, "num_examples": 1, "classes": [row, {**row, "name": "b"}]}
    print_evaluation({"run_id": HOSTILE, "completed_rounds": 1, "data": HOSTILE, **figures})
    assert harmless(capsys.readouterr().out, 5)


def test_a_run_directorys_words_are_refused_as_text(runs: TrainedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(runs["cnn"].directory, tmp_path / "run")
    document = json.loads((run / "run.json").read_text())
    manifest = json.loads((run / "checkpoints/manifest.json").read_text())
    (run / "checkpoints/manifest.json").write_text(json.dumps([{**entry, "file": HOSTILE} for entry in manifest]))
    for verb in (
        ["evaluate", "--run-dir", str(run), "--data", "digits:test"],
        ["export", "--run-dir", str(run), "--format", "onnx", "--output", str(tmp_path / "o.onnx")],
        ["audit", "--run-dir", str(run)],
    ):
        assert main(verb) in (ExitCode.CONFIGURATION, ExitCode.STORAGE)
        said = capsys.readouterr().err
        assert said and harmless(said, len(said.splitlines()))
    for name in ("model", "data_spec"):
        (run / "run.json").write_text(json.dumps({**document, "configuration": {**document["configuration"], name: HOSTILE}}))
        assert main(["evaluate", "--run-dir", str(run), "--data", "digits:test"]) in (ExitCode.CONFIGURATION, ExitCode.STORAGE)
        said = capsys.readouterr().err
        assert said and harmless(said, len(said.splitlines()))


def test_export_says_whose_model_it_wrote(
    runs: TrainedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs["cnn"].directory, tmp_path / "run")
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**document, "run_id": HOSTILE}))
    assert main(["export", "--run-dir", str(run), "--format", "safetensors", "--output", str(tmp_path / "o.safetensors")]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "owned" in said and harmless(said, 4)


def test_audit_names_clients_that_a_trail_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def contradict(_: Path) -> Any:
        audit._compare("a", "b", f"client {HOSTILE!r} {HOSTILE}")
        yield

    monkeypatch.setattr(audit, "prove", contradict)
    assert main(["audit", "--run-dir", str(tmp_path)]) == ExitCode.STORAGE
    assert harmless(capsys.readouterr().err, 1)


def test_the_reports_page_holds_no_character_that_acts() -> None:
    markup = table("c", ["a", "b"], rows=[[HOSTILE, HOSTILE]]) + paragraph(HOSTILE + "<script>")
    assert markup.isprintable() and "<script>" not in markup


def test_cuts_names_submodules_of_somebodys_module(capsys: pytest.CaptureFixture[str]) -> None:
    found = SimpleNamespace(places=(), refused=[SimpleNamespace(count=1, reason="r", example=HOSTILE)], kept_whole={HOSTILE: "loops"})
    say(*cuts.report(HOSTILE, HOSTILE, found))  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert harmless(said, len(said.splitlines())) and "owned" in said


@pytest.mark.parametrize("verb", ["simulate", "health", "status", "cuts", "report", "certs", HOSTILE])
def test_what_cannot_be_read_of_a_command_is_said_as_text(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, HOSTILE, f"--{HOSTILE}"]) == ExitCode.CONFIGURATION
    said = capsys.readouterr().err
    assert said and harmless(said, len(said.splitlines()))


def test_demo_and_simulate_say_what_went_wrong_in_a_child(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise HeronError(HOSTILE)

    monkeypatch.setattr(demo, "_run_preset", fail)
    assert main(["demo"]) == ExitCode.FAILURE
    assert harmless(capsys.readouterr().err, 1)
    monkeypatch.setattr(simulation, "simulate", fail)
    assert main(["simulate", "--rounds", "1"]) == ExitCode.FAILURE
    assert harmless(capsys.readouterr().err, 1)
