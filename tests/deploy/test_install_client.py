"""The install script into a scratch root, and over stand-ins for ssh and scp that run on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from heron_client.config import parse_config
from heron_server.certificates.authority import Authority
from tests.deploy.programs import DEPLOY, program, run

SCRIPT = DEPLOY / "install-client.sh"
CURRENT = "opt/heron-client/current/heron-client"


def tarball(path: Path, version: str, names: tuple[str, ...] = ("heron-client/heron-client", "heron-client/library.so")) -> Path:
    """Write a client's tarball whose program says its version, and its digest beside it."""
    with tarfile.open(path, "w:xz") as archive:
        for name in names:
            content = f"#!/bin/sh\necho {version}\n".encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name.endswith("heron-client") else 0o600
            archive.addfile(entry, io.BytesIO(content))
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return tarball(tmp_path / "heron-client-1.tar.xz", "one")


@pytest.fixture
def devices(authority: Authority) -> Path:
    for name in ("bed-1", "bed-2"):
        authority.issue(name)
    return authority.device_directory("bed-1").parent


@pytest.fixture
def remote(tmp_path: Path) -> dict[str, str]:
    """An environment whose ssh and scp know every host, and that host is this machine; bed-9 is away."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ssh").write_text('#!/bin/sh\n[ "$1" != bed-9 ] || exit 255\nshift\nexec sh -c "$*"\n')
    (tools / "scp").write_text('#!/bin/sh\nexec cp -r "$3" "${4#*:}"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}


def install(
    binary: Path,
    bundle: Path,
    root: Path,
    *more: str,
    data: str = "csv:/srv/my data.csv:*:label",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    words = ["--binary", binary, "--bundle", bundle, "--server", "trainer.local:50051", "--data", data, "--root", root, *more]
    return run("sh", SCRIPT, *words, environment=environment)


def contents(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return bytes, mode and time of every file."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_the_scripts_are_clean() -> None:
    checked = run(program("shellcheck", "shellcheck"), SCRIPT, DEPLOY.parent / ".ci" / "run")
    assert checked.returncode == 0, checked.stdout


def test_an_installation_has_what_the_unit_names(binary: Path, devices: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    result = install(binary, devices / "bed-1", root)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    unit = (root / "etc/systemd/system/heron-client.service").read_text()
    assert unit == (DEPLOY / "systemd/heron-client.service").read_text()
    assert f"ExecStart=/{CURRENT}\n" in unit and "EnvironmentFile=/etc/heron-client/client.env\n" in unit
    assert run(root / CURRENT).stdout == "one\n"
    found = contents(root)
    assert {name: mode for name, (_, mode, _) in found.items() if name.startswith("etc/heron-client/tls")} == {
        f"etc/heron-client/tls/{name}.pem": 0o600 for name in ("ca", "device", "device-key")
    }
    assert found["etc/heron-client/tls/device-key.pem"][0] == (devices / "bed-1/device-key.pem").read_bytes()
    # Programs are for the service's user too, whatever modes the tarball has; the certificate's folder is not.
    assert stat.S_IMODE((root / CURRENT).with_name("library.so").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "opt/heron-client").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "etc/heron-client/tls").stat().st_mode) == 0o700


def test_the_options_it_writes_are_a_configuration_of_the_client(binary: Path, devices: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert install(binary, devices / "bed-1", root).returncode == 0
    lines = [line for line in (root / "etc/heron-client/client.env").read_text().splitlines() if not line.startswith("#")]
    environment = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    environment["HERON_CLIENT_TLS_DIR"] = str(root) + environment["HERON_CLIENT_TLS_DIR"]
    config = parse_config([], environment)
    assert (config.server, config.data, config.name) == ("trainer.local:50051", "csv:/srv/my data.csv:*:label", "bed-1")


def test_a_second_time_changes_nothing_and_an_upgrade_only_what_differs(binary: Path, devices: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert install(binary, devices / "bed-1", root).stdout.startswith("installed ")
    before = contents(root)
    assert install(binary, devices / "bed-1", root).stdout.startswith("unchanged ")
    assert contents(root) == before
    (root / "etc/heron-client/local.env").write_text("HERON_CLIENT_THREADS=2\n")
    for version in ("two", "three"):
        newer = tarball(tmp_path / f"heron-client-{version}.tar.xz", version)
        assert install(newer, devices / "bed-1", root).stdout.startswith("installed ")
        assert run(root / CURRENT).stdout == f"{version}\n"
    after = contents(root)
    assert {name for name in before if name.startswith("etc/") and after[name] != before[name]} == set()
    assert (root / "etc/heron-client/local.env").read_text() == "HERON_CLIENT_THREADS=2\n"
    # The present release and the one before.
    assert {run(path).stdout for path in root.glob("opt/heron-client/releases/*/heron-client/heron-client")} == {"two\n", "three\n"}


def test_every_device_of_a_fleet_gets_its_own_certificate(binary: Path, devices: Path, tmp_path: Path, remote: dict[str, str]) -> None:
    for number in (1, 2):
        root = tmp_path / f"root-{number}"
        result = install(binary, devices, root, "--host", f"pi@bed-{number}", environment=remote)
        assert result.returncode == 0 and result.stdout.startswith(f"pi@bed-{number}: installed "), result.stderr
        assert (root / "etc/heron-client/tls/device.pem").read_bytes() == (devices / f"bed-{number}/device.pem").read_bytes()
    assert not list(tmp_path.glob("tmp.*")), "staged secrets were left behind"


def test_a_device_that_is_away_does_not_keep_the_others_waiting(
    binary: Path, devices: Path, tmp_path: Path, authority: Authority, remote: dict[str, str]
) -> None:
    authority.issue("bed-9")
    result = install(binary, devices, tmp_path / "root", "--host", "bed-9", "bed-2", "bed-3", environment=remote)
    assert result.returncode == 1
    assert "bed-2: installed " in result.stdout
    assert "bed-9: failed" in result.stderr and "has no folder for bed-3: heron certs issue bed-3" in result.stderr
    assert result.stderr.rstrip().endswith("not installed on bed-9 bed-3: the reason is above; repeat the command for these")
    assert not list(tmp_path.glob("tmp.*"))


def test_what_is_damaged_on_the_way_is_not_installed(binary: Path, devices: Path, tmp_path: Path, remote: dict[str, str]) -> None:
    scp = tmp_path / "tools/scp"
    scp.write_text(scp.read_text().replace("exec cp", "cp") + 'printf x >>"${4#*:}/heron-client.tar"\n')
    result = install(binary, devices, tmp_path / "root", "--host", "bed-1", environment=remote)
    assert result.returncode == 1 and "what arrived is not what was sent" in result.stderr
    assert not (tmp_path / "root").exists()


def test_no_secret_is_printed(binary: Path, devices: Path, tmp_path: Path) -> None:
    words = ["--binary", binary, "--bundle", devices / "bed-1", "--server", "s:1", "--data", "digits:train", "--root", tmp_path / "root"]
    # Traced, which is how one would look for what goes wrong.
    result = run("sh", "-x", SCRIPT, *words)
    key = (devices / "bed-1/device-key.pem").read_text().splitlines()[1]
    assert result.returncode == 0 and key not in result.stdout + result.stderr


def test_what_is_wrong_is_said_before_anything_is_installed(binary: Path, devices: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    stray = tarball(tmp_path / "stray.tar.xz", "x", ("heron-client/heron-client", "heron-client/../../etc/passwd"))
    empty = tarball(tmp_path / "empty.tar.xz", "x", ("heron-client/readme",))
    altered = tarball(tmp_path / "altered.tar.xz", "x")
    altered.write_bytes(altered.read_bytes() + b"x")
    unsigned = tarball(tmp_path / "unsigned.tar.xz", "x")
    unsigned.with_name("unsigned.tar.xz.sha256").unlink()
    for wrong, sentence in (
        (install(stray, devices / "bed-1", root), "files outside of heron-client/"),
        (install(empty, devices / "bed-1", root), "has no heron-client/heron-client"),
        (install(altered, devices / "bed-1", root), "fetch it again"),
        (install(unsigned, devices / "bed-1", root), "sha256sum TARBALL"),
        (install(binary, tmp_path, root), "heron certs issue"),
        (install(binary, devices / "bed-1", root, "--host", "bed-1", "bed-2"), "each needs its own"),
        (install(binary, devices / "bed-1", root, data='csv:"x"'), "HERON_CLIENT_DATA may hold neither"),
        (install(binary, devices, root, "--host", "-oProxyCommand=x"), "--host is a name"),
        (install(binary, devices, Path("relative")), "--root is an absolute path"),
        (install(binary, devices, root, "--wrong"), "unknown option --wrong"),
        (run("sh", SCRIPT, "--binary", binary), "--bundle is missing"),
    ):
        assert wrong.returncode != 0 and sentence in wrong.stderr, (sentence, wrong.stderr)
    assert not root.exists()
