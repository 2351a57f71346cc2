"""The client's options: defaults, environment, all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from heron_client.config import default_name, default_state_dir, parse_config
from heron_client.network.tls import warn_of_transport
from heron_client.state_directory import StateDirectory
from heron_client.training.runtime import check_reference
from heron_common.data.partition import Partition, PartitionKind, Shard
from heron_common.errors import ConfigurationError, ProgramError
from heron_common.files.tls_directory import Credentials
from heron_common.specification.model_spec import MAX_PROGRAM_BYTES, BlobReference, ProgramKind, ProgramReference
from heron_server.certificates.authority import Authority

GOOD = ["--server", "127.0.0.1:50051", "--data", "digits:train"]


def test_the_name_defaults_to_host_and_shard() -> None:
    config = parse_config([*GOOD, "--shard", "2/4"], {})
    assert config.name.endswith("-shard-2-of-4")
    assert config.name == default_name(Shard(2, 4))
    assert config.state_dir.name == config.name


def test_flags_beat_the_environment() -> None:
    environment = {"HERON_CLIENT_NAME": "from-environment", "HERON_CLIENT_THREADS": "3"}
    config = parse_config([*GOOD, "--name", "from-flag"], environment)
    assert (config.name, config.threads) == ("from-flag", 3)


def test_a_partition_comes_from_flag_or_environment_and_is_iid_otherwise() -> None:
    dirichlet = Partition(PartitionKind.DIRICHLET, 0.5)
    assert parse_config(GOOD, {}).partition == Partition(PartitionKind.IID)
    assert parse_config([*GOOD, "--partition", "dirichlet:0.5"], {}).partition == dirichlet
    assert parse_config(GOOD, {"HERON_CLIENT_PARTITION": "dirichlet:0.5"}).partition == dirichlet


def test_every_mistake_comes_in_one_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(
            ["--server", "nowhere", "--shard", "4/4", "--name", "a/b", "--threads", "0", "--log-level", "loud", "--partition", "labels:0"],
            {},
        )
    for part in (
        "--server is host:port",
        "--data is missing",
        "--shard",
        "--partition: a partition is written iid",
        "--name",
        "--threads",
        "--log-level",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("server", ["10.0.0.5:50051", "trainer.local:50051", "[2001:db8::1]:9", "0.0.0.0:1"])
def test_a_server_beyond_loopback_needs_tls_or_insecure(server: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--tls-dir .* or --insecure") as caught:
        parse_config(["--server", server, "--data", "digits:train"], {})
    assert server in str(caught.value)
    given = ["--server", server, "--data", "digits:train"]
    assert parse_config([*given, "--insecure"], {}).insecure
    assert parse_config(given, {"HERON_CLIENT_INSECURE": "yes"}).insecure


@pytest.mark.parametrize("server", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"])
def test_a_server_on_this_machine_needs_no_consent(server: str) -> None:
    config = parse_config(["--server", server, "--data", "digits:train"], {})
    assert config.credentials is None and not config.insecure


def way(given: list[str]) -> tuple[str, Credentials | None]:
    config = parse_config(given, {})
    return config.server, config.credentials


def test_the_way_to_the_server_is_worth_a_warning_in_clear_or_with_a_certificate_near_its_end(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    given = ["--server", "trainer.local:1", "--data", "digits:train"]
    authority.issue("bed-1", days=300)
    folder = authority.device_directory("bed-1")
    for quiet in (GOOD, [*GOOD, "--insecure"], [*given, "--tls-dir", str(folder)]):
        warn_of_transport(*way(quiet))
    assert caplog.records == []
    authority.issue("bed-1", days=20)
    for loud, sentence in (([*given, "--insecure"], "travel in clear"), ([*given, "--tls-dir", str(folder)], "expires on")):
        caplog.clear()
        warn_of_transport(*way(loud))
        assert sentence in caplog.text and len(caplog.records) == 1


def test_metrics_are_for_this_machine_unless_told_otherwise() -> None:
    assert parse_config(GOOD, {}).metrics_host == "127.0.0.1"


def test_the_name_comes_from_the_certificate_alone(authority: Authority) -> None:
    authority.issue("bed-1")
    given = ["--server", "trainer.local:1", "--data", "digits:train", "--tls-dir", str(authority.device_directory("bed-1"))]
    config = parse_config([*given, "--shard", "2/4"], {})
    assert config.name == config.state_dir.name == "bed-1" and config.credentials is not None
    assert "BEGIN" not in repr(config)
    assert parse_config([*given, "--name", "bed-1"], {}).name == "bed-1"
    for arguments, environment in (([*given, "--name", "bed-2"], {}), (given, {"HERON_CLIENT_NAME": "bed-2"})):
        with pytest.raises(ConfigurationError, match=r"(--name|HERON_CLIENT_NAME) is 'bed-2', but the certificate .* is for 'bed-1'"):
            parse_config(arguments, environment)


def test_what_is_wrong_with_tls_comes_with_the_other_mistakes(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(["--server", "trainer.local:1", "--tls-dir", str(tmp_path / "none"), "--insecure"], {})
    for part in ("--data is missing", "ca.pem is missing: copy the folder", "--tls-dir and --insecure contradict"):
        assert part in str(caught.value)


def test_ipv6_servers_are_written_in_brackets() -> None:
    assert parse_config(["--server", "[::1]:50051", "--data", "digits:train"], {}).server == "[::1]:50051"


def test_state_lives_where_the_desktop_convention_puts_it() -> None:
    assert default_state_dir("a", {"XDG_STATE_HOME": "/somewhere"}) == Path("/somewhere/heron-client/a")


def test_a_client_keeps_its_identity_and_nobody_shares_it(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path, "a")
    with pytest.raises(ConfigurationError, match="another heron-client is using"):
        StateDirectory(tmp_path, "a")
    first.close()
    second = StateDirectory(tmp_path, "a")
    assert second.identity_key == first.identity_key
    second.close()
    with pytest.raises(ConfigurationError, match="belongs to client 'a'"):
        StateDirectory(tmp_path, "b")


def test_a_damaged_cached_program_is_not_used(tmp_path: Path) -> None:
    import hashlib

    state = StateDirectory(tmp_path, "a")
    blob = BlobReference(hashlib.sha256(b"program").hexdigest(), 7)
    assert state.cached_program(blob) is None
    state.keep_program(blob, b"program")
    assert state.cached_program(blob) == b"program"
    (tmp_path / "programs" / f"{blob.sha256}.onnx").write_bytes(b"progrBm")
    assert state.cached_program(blob) is None
    state.close()


def test_a_program_is_refused_by_what_is_said_of_it_before_it_is_fetched() -> None:
    for blob, sentence in (
        (BlobReference("../../evil", 4), "64 hexadecimal digits"),
        (BlobReference("0" * 64, MAX_PROGRAM_BYTES + 1), "at most"),
    ):
        with pytest.raises(ProgramError, match=sentence):
            check_reference(ProgramReference(ProgramKind.LOSS, blob, micro_batch=1))
    check_reference(ProgramReference(ProgramKind.LOSS, BlobReference("0" * 64, MAX_PROGRAM_BYTES), micro_batch=1))


def test_a_check_of_the_data_is_asked_for_by_a_flag_or_the_environment() -> None:
    assert not parse_config(GOOD, {}).check_data
    assert parse_config([*GOOD, "--check-data"], {}).check_data
    assert parse_config(GOOD, {"HERON_CLIENT_CHECK_DATA": "1"}).check_data
    assert not parse_config(GOOD, {"HERON_CLIENT_CHECK_DATA": "no"}).check_data
    with pytest.raises(ConfigurationError, match="HERON_CLIENT_CHECK_DATA is yes or no"):
        parse_config(GOOD, {"HERON_CLIENT_CHECK_DATA": "perhaps"})
