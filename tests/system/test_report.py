"""`heron report`: a page that holds what the summary says, shows no markup of a run's making, and is readable in any window, light and dark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from heron_cli.cli import main
from heron_cli.report_page.charts import Chart, Curve
from heron_cli.report_page.figures import count, duration, round_ticks, size, ticks
from heron_cli.report_page.page import report_page
from heron_common.exit_codes import ExitCode
from heron_server.rounds.clients import FORGOTTEN
from tests.harness.browser import Browser, open_browser
from tests.harness.simulated import run_simulation
from tests.harness.summaries import ABANDONED, LONG_NAME, REASON, summary_of

VARIANTS = [(360, "light"), (360, "dark"), (1600, "light"), (1600, "dark")]
RUNS = {"long": (300, 45), "short": (2, 1)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
@pytest.mark.parametrize("run", RUNS)
def test_no_text_overlaps_another_sticks_out_or_is_faint(browser: Browser, tmp_path: Path, run: str, width: int, scheme: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_page(summary_of(*RUNS[run])), encoding="utf-8")
    browser.show(page, width, scheme)
    browser.screenshot(tmp_path / f"{run}-{width}-{scheme}.png")
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    assert browser.overlaps() == []
    assert browser.outside() == []
    assert browser.faint() == []
    browser.unfold()
    assert browser.overlaps() == []
    assert browser.outside() == []
    assert browser.complaints() == []


def test_the_checks_of_the_page_see_what_they_are_for(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<body><p style="color:#aaa;background:#fff">faint</p><p style="position:absolute;top:60px;left:0">one</p>'
        '<p style="position:absolute;top:62px;left:4px">two</p><p style="white-space:nowrap">' + "far " * 200
    )
    browser.show(page, 360, "light")
    assert [pair[:2] for pair in browser.overlaps()] in ([["one", "two"]], [["two", "one"]])
    assert len(browser.outside()) == 2
    assert browser.faint() == ["faint"]


def test_a_run_becomes_a_page_with_its_own_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    summary = run_simulation(run, preset="heron", data="digits", eval_data="digits:test", rounds=2, local_steps=2).summary
    assert main(["report", "--run-dir", str(run)]) == ExitCode.OK
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    words = _words((run / "report.html").read_text(encoding="utf-8"))
    for row in summary["rounds"]:
        assert f"{row['test_accuracy']:.2%}" in words
        assert row["compute_seconds"] > 0
    for name, row in summary["clients"].items():
        assert name in words
        assert 0 < row["compute_seconds"] <= row["round_seconds"]
        assert size(sum(row["bytes_up"].values())) in words
    assert summary["drops"] == {}
    assert "Nobody was dropped, no attempt was abandoned, no upload was rejected." in words
    assert summary["versions"]["torch"] in words


def test_bytes_grow_from_round_to_round_up_to_what_clients_had_sent(tmp_path: Path) -> None:
    summary = run_simulation(tmp_path, preset="heron", data="digits", rounds=3, local_steps=2).summary
    up = [row["bytes_up_so_far"] for row in summary["rounds"]]
    assert 0 < up[0] < up[1] < up[2] <= sum(sum(row["bytes_up"].values()) for row in summary["clients"].values())


def test_drops_abandoned_attempts_and_rejections_are_told_by_reason() -> None:
    words = _words(report_page(summary_of(12, 3)))
    assert f"{REASON} 4 2" in words
    assert f"{ABANDONED} 2" in words
    assert "norm 5 2" in words


def test_a_row_of_clients_that_left_long_ago_counts_as_many_as_it_stands_for() -> None:
    summary = summary_of(3, 4)
    summary["clients"][FORGOTTEN] = {**summary["clients"]["bed-1"], "clients": 7}
    words = _words(report_page(summary))
    assert "All 11 clients" in words and "clients 11" in words


def test_a_name_or_reason_of_a_runs_making_is_text_and_nothing_on_the_page_is_fetched_or_run() -> None:
    page = report_page(summary_of(12, 3))
    assert "<b>stopped" not in page
    assert "&lt;b&gt;stopped" in page
    assert not re.search(r"<script|<link|<img|<iframe|\bsrc=|url\(|@import|javascript:", page)
    assert "default-src 'none'" in page


def test_a_summary_of_an_earlier_version_is_shown_as_far_as_it_goes() -> None:
    old = summary_of(3, 2)
    for name in ("drops", "abandoned_attempts", "uploads", "rejected_uploads"):
        del old[name]
    for row in old["rounds"]:
        for name in ("compute_seconds", "upload_wait_seconds", "bytes_up_so_far", "bytes_down_so_far", "federated_accuracy"):
            del row[name]
    for row in old["clients"].values():
        for name in ("compute_seconds", "upload_wait_seconds", "round_seconds"):
            del row[name]
    words = _words(report_page(old))
    assert LONG_NAME in words
    assert "does not say who was dropped" in words


def test_a_run_without_a_round_and_one_without_figures_have_a_page() -> None:
    started = summary_of(0, 1)
    assert "No round has been closed yet." in _words(report_page(started))
    unscored = summary_of(2, 1)
    for row in unscored["rounds"]:
        row.update(dict.fromkeys([name for name in row if name.endswith(("accuracy", "loss"))]))
    assert "No round has been closed yet that has figures." in _words(report_page(unscored))


@pytest.mark.parametrize("content", [None, "{", "[1]", json.dumps({"rounds": []})])
def test_what_is_no_summary_is_refused_with_a_sentence(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert main(["report", "--run-dir", str(tmp_path)]) == ExitCode.CONFIGURATION
    assert str(tmp_path / "summary.json") in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_curve_is_drawn_where_its_values_are_and_broken_where_there_are_none() -> None:
    markup = Chart("t", [1, 2, 3, 4, 5], curves=[Curve("c", [0.0, 5.0, None, 10.0, None])], show=count).markup()
    paths = re.findall(r'<path class="curve curve-0" d="([^"]*)"', markup)
    assert paths[-1] == "M0.00 100.00L25.00 50.00M75.00 0.00h0.01"


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.741, 0.9753), (1e-9, 3e-9), (-4.0, 17.0), (5.0, 5.0), (0.0, 0.0), (3.0, 12_345_678.0)]
)
def test_ticks_enclose_the_values_evenly_and_are_few(low: float, high: float) -> None:
    marks = ticks(low, high, 6)
    assert 2 <= len(marks) <= 6
    assert marks[0] <= low + 1e-12
    assert marks[-1] >= high - 1e-12
    steps = {f"{b - a:.6g}" for a, b in pairwise(marks)}
    assert len(steps) == 1


@pytest.mark.parametrize("last", [1, 2, 3, 7, 60, 100, 999, 12_345])
def test_rounds_under_an_axis_are_whole_apart_and_few(last: int) -> None:
    names = round_ticks(last, 6)
    assert names[0] == 1
    assert names[-1] <= last
    assert len(names) <= 7
    assert all(b - a >= (names[-1] - 1) / 20 for a, b in pairwise(names))


def test_sizes_and_durations_are_written_in_the_unit_that_fits() -> None:
    assert [size(n) for n in (0, 999, 999_600, 67_903_488, None)] == ["0 B", "999 B", "1 MB", "67.9 MB", "–"]
    assert [duration(s) for s in (0.5, 99, 125, 7384.2)] == ["0.5 s", "99 s", "2 min 05 s", "2 h 03 min"]


def _words(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())
