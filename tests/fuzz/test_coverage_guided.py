"""The slow suite's search for bytes that break a decoder, guided by what they reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.decoders import DECODERS

CORPUS = Path(__file__).parent / "corpus"
RUNS, SECONDS, MEGABYTES = 200_000, 30, 4096


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_no_bytes_that_are_found_break_a_decoder(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or platform: see docs/hostile-input.md")
    # It adds what it finds to the first folder; the repository's own stays small and is kept by hand.
    shutil.copytree(CORPUS / name, tmp_path / "corpus")
    limits = [f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-max_len=65536", "-timeout=20", f"-rss_limit_mb={MEGABYTES}"]
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", name, str(tmp_path / "corpus"), *limits, f"-artifact_prefix={tmp_path}/"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300)
    crashes = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert result.returncode == 0 and not crashes, result.stdout[-2000:] + result.stderr[-4000:]
