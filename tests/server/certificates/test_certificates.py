"""The authority: what it writes, who may read it, what is revoked; and what a server makes of its list."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from pathlib import Path

import pytest
from cryptography import x509

from heron_cli.cli import main
from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError, RefusedError, StorageError
from heron_common.exit_codes import ExitCode
from heron_common.files.directory_lock import DirectoryLock
from heron_common.files.tls_directory import TlsRole
from heron_server.certificates.admission import LOG_INTERVAL_SECONDS, Admission
from heron_server.certificates.authority import Authority
from heron_server.certificates.presented import PresentedCertificate, read_presented
from heron_server.certificates.revocation import RevocationList
from tests.harness.certificates import DAY, at, issued


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def serial_of(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "device.pem").read_bytes()).serial_number


def test_keys_and_folders_are_for_the_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        authority = Authority.create(tmp_path / "authority", [])
        folder = issued(authority, "bed-1")
    finally:
        os.umask(before)
    keys = sorted(tmp_path.rglob("*-key.pem"))
    assert [key.name for key in keys] == ["ca-key.pem", "device-key.pem", "server-key.pem"]
    assert {mode(key) for key in keys} == {0o600}
    assert {mode(path) for path in (authority.directory, authority.server_directory, folder)} == {0o700}


def test_folders_hold_what_their_side_needs_and_no_more(authority: Authority) -> None:
    assert {path.name for path in issued(authority, "bed-1").iterdir()} == {"ca.pem", "device.pem", "device-key.pem"}
    assert {path.name for path in authority.server_directory.iterdir()} == {"ca.pem", "server.pem", "server-key.pem", "revoked.pem"}


def test_each_side_has_its_purpose_and_its_names(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", ["trainer.local", "10.0.0.5", "[2001:db8::1]"])
    server = x509.load_pem_x509_certificate((authority.server_directory / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["trainer.local", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "2001:db8::1", "127.0.0.1", "::1"]
    device = read_presented((issued(authority, "bed-1") / "device.pem").read_bytes())
    assert (device.name, device.serial) == ("bed-1", serial_of(authority.device_directory("bed-1")))
    # The server's certificate names no device, even if it were let in.
    assert read_presented((authority.server_directory / "server.pem").read_bytes()).name == ""


@pytest.mark.parametrize("host", ["", "a b", "host:50051", "a/b", "naïve"])
def test_a_host_is_a_name_or_an_address(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--host is a name or an IP address"):
        Authority.create(tmp_path / "authority", [host])
    assert not (tmp_path / "authority").exists()


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 101])
def test_a_device_is_called_as_a_client_may_be(authority: Authority, name: str) -> None:
    with pytest.raises(ConfigurationError, match="a client name is"):
        authority.issue(name)


def test_an_authority_is_made_once(authority: Authority) -> None:
    key = (authority.directory / "ca-key.pem").read_bytes()
    with pytest.raises(ConfigurationError, match="holds an authority already"):
        Authority.create(authority.directory, [])
    assert (authority.directory / "ca-key.pem").read_bytes() == key


def test_what_is_no_authority_or_a_damaged_one_is_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no authority: make one with `heron certs init"):
        Authority(tmp_path / "nowhere")
    (authority.directory / "issued.json").write_text("{}")
    with pytest.raises(StorageError, match=r"issued\.json cannot be read"):
        authority.issue("bed-1")
    other = Authority.create(tmp_path / "other", [])
    (authority.directory / "ca-key.pem").write_bytes((other.directory / "ca-key.pem").read_bytes())
    with pytest.raises(StorageError, match="is not the key of"):
        Authority(authority.directory)


def test_two_commands_at_once_do_not_write_over_each_other(authority: Authority) -> None:
    lock = DirectoryLock(authority.directory, "heron certs", "")
    try:
        with pytest.raises(ConfigurationError, match="another heron certs is using"):
            authority.issue("bed-1")
    finally:
        lock.close()


def test_issuing_again_gives_another_serial_and_revoking_takes_all(authority: Authority) -> None:
    first, second = authority.issue("bed-1"), authority.issue("bed-1")
    other = authority.issue("bed-2")
    assert first.serial != second.serial == serial_of(authority.device_directory("bed-1"))
    assert {i.serial for i in authority.revoke("bed-1")} == {first.serial, second.serial}
    revoked = RevocationList(authority.server_directory / "revoked.pem", (authority.directory / "ca.pem").read_bytes())
    assert [revoked.is_revoked(i.serial) for i in (first, second, other)] == [True, True, False]
    # A new certificate for a revoked name is good until it is revoked too; the day of the first revocation stays.
    third = authority.issue("bed-1")
    assert not revoked.is_revoked(third.serial)
    days = {i.serial: i.revoked_at for i in authority.record.certificates}
    assert {i.serial for i in at(authority, DAY).revoke("bed-1")} == {first.serial, second.serial, third.serial}
    assert revoked.is_revoked(third.serial)
    assert authority.record.certificates[1].revoked_at == days[first.serial]
    with pytest.raises(ConfigurationError, match="no certificate was issued to 'bed-3': devices are bed-1, bed-2"):
        authority.revoke("bed-3")


def test_the_servers_certificate_is_renewed_for_the_same_hosts_or_others(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", ["a.local"])
    assert authority.issue_server([]).hosts[0] == "a.local"
    assert authority.issue_server(["b.local"]).hosts[0] == "b.local"
    assert authority.issue_server([]).hosts[0] == "b.local"
    assert len(authority.record.of(TlsRole.SERVER)) == 4


# ---- the list, as a server holds it -----------------------------------------------------------------------------------------------------


def held(authority: Authority) -> RevocationList:
    return RevocationList(authority.server_directory / "revoked.pem", (authority.directory / "ca.pem").read_bytes())


@pytest.mark.parametrize("content", [None, b"", b"nothing", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_without_a_good_list_a_server_does_not_start(authority: Authority, content: bytes | None) -> None:
    path = authority.server_directory / "revoked.pem"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="without a list of revoked certificates nobody is let in"):
        held(authority)


def test_a_worse_list_is_reported_once_and_not_taken(authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = authority.issue("good").serial, authority.issue("bad").serial
    path = authority.server_directory / "revoked.pem"
    old = path.read_bytes()
    authority.revoke("bad")
    new, revoked = path.read_bytes(), held(authority)
    other = Authority.create(tmp_path / "other", [])
    other.issue("good")
    other.revoke("good")
    forged = (other.server_directory / "revoked.pem").read_bytes()
    for content in (b"", new[: len(new) // 2], forged, old, None):
        path.unlink() if content is None else path.write_bytes(content)
        caplog.clear()
        for _ in range(3):
            assert revoked.is_revoked(bad) and not revoked.is_revoked(good)
        assert [record.levelno for record in caplog.records] == [logging.ERROR], content
    authority.revoke("good")
    assert revoked.is_revoked(good)


def test_the_list_of_another_authority_is_no_list_to_start_with(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", [])
    with pytest.raises(ConfigurationError, match="it was not signed by this CA"):
        RevocationList(other.server_directory / "revoked.pem", (authority.directory / "ca.pem").read_bytes())


# ---- admission ----------------------------------------------------------------------------------------------------------------------------


def test_admission_refuses_with_a_code_and_says_who_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    admission = Admission({7}.__contains__, lambda: now)
    admission.check(PresentedCertificate("bed-1", 1, 1001.0), "Join")
    cases = {
        ErrorCode.CERTIFICATE_REVOKED: PresentedCertificate("bed-7", 7, 2000.0),
        ErrorCode.CERTIFICATE_EXPIRED: PresentedCertificate("bed-2", 2, 999.0),
        ErrorCode.IDENTITY_MISMATCH: PresentedCertificate("", 3, 2000.0),
    }
    for code, presented in cases.items():
        for _ in range(3):
            with pytest.raises(RefusedError) as caught:
                admission.check(presented, "Join")
            assert caught.value.code is code and "`heron certs issue" in caught.value.sentence
    with pytest.raises(RefusedError):
        admission.check(None, "Join")
    lines = [vars(record) for record in caplog.records]
    assert [(line["client"], line["serial"]) for line in lines] == [("bed-7", "7"), ("bed-2", "2"), ("", "3"), ("", "0")]
    now += LOG_INTERVAL_SECONDS
    with pytest.raises(RefusedError):
        admission.check(cases[ErrorCode.CERTIFICATE_REVOKED], "Join")
    assert len(caplog.records) == 5


# ---- the command --------------------------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["certs", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verbs_do_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "authority"
    at_it = ("--dir", str(directory))
    code, out, _ = run(capsys, "init", "--host", "trainer.local", "10.0.0.5", *at_it)
    assert code == ExitCode.OK and f"--tls-dir {directory / 'server'}" in out
    code, out, _ = run(capsys, "issue", "bed-1", "--days", "10", *at_it)
    assert code == ExitCode.OK and str(directory / "devices" / "bed-1") in out and "earlier" not in out
    assert "An earlier certificate of bed-1 is still good" in run(capsys, "issue", "bed-1", *at_it)[1]
    code, out, _ = run(capsys, "revoke", "bed-1", *at_it)
    assert code == ExitCode.OK and "2 certificates of bed-1 revoked" in out and str(directory / "server" / "revoked.pem") in out
    assert "trainer.local, 10.0.0.5" in run(capsys, "server", *at_it)[1]
    at(Authority(directory), -500 * DAY).issue("old")
    code, out, _ = run(capsys, "list", *at_it)
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("trainer.local", "server", "valid"),
        ("bed-1", "device", "revoked"),
        ("bed-1", "device", "revoked"),
        ("trainer.local", "server", "valid"),
        ("old", "device", "expired"),
    ]
    assert rows[1][2] == time.strftime("%Y-%m-%d", time.gmtime(time.time() + 10 * DAY))
    assert [int(row[4], 16) for row in rows] == [
        int(i["serial"], 16) for i in json.loads((directory / "issued.json").read_text())["certificates"]
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["issue", "bed-1"], "holds no authority"),
        (["revoke", "bed-1"], "holds no authority"),
        (["list"], "holds no authority"),
        (["init", "--host", "a", "--days", "0"], "more than 0 days"),
    ],
)
def test_the_verbs_refuse_in_one_sentence(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *words, "--dir", str(tmp_path / "none"))
    assert code == ExitCode.CONFIGURATION and sentence in err and err.startswith("heron certs: ") and err.count("\n") == 1
