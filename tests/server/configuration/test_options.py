"""Options from flags, environment and file: who wins, and all mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from heron_common.errors import ConfigurationError
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import flag_of, read_options, sections_of
from tests.server.running_server import SOURCE

FIELDS = [(section, name) for section, model in sections_of(ServerConfig).items() for name in model.model_fields]

VALUES: dict[str, tuple[str, str, str]] = {
    "preset": ("frozen", "heron", "heron-paper"),
    "model": ("resnet", "hf:folder", "python:module:build"),
    "model_options": ("hidden=1", "hidden=2", "hidden=3"),
    "cut": ("layer1", "layer2", "layer3"),
    "data_spec": ("1x2x2:2", "1x3x3:2", "1x4x4:2"),
    "eval_data": ("npz:a", "npz:b", "npz:c"),
    "validation_data": ("npz:a", "npz:b", "npz:c"),
    "difference": ("central", "forward", "central"),
    "objective": ("none", "server", "auxiliary"),
    "estimator": ("none", "zeroth_order", "first_order"),
    "head_training": ("none", "client", "server"),
    "distribution": ("gaussian", "sphere", "rademacher"),
    "client_momentum": ("0.1", "0.2", "0.3"),
    "final_rate_fraction": ("0.1", "0.2", "0.3"),
    "relative_step": ("0.1", "0.2", "0.3"),
    "local_losses": ("blocks", "pairs", "end"),
    "train_weights": ("norms", "last-block", "norms+last"),
    "exact_weights": ("last", "last-block", "0[.]"),
    "blocks": ("a", "a,b", "c"),
    "wire_dtype": ("int8", "float16", "bfloat16"),
    "update_encoding": ("log", "dense", "auto"),
    "aggregation": ("median", "trimmed_mean", "multi_krum"),
    "client_optimiser": ("sgd", "adam", "scalar_adaptive"),
    "server_schedule": ("arrival", "sequential", "lockstep"),
    "weighting": ("examples", "uniform", "examples"),
    "direction_scale": ("unit", "tensor_rms", "global_rms"),
    "liveness_seconds": ("31", "32", "33"),
    "server_optimiser": ("sgd", "adamw", "sgd"),
    "device": ("cpu", "cuda", "cuda:1"),
    "precision": ("bf16", "fp32", "bf16"),
    "overlong": ("refuse", "truncate", "refuse"),
    "listen": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
    "tls_dir": ("one", "two", "three"),
    "metrics_host": ("::1", "127.0.0.2", "127.0.0.3"),
    "log_level": ("debug", "warning", "error"),
    "log_format": ("human", "key-value", "human"),
    "server_momentum": ("0.1", "0.2", "0.3"),
    "participation": ("0.9", "0.8", "0.7"),
    "over_selection": ("1.5", "2", "3"),
    "without_quorum": ("skip", "repeat", "skip"),
    "stop_when": ("seconds>1", "seconds>2", "seconds>3"),
    "held_out": ("0.1", "0.2", "0.3"),
    "spool_bytes": ("2000000", "3000000", "4000000"),
    "client_spool_bytes": ("2000", "3000", "4000"),
    "inbox_bytes": ("2000000", "3000000", "4000000"),
    "max_clients": ("65", "66", "67"),
    "run_dir": ("one", "two", "three"),
    "program_cache": ("one", "two", "three"),
    "tensorboard_dir": ("one", "two", "three"),
    **dict.fromkeys(("norm_factor", "loss_factor", "gradient_factor"), ("4", "5", "6")),
    "release_clients": ("a,b", "c", "d"),
}
"""Three values of each option that is not a plain number; those take 1, 2 and 3."""


def read(*arguments: str, file: Path | None = None, **environment: str) -> ServerConfig:
    config = ["--config", str(file)] if file else []
    return read_options(
        ServerConfig, SOURCE, arguments=[*config, *arguments], environment={f"HERON_SERVER_{k.upper()}": v for k, v in environment.items()}
    )


def toml(directory: Path, section: str, name: str, value: Any) -> Path:
    path = directory / "options.toml"
    path.write_text(f"[{section}]\n{name} = {value if isinstance(value, bool) is False and value.isdigit() else repr(value)}\n")
    return path


def value_of(config: ServerConfig, section: str, name: str) -> Any:
    return getattr(getattr(config, section), name)


def mistakes(*arguments: str, **places: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(*arguments, **places)
    return str(caught.value)


def expected(section: str, name: str, text: str) -> Any:
    """What the section's own validation makes of the text."""
    return getattr(sections_of(ServerConfig)[section].model_validate({name: text}), name)


@pytest.mark.parametrize(("section", "name"), [f for f in FIELDS if f[1] not in ("resume", "resume_if_begun", "insecure", "gates")])
def test_flags_win_over_environment_over_file_over_default(tmp_path: Path, section: str, name: str) -> None:
    in_file, in_environment, in_flag = VALUES.get(name, ("1", "2", "3"))
    path, fallback = toml(tmp_path, section, name, in_file), value_of(read(), section, name)
    assert value_of(read(file=path), section, name) == expected(section, name, in_file) != fallback or in_file == str(fallback)
    assert value_of(read(file=path, **{name: in_environment}), section, name) == expected(section, name, in_environment)
    flags = (flag_of(name), in_flag)
    assert value_of(read(*flags, file=path, **{name: in_environment}), section, name) == expected(section, name, in_flag)


@pytest.mark.parametrize(("section", "name"), [("run", "resume"), ("network", "resume_if_begun"), ("network", "insecure")])
def test_switches_can_be_given_in_all_three_places(tmp_path: Path, section: str, name: str) -> None:
    path = tmp_path / "options.toml"
    path.write_text(f"[{section}]\n{name} = true\n")
    assert value_of(read(), section, name) is False
    assert value_of(read(flag_of(name)), section, name) is True
    assert value_of(read(**{name: "true"}), section, name) is True
    assert value_of(read(file=path), section, name) is True
    assert value_of(read(file=path, **{name: "false"}), section, name) is False


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    path = toml(tmp_path, "run", "rounds", "7")
    assert read(config=str(path)).run.rounds == 7


def test_option_names_are_unique_over_all_sections() -> None:
    names = [name for _, name in FIELDS]
    assert len(names) == len(set(names))


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("[run]\nrounds = 0\ncolour = 'red'\n[mystery]\nx = 1\n")
    message = mistakes("--batch-size", "-3", file=path, server_threads="many", listen="nowhere")
    for part in (
        "rounds in [run]",
        "'colour'",
        "[run]",
        "[mystery]",
        "--batch-size",
        "'-3'",
        "HERON_SERVER_SERVER_THREADS",
        "'many'",
        "HERON_SERVER_LISTEN",
        "'nowhere'",
    ):
        assert part in message


def test_an_unknown_table_is_named_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("[rund]\nrounds = 1\n")
    message = mistakes(file=path)
    assert "[rund]" in message and all(section in message for section in sections_of(ServerConfig))


def test_an_option_outside_a_table_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("rounds = 1\n")
    assert "rounds" in mistakes(file=path)


def test_flags_are_not_guessed_from_their_beginning_but_named() -> None:
    assert mistakes("--round", "3") == "unknown option --round: did you mean --rounds?"


def test_what_is_misspelt_is_named_with_what_was_meant_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("[run]\nclienst = 3\n[rouns]\nx = 1\n[plan]\nseed = 3\n")
    arguments = ["--config", str(path), "--batchsize=3", "--preset", "herom", "--clients", "--colour", "red", "--run-dir", "r", "leftover"]
    environment = {
        "HERON_SERVER_CLIENT": "3",
        "HERON_SEVER_ROUNDS": "3",
        "HERON_SERVER_SEED": "many",
        "HERON_CLIENT_DATA": "x",
        "HERON_DATA_DIR": "y",
    }
    with pytest.raises(ConfigurationError) as caught:
        read_options(ServerConfig, SOURCE, arguments=arguments, environment=environment)
    assert [sentence[:60] for sentence in caught.value.sentences] == [
        sentence[:60]
        for sentence in (
            "--clients has no value: give how many clients take part; the first round opens at once when so many are there (default: 4)",
            "unknown option --batchsize: did you mean --batch-size?",
            "unknown option --colour",
            "unexpected word 'leftover'",
            "HERON_SERVER_CLIENT is set, but is no option's variable: did you mean HERON_SERVER_CLIENTS?",
            "HERON_SEVER_ROUNDS is set, but is no option's variable: did you mean HERON_SERVER_ROUNDS?",
            f"{path}: unknown option 'clienst' in [run]: did you mean 'clients'?",
            f"{path}: unknown table [rouns]: did you mean rounds?; tables are",
            f"{path}: unknown option 'seed' in [plan]: it belongs into [run]",
            "--preset: unknown preset 'herom': choose one of heron, heron-paper",
            "HERON_SERVER_SEED: Input should be a valid integer, unable to parse string as an integer, not 'many'",
        )
    ]
    assert str(caught.value).count("did you mean --batch-size?") == 1
    assert all(
        near in str(caught.value) for near in ("mean HERON_SERVER_CLIENTS?", "mean HERON_SERVER_ROUNDS?", "mean clients?", "mean rounds?")
    )


def test_a_mistake_is_named_by_the_place_where_it_stands(tmp_path: Path) -> None:
    path = toml(tmp_path, "run", "rounds", "0")
    message = mistakes("--clients", "0", file=path, batch_size="0")
    for part in (f"{path}: rounds in [run]: ", "--clients: ", "HERON_SERVER_BATCH_SIZE: "):
        assert part in message


def test_what_kubernetes_says_of_a_service_of_our_name_is_no_option() -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "50051",
        "SERVICE_PORT_GRPC": "50051",
        "PORT": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP_ADDR": "10.0.0.1",
        "PORT_50051_TCP_PROTO": "tcp",
        # A service called heron-server-metrics: the variable of an option of ours.
        "METRICS_PORT": "tcp://10.0.0.1:9464",
    }
    assert read(**links).network.metrics_port == read().network.metrics_port
    assert read(metrics_port="9999").network.metrics_port == 9999


@pytest.mark.parametrize("content", [b"[run\n", b"[run]\nrounds = \n", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "options.toml"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in mistakes(file=path)


def test_a_missing_option_is_named() -> None:
    class Section(BaseModel):
        needed_option: int

    class Config(BaseModel):
        section: Section

    with pytest.raises(ConfigurationError, match="--needed-option is missing"):
        read_options(Config, SOURCE, arguments=[], environment={})


def test_help_tells_every_option_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help-all")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for _, name in FIELDS:
        assert f"{flag_of(name)} " in text or f"{flag_of(name)}\n" in text
    assert all(field.description for model in sections_of(ServerConfig).values() for field in model.model_fields.values())
