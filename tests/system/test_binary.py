"""The client without Python: its recipe always; slowly, the build, and a whole run in an empty environment."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest

from heron_client.cli import _LARGE_LIBRARIES
from heron_common.data.sources import open_source
from heron_common.exit_codes import PERMANENT, ExitCode
from tests.harness.cluster import Cluster, log_of, wait_for_exit
from tests.harness.sources import IN_CHECKOUT, ROOT, folder_of

RECIPE = ROOT / "deploy" / "binary"
SERVER_ONLY = (
    "torch",
    "transformers",
    "peft",
    "pydantic",
    "safetensors",
    "onnx",
    "onnxscript",
    "scipy",
    "sklearn",
    "heron_server",
    "heron_cli",
)
FLOOR_BYTES = 85_000_000


def test_the_recipe_packs_the_client_and_excludes_whatever_is_the_servers() -> None:
    specification = (RECIPE / "heron-client.spec").read_text()
    compile(specification, "heron-client.spec", "exec")
    assert specification.count("Analysis(") == 1 and specification.count("upx=False") == 1 and '"upx": False' in specification
    assert all(f'"{name}"' in specification for name in SERVER_ONLY)
    excluded = re.search(r"EXCLUDED = \[(.+?)\]", specification, re.DOTALL)
    assert excluded is not None and not any(f'"{name}"' in excluded[1] for name in (*_LARGE_LIBRARIES, "rich", "tokenizers", "PIL"))
    entry = re.search(r'ROOT / "edge_client" / "heron_client" / "(.+?)"', specification)
    assert entry is not None and (folder_of("heron_client") / entry[1]).is_file()


def test_the_recipe_asks_for_the_plain_dependencies_and_pins_what_builds() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", "import build; print(*build.client_requirements(), sep='\\n')"],
        cwd=RECIPE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) < set(asked)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split(r"[>=<]", name)[0].lower() for name in asked} <= pinned
    assert not {re.split(r"[>=<]", name)[0] for name in asked} & set(SERVER_ONLY)


def test_the_page_names_the_exit_codes_that_no_restart_changes() -> None:
    page = (ROOT / "docs" / "edge-binary.md").read_text()
    line = re.search(r"^RestartPreventExitStatus=([\d ]+) SIGILL$", page, re.MULTILINE)
    assert line is not None and sorted(map(int, line[1].split())) == sorted(PERMANENT)
    values = re.search(r"^ +values: \[([\d, ]+)\]$", page, re.MULTILINE)
    assert values is not None and sorted(map(int, values[1].split(","))) == sorted(PERMANENT)


@pytest.mark.slow
def test_every_dependency_has_wheels_for_both_architectures() -> None:
    result = subprocess.run([sys.executable, str(RECIPE / "wheels.py")], capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    for architecture in ("x86_64", "aarch64"):
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{architecture}:"))
        assert all(f"{name}-" in line for name in ("onnxruntime", "numpy", "grpcio", "protobuf", "tokenizers", "pillow")), line


@pytest.fixture(scope="module")
def built() -> Path:
    """Build into dist/ and return that."""
    if not IN_CHECKOUT:
        pytest.skip("the suite runs against a wheel: the binary is built out of the repository's own folders")
    subprocess.run([sys.executable, str(RECIPE / "build.py")], check=True, timeout=1800)
    return ROOT / "dist"


@pytest.fixture
def unpacked(built: Path, tmp_path: Path) -> Path:
    """Unpack the tarball into a folder that nobody may write to."""
    tarball = next(built.glob(f"heron-client-*-linux-{platform.machine()}.tar.xz"))
    with tarfile.open(tarball) as archive:
        archive.extractall(tmp_path / "read-only", filter="data")
    subprocess.run(["chmod", "-R", "a-w", str(tmp_path / "read-only")], check=True)
    return tmp_path / "read-only" / "heron-client"


@pytest.mark.slow
def test_both_binaries_are_small_and_hold_nothing_of_the_server(built: Path, unpacked: Path) -> None:
    sums = [path.read_text() for path in built.glob(f"heron-client-*-linux-{platform.machine()}*.sha256")]
    assert len(sums) == 2
    for digest, name in (text.split() for text in sums):
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == digest
        assert (built / name).stat().st_size <= FLOOR_BYTES
    modules = (unpacked / "CONTENTS.txt").read_text().splitlines()
    assert "heron_client.cli" in modules and "numpy" in modules
    names = [*modules, *(path.name for path in (unpacked / "libraries").iterdir())]
    assert not [name for name in names if re.split(r"[./-]", name)[0] in SERVER_ONLY]
    assert "onnxruntime" in (unpacked / "LICENCES.txt").read_text() and any((unpacked / "licences").glob("numpy-*"))


@pytest.mark.slow
@pytest.mark.parametrize("one_file", [False, True])
def test_a_binary_takes_part_in_a_whole_run_in_an_empty_environment(cluster: Cluster, built: Path, unpacked: Path, one_file: bool) -> None:
    source = open_source("digits:train")
    np.savez(cluster.directory / "digits.npz", x=source.inputs.read(source.rows), y=source.labels.read(source.rows))
    server = cluster.server(clients=1, rounds=2, local_steps=2)
    executable = (
        next(path for path in built.glob(f"heron-client-*-linux-{platform.machine()}") if path.is_file())
        if one_file
        else unpacked / "heron-client"
    )
    (cluster.directory / "home").mkdir()
    common = ["--server", cluster.address, "--data", f"npz:{cluster.directory / 'digits.npz'}", "--name", "bare"]
    empty = ["/usr/bin/env", "-i", "PATH=/nonexistent", f"HOME={cluster.directory / 'home'}", str(executable), *common]
    checked = cluster.start_command("checked", [*empty, "--self-check", "--memory-limit", "150MB"])
    assert wait_for_exit(checked) == ExitCode.OK, log_of(checked)
    client = cluster.start_command("bare", empty)
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0], log_of(client)
    assert cluster.summary()["clients"]["bare"]["rounds_completed"] == 2
    refused = cluster.start_command("refused", [*empty, "--tls-dir", "/nonexistent"])
    assert wait_for_exit(refused) == ExitCode.CONFIGURATION and "is missing" in log_of(refused) and "Traceback" not in log_of(refused)
