"""A `--tls-dir` is proved before anything is sent: every way in which it can be wrong has a sentence of its own."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from heron_common.errors import ConfigurationError
from heron_common.files.tls_directory import EXPIRY_WARNING_SECONDS, Credentials, TlsRole, read_credentials
from heron_server.certificates.authority import Authority
from tests.harness.certificates import DAY, at, issued, mixed


def read(folder: Path, role: TlsRole = TlsRole.DEVICE, days: float = 0.0) -> Credentials:
    return read_credentials(folder, role, time.time() + days * DAY)


def refusal(folder: Path, role: TlsRole = TlsRole.DEVICE, days: float = 0.0) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, role, days)
    return str(caught.value)


def test_what_an_authority_issues_passes_and_says_whose_it_is(authority: Authority) -> None:
    device = read(issued(authority, "bed_1.ward-2"))
    assert device.names == ("bed_1.ward-2",) and device.warnings == ()
    assert abs(device.not_after - time.time() - 365 * DAY) < 60
    server = read(authority.server_directory, TlsRole.SERVER)
    assert server.names == ("localhost",) and server.warnings == ()
    assert "BEGIN" not in repr(server)


def test_a_name_longer_than_a_common_name_may_be_is_whole(authority: Authority) -> None:
    assert read(issued(authority, "x" * 100)).names == ("x" * 100,)


@pytest.mark.parametrize("name", ["ca.pem", "device.pem", "device-key.pem"])
def test_a_missing_file_is_named_and_where_it_comes_from(authority: Authority, name: str) -> None:
    folder = issued(authority, "bed-1")
    (folder / name).unlink()
    assert refusal(folder) == f"{folder / name} is missing: copy the folder that `heron certs issue NAME` wrote"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ca.pem", "is not a certificate in PEM"),
        ("device.pem", "are not a certificate and a key"),
        ("device-key.pem", "are not a certificate and a key"),
    ],
)
def test_a_damaged_file_is_named(authority: Authority, name: str, sentence: str) -> None:
    folder = issued(authority, "bed-1")
    for content in (b"", b"nothing", (folder / name).read_bytes()[:60]):
        (folder / name).write_bytes(content)
        message = refusal(folder)
        assert sentence in message and str(folder / name) in message


def test_a_key_with_a_password_asks_nobody(authority: Authority) -> None:
    folder = issued(authority, "bed-1")
    key = serialization.load_pem_private_key((folder / "device-key.pem").read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    locked = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (folder / "device-key.pem").write_bytes(locked)
    assert "without a password" in refusal(folder)


def test_the_key_of_another_is_told_from_a_damaged_one(authority: Authority, tmp_path: Path) -> None:
    folder = mixed(tmp_path / "mixed", issued(authority, "bed-1"), device_key=issued(authority, "bed-2") / "device-key.pem")
    assert f"{folder / 'device-key.pem'} is not the key of {folder / 'device.pem'}" in refusal(folder)


def test_the_ca_of_another_authority_is_told(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", [])
    folder = mixed(tmp_path / "mixed", issued(authority, "bed-1"), ca=other.directory / "ca.pem")
    assert f"{folder / 'device.pem'} was not issued by the CA in {folder / 'ca.pem'}" in refusal(folder)
    server = mixed(tmp_path / "server", authority.server_directory, ca=other.directory / "ca.pem")
    assert "was not issued by the CA" in refusal(server, TlsRole.SERVER)


def test_a_certificate_serves_one_side_only(authority: Authority, tmp_path: Path) -> None:
    device = issued(authority, "bed-1")
    posing = tmp_path / "posing"
    shutil.copytree(authority.server_directory, posing)
    shutil.copy(device / "device.pem", posing / "server.pem")
    shutil.copy(device / "device-key.pem", posing / "server-key.pem")
    assert "is not the certificate of a server" in refusal(posing, TlsRole.SERVER)
    of_server = {"device": authority.server_directory / "server.pem", "device_key": authority.server_directory / "server-key.pem"}
    assert "is not the certificate of a device" in refusal(mixed(tmp_path / "device", device, **of_server))


def test_dates_are_named(authority: Authority) -> None:
    folder = issued(authority, "bed-1")
    day = time.strftime("%Y-%m-%d", time.gmtime(read(folder).not_after))
    assert f"expired on {day}: ask for a new one: `heron certs issue NAME`" in refusal(folder, days=366)
    assert "is not valid before" in refusal(folder, days=-1) and "set the clock" in refusal(folder, days=-1)
    assert "expired on" in refusal(authority.server_directory, TlsRole.SERVER, 366)


def test_a_certificate_does_not_outlive_its_authority(authority: Authority) -> None:
    at(authority, 3650 * DAY).issue("bed-1", days=300)
    assert abs(authority.record.certificates[-1].not_after - time.time() - 3652.5 * DAY) < 60


def test_a_ca_that_has_expired_is_told_from_its_certificates(authority: Authority) -> None:
    folder = issued(authority, "bed-1")
    # The same CA by key and name, with a shorter life than what it signed.
    own, start = Authority(authority.directory)._issuer, datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(own.certificate.subject).issuer_name(own.certificate.subject).serial_number(1)
    builder = builder.public_key(own.key.public_key()).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=9))
    for extension in own.certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    (folder / "ca.pem").write_bytes(builder.sign(own.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    assert read(folder, days=8).names == ("bed-1",)
    assert f"{folder / 'ca.pem'} expired on" in refusal(folder, days=10)


def test_expiry_is_announced_a_month_before(authority: Authority) -> None:
    folder = issued(authority, "bed-1")
    left = EXPIRY_WARNING_SECONDS / DAY
    assert read(folder, days=365 - left - 1).warnings == ()
    (warning,) = read(folder, days=365 - left + 1).warnings
    assert "expires on" in warning and "in 28 days" in warning and "`heron certs issue NAME`" in warning


def test_a_key_that_others_can_read_is_a_warning(authority: Authority) -> None:
    key = issued(authority, "bed-1") / "device-key.pem"
    key.chmod(0o640)
    (warning,) = read(key.parent).warnings
    assert "mode 0640" in warning and f"chmod 600 {key}" in warning


@pytest.mark.parametrize("role", list(TlsRole))
def test_the_authoritys_own_directory_is_refused(authority: Authority, role: TlsRole) -> None:
    message = refusal(authority.directory, role)
    assert "holds the authority's private key" in message and str(authority.directory / role.value[:6]) in message


@pytest.mark.process
def test_a_client_without_tls_loads_none_of_it() -> None:
    script = (
        "import sys, heron_client.cli, heron_client.app, heron_client.config, heron_client.device.data_check\n"
        "heron_client.config.parse_config(['--server', '127.0.0.1:1', '--data', 'digits:train'], {})\n"
        "print([n for n in ('heron_common.files.tls_directory', 'heron_client.network.handshake', 'cryptography') if n in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip() == "[]"
