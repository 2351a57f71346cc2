"""`heron demo` as its user sees it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heron_cli.processes import read_summary
from heron_common.process.process_memory import resident_memory
from tests.harness.interrupts import heed_interrupts
from tests.harness.polling import eventually

MEMORY_CEILING_MB = 100


def _demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heron_cli", "demo", "--run-dir", str(directory), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts)


def _children(pid: int) -> dict[int, str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in children}


def test_the_demo_ends_with_a_true_table_and_clients_under_100_mb(tmp_path: Path) -> None:
    process = _demo(tmp_path / "demo", "--rounds", "3")
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    for row in ("test accuracy", "bytes up", "raw images", "peak memory", "seconds", "Checkpoints"):
        assert row in text
    peaks = [int(figure) for figure in re.findall(r"\b(\d+)(?=, |\s+MB)", re.search(r"peak memory of each client(.*)", text)[1])]  # type: ignore[index]
    assert len(peaks) == 8
    assert max(peaks) <= MEMORY_CEILING_MB
    for preset in ("heron", "frozen"):
        summary = read_summary(tmp_path / "demo" / preset)
        assert f"{summary['rounds'][-1]['test_accuracy']:.2%}" in text
        assert Path(summary["checkpoint"]).is_file()
        # 4 clients x 3 rounds x 10 steps x 64 samples: 32 floats and a label each.
        assert sum(c["bytes_up"]["activations"] for c in summary["clients"].values()) == 4 * 3 * 10 * 64 * 32 * 4
        assert sum(c["bytes_up"]["labels"] for c in summary["clients"].values()) == 4 * 3 * 10 * 64 * 8


@pytest.mark.slow
def test_killing_a_client_neither_hangs_nor_fails_the_demo(tmp_path: Path) -> None:
    process = _demo(tmp_path / "demo", "--rounds", "8")
    eventually(lambda: read_summary(tmp_path / "demo" / "heron").get("rounds_completed", 0) >= 2, 120, "two rounds")
    victim = next(pid for pid, command in _children(process.pid).items() if "client-2" in command)
    assert resident_memory(victim).peak_bytes > 0
    os.kill(victim, signal.SIGKILL)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert re.search(r"clients lost on the way\D+1\D+0", text)


def test_a_demo_that_cannot_run_says_why_and_exits_non_zero(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    process = _demo(tmp_path / "file" / "below", "--rounds", "1")
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in text
    assert "heron demo: " in text


def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    process = _demo(tmp_path / "demo", "--rounds", "200")
    eventually(lambda: read_summary(tmp_path / "demo" / "heron").get("rounds_completed", 0) >= 1, 120, "a round")
    children = list(_children(process.pid))
    assert len(children) == 5
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 30, "the end of the children")
