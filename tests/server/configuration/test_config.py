"""The server's configuration: what is refused at start, and what may differ on --resume."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from heron_common.errors import ConfigurationError
from heron_server.app import warn_of_clear_text
from heron_server.configuration.config import MAY_CHANGE_ON_RESUME, PROCESS_OPTIONS, ServerConfig
from heron_server.configuration.options import flag_of, read_options, sections_of
from tests.server.running_server import SOURCE

NAMES = {name for model in sections_of(ServerConfig).values() for name in model.model_fields}
FLOATS = [
    n
    for m in sections_of(ServerConfig).values()
    for n, f in m.model_fields.items()
    if float in (f.annotation, *typing.get_args(f.annotation))
]


def read(**options: Any) -> ServerConfig:
    words = [word for name, value in options.items() for word in ([flag_of(name)] if value is True else [flag_of(name), str(value)])]
    return read_options(ServerConfig, SOURCE, arguments=words, environment={})


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(**options)
    return str(caught.value)


def test_the_defaults_are_a_valid_configuration() -> None:
    config = read()
    assert config.network.is_loopback and config.min_updates == 2


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "192.168.1.2:50051", "[::]:1", "example.org:1", "[2001:db8::1]:9"])
def test_listening_beyond_loopback_needs_tls_or_insecure(listen: str) -> None:
    message = refusal(listen=listen)
    assert listen in message and "--insecure" in message and "--tls-dir" in message
    assert read(listen=listen, insecure=True).network.listen == listen
    assert read(listen=listen, tls_dir="authority/server").network.listen == listen


def test_tls_and_its_absence_exclude_each_other() -> None:
    assert "--tls-dir and --insecure contradict" in refusal(tls_dir="authority/server", insecure=True)


def test_clear_text_beyond_loopback_is_a_warning_at_start(caplog: pytest.LogCaptureFixture) -> None:
    for options in ({}, {"listen": "0.0.0.0:1", "tls_dir": "authority/server"}, {"insecure": True}):
        warn_of_clear_text(read(**options).network)
    assert caplog.records == []
    warn_of_clear_text(read(listen="0.0.0.0:1", insecure=True).network)
    assert "travel in clear" in caplog.text


def test_metrics_are_for_this_machine_unless_told_otherwise() -> None:
    assert read().network.metrics_host == "127.0.0.1"
    assert read(metrics_host="0.0.0.0").network.metrics_host == "0.0.0.0"


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("127.9.9.9:1", "127.9.9.9", 1), ("[::1]:65535", "::1", 65535), ("localhost:5", "localhost", 5)],
)
def test_loopback_needs_no_consent(listen: str, host: str, port: int) -> None:
    network = read(listen=listen).network
    assert (network.host, network.port) == (host, port)


@pytest.mark.parametrize("listen", ["", "127.0.0.1", ":50051", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "50051"])
def test_an_address_is_host_and_port(listen: str) -> None:
    assert "--listen" in refusal(listen=listen)


def test_a_quorum_beyond_the_clients_is_refused_with_both_numbers() -> None:
    message = refusal(clients=3, min_updates=4)
    assert "--min-updates 4" in message and "--clients 3" in message
    assert read(clients=3, min_updates=3).min_updates == 3


@pytest.mark.parametrize("clients", range(1, 8))
def test_the_quorum_is_half_of_the_clients_rounded_up(clients: int) -> None:
    assert read(clients=clients).min_updates == -(-clients // 2)


def test_more_clients_than_may_connect_are_refused() -> None:
    message = refusal(clients=5, max_clients=4)
    assert "--clients 5" in message and "--max-clients 4" in message


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(value: str) -> None:
    accepted = []
    for name in FLOATS:
        try:
            read(**{name: value})
            accepted.append(name)
        except ConfigurationError as exc:
            assert flag_of(name) in str(exc)
    assert accepted == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clients", 0),
        ("rounds", 0),
        ("min_updates", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("round_deadline_seconds", 0),
        ("liveness_seconds", 0.5),
        ("batch_size", 0),
        ("smoothing_radius", 0),
        ("server_momentum", 1),
        ("server_optimiser", "lion"),
        ("server_schedule", "random"),
        ("precision", "fp8"),
        ("spool_bytes", 1000),
        ("keep_checkpoints", 0),
        ("metrics_port", 65536),
        ("log_level", "loud"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_came(name: str, value: Any) -> None:
    message = refusal(**{name: value})
    assert flag_of(name) in message and str(value) in message


def test_a_mistake_in_model_options_is_reported_with_the_others() -> None:
    message = refusal(model_options="hidden", rounds=0)
    assert "--model-options" in message and "'hidden'" in message and "--rounds" in message


def test_model_options_may_be_words_or_a_table() -> None:
    words = read(model_options="front_widths=4,2 hidden=128").run.model_options
    assert words == {"front_widths": ["4", "2"], "hidden": "128"}


def test_the_options_of_a_process_are_no_part_of_the_runs_identity() -> None:
    identity = read().identity()
    assert set(identity) == NAMES - PROCESS_OPTIONS
    elsewhere = read(listen="127.0.0.1:1", run_dir="elsewhere", device="cpu", resume=True, spool_bytes=1 << 21, log_level="debug")
    assert elsewhere.identity() == identity
    assert read(seed=1).identity() != identity


def test_the_lists_of_options_name_options_that_exist() -> None:
    assert PROCESS_OPTIONS <= NAMES
    assert MAY_CHANGE_ON_RESUME <= NAMES - PROCESS_OPTIONS


def test_a_configuration_cannot_be_changed_after_it_was_read() -> None:
    config = read()
    with pytest.raises(ValueError, match="frozen"):
        config.run.rounds = 3  # type: ignore[misc]


def test_a_service_that_starts_again_resumes_what_has_begun(tmp_path: Path) -> None:
    config = read(run_dir=tmp_path, resume_if_begun=True)
    assert not config.settled().run.resume
    (tmp_path / "run.json").write_text("{}")
    assert config.settled().run.resume
    assert not read(run_dir=tmp_path).settled().run.resume
