"""The systemd units: understood by systemd, hardened to a stated exposure, and of one mind with the exit codes and options of the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from heron_client.config import parse_config
from heron_common.exit_codes import EXIT_HELP, PERMANENT, ExitCode
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import OptionSource, read_options, sections_of
from tests.deploy.programs import DEPLOY, program, run

UNITS = ("heron-client.service", "heron-server.service")
MOST_EXPOSED = 2.0
"""Of systemd's scale from 0 to 10, on which a service without hardening has 9.6; 2 and less it calls OK."""

_BASE = ("sysinit", "basic", "network-online", "multi-user", "shutdown", "network", "local-fs")
_HELPED_BY_A_RESTART = {ExitCode.FAILURE, ExitCode.UNREACHABLE, ExitCode.STORAGE, ExitCode.CLOCK, ExitCode.FORCED}


def settings(unit: str) -> list[tuple[str, str]]:
    lines = (DEPLOY / "systemd" / unit).read_text().splitlines()
    return [(name, value) for name, _, value in (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))]


def scratch_root(tmp_path: Path, unit: str, text: str) -> Path:
    """Return a root with the unit, the targets that it names, and its program."""
    system = tmp_path / "usr/lib/systemd/system"
    system.mkdir(parents=True)
    for name in _BASE:
        shutil.copy(Path("/lib/systemd/system") / f"{name}.target", system)
    (system / unit).write_text(text)
    executable = tmp_path / dict(settings(unit))["ExecStart"].split()[0].lstrip("/")
    executable.parent.mkdir(parents=True)
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    text = (DEPLOY / "systemd" / unit).read_text()
    result = run(analyze, "verify", f"--root={scratch_root(tmp_path / 'right', unit, text)}", unit)
    assert (result.returncode, result.stderr) == (0, "")
    # It says what it ignores, but does not fail on it.
    wrong = run(analyze, "verify", f"--root={scratch_root(tmp_path / 'wrong', unit, text.replace('ProtectHome=', 'ProtectHomes='))}", unit)
    assert "Unknown key" in wrong.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_the_exposure_is_what_the_documentation_promises(unit: str, tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    text = (DEPLOY / "systemd" / unit).read_text()
    root = scratch_root(tmp_path, unit, text)
    result = run(analyze, "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}", f"--root={root}", unit)
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"Overall exposure level for \S+ ([\d.]+)", result.stdout)
    assert found and float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", UNITS)
def test_what_a_restart_does_not_help_is_not_restarted(unit: str) -> None:
    found = dict(settings(unit))
    assert found["Restart"] == "on-failure"
    *codes, signal = found["RestartPreventExitStatus"].split()
    prevented = {ExitCode(int(code)) for code in codes}
    assert signal == "SIGILL" and prevented == set(PERMANENT) == set(ExitCode) - _HELPED_BY_A_RESTART - {ExitCode.OK}
    assert all(code in prevented for code, text in EXIT_HELP.items() if "restarting changes nothing" in text)
    assert not any(code in prevented for code, text in EXIT_HELP.items() if "a restart may help" in text)


def test_the_clients_unit_bounds_its_memory_and_needs_no_swap() -> None:
    found = dict(settings("heron-client.service"))
    assert found["MemoryMax"].endswith("M") and found["MemorySwapMax"] == "0"


def test_variables_and_flags_of_the_units_are_options_of_the_programs() -> None:
    client = [value.partition("=")[::2] for name, value in settings("heron-client.service") if name == "Environment"]
    config = parse_config(["--server", "127.0.0.1:1", "--data", "digits:train"], dict(client))
    assert str(config.state_dir) == "/var/lib/heron-client"
    server = dict(value.partition("=")[::2] for name, value in settings("heron-server.service") if name == "Environment")
    known = {f"HERON_SERVER_{name.upper()}" for section in sections_of(ServerConfig).values() for name in section.model_fields}
    assert {name for name in server if name.startswith("HERON_")} <= known | {"HERON_SERVER_CONFIG"}
    words = dict(settings("heron-server.service"))["ExecStart"].split()[1:]
    del server["HERON_SERVER_CONFIG"]
    read = read_options(
        ServerConfig, OptionSource("heron-server", "", environment_prefix="HERON_SERVER_", version="0"), arguments=words, environment=server
    )
    assert read.network.resume_if_begun and str(read.run.run_dir) == "/var/lib/heron-server/run"
