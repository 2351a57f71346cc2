"""Command lines: all mistakes at once, each with its flag, unknown ones with what may have been meant; and the verbs say them so."""

from __future__ import annotations

import re

import pytest

from heron_cli.cli import main
from heron_cli.simulation.configuration import SimulationConfig
from heron_client.config import OPTION_HELP, parse_config, variable_of
from heron_common.errors import ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.terminal.option_parser import OptionParser, above_zero, at_least, host_and_port
from heron_common.terminal.spelling import did_you_mean
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import OptionSource, read_options


def parser() -> OptionParser:
    made = OptionParser(prog="p")
    made.add_argument("address", type=host_and_port, metavar="HOST:PORT", help="where")
    made.add_argument("--rounds", type=at_least(1), default=3, help="how many")
    made.add_argument("--rate", type=above_zero, required=True, help="how fast")
    made.add_argument("--format", choices=("onnx", "torch"), help="in what")
    made.add_argument("--force", action="store_true", help="anyway")
    return made


def test_what_is_right_is_read() -> None:
    found, mistakes = parser().read(["127.0.0.1:9", "--rate", "0.5", "--format=onnx", "--force"])
    assert (found.address, found.rounds, found.rate, found.format, found.force, mistakes) == ("127.0.0.1:9", 3, 0.5, "onnx", True, [])


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parser().parse_args(["--rouns", "3", "--rounds", "0", "--format", "onx", "--forse", "nowhere", "more"])
    assert caught.value.sentences == (
        "--rounds: a whole number of at least 1 was expected, not '0'",
        "--format is one of onnx, torch, not 'onx': did you mean onnx?",
        "unknown option --rouns: did you mean --rounds?",
        "unknown option --forse: did you mean --force?",
        "--rate is missing: give how fast",
    )


def test_beside_an_unknown_option_words_without_one_are_not_judged() -> None:
    for words in (["--colour", "red", "--rate", "1"], ["h:1", "--colour", "red", "--rate", "1"], ["--colour=red", "--rate", "1"]):
        assert parser().read(words)[1] == ["unknown option --colour"]
    assert parser().read(["h:1", "h:2", "--rate", "1"])[1] == ["unexpected word 'h:2'"]
    assert parser().read(["--rate", "1"])[1] == ["HOST:PORT is missing: give where"]


def test_help_shows_what_is_common_and_help_all_the_rest_in_its_groups(capsys: pytest.CaptureFixture[str]) -> None:
    made = OptionParser(prog="p", rare=["--depth"], epilog="the end")
    made.add_argument("--width", help="how wide")
    made.add_argument_group("[rare]").add_argument("--depth", help="how deep")
    with pytest.raises(SystemExit) as ended:
        made.parse_args(["--help"])
    common = capsys.readouterr().out
    with pytest.raises(SystemExit):
        made.parse_args(["--width", "3", "--help-all"])
    everything = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--width" in common and "--depth" not in common and "[rare]" not in common and "--help-all shows 1 more" in common
    assert "how deep" in everything and "[rare]" in everything and "the end" in everything


@pytest.mark.parametrize("program", ["heron-server", "heron-client", "heron simulate"])
def test_the_common_options_are_about_a_dozen_and_are_documented(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(word: str) -> set[str]:
        with pytest.raises(SystemExit):
            if program == "heron-client":
                parse_config([word], {})
            else:
                read_options(
                    ServerConfig if program == "heron-server" else SimulationConfig,
                    OptionSource(program, "", environment_prefix="X_", version="1"),
                    arguments=[word],
                    environment={},
                )
        return set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--help-all", "--version", "--config"}

    common, everything = shown("--help"), shown("--help-all")
    assert 10 <= len(common) <= 16 and common < everything


def test_choices_defaults_and_bytes_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(ServerConfig, OptionSource("p", "", environment_prefix="X_", version="1"), arguments=["--help-all"], environment={})
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--log-format auto|human|key-value",
        "--objective none|auxiliary|server|cut_gradient",
        "(default: 268435456, 256 MiB)",
        "h, steps a client takes in a round (default: the preset's)",
    ):
        assert words in said
    assert "e+0" not in said and "(default: )" not in said


def test_bare_heron_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.OK
    said = capsys.readouterr()
    assert "usage: heron" in said.out and "simulate" in said.out and said.err == ""


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "0", "x", ""])
def test_a_number_above_zero_is_one(word: str) -> None:
    _, mistakes = parser().read(["h:1", f"--rate={word}"])
    assert mistakes == [f"--rate: a number above 0 was expected, not {word!r}"]


@pytest.mark.parametrize("word", ["nowhere", "h:0", "h:65536", "h:1/x", "::1:9", "[::1]", "a b:1", "h:\u0661"])
def test_an_address_is_host_and_port(word: str) -> None:
    _, mistakes = parser().read([word, "--rate=1"])
    assert mistakes == [f"HOST:PORT: host:port like 127.0.0.1:9464 was expected, not {word!r}"]


def test_what_was_meant_is_near_or_not_said() -> None:
    assert did_you_mean("--run-dri", ["--run-dir", "--round"]) == ": did you mean --run-dir?"
    assert did_you_mean("--colour", ["--run-dir", "--cut"]) == ""


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["evaluate", "--run-dri", "x", "--round", "-1", "--threads", "none"],
            [
                "heron evaluate: --round: a whole number of at least 0 was expected, not '-1'",
                "heron evaluate: --threads: a whole number of at least 1 was expected, not 'none'",
                "heron evaluate: unknown option --run-dri: did you mean --run-dir?",
                "heron evaluate: --run-dir is missing: give directory of the run; it may be going on",
                "heron evaluate: --data is missing: give data source with labels, like digits:test or csv:FILE:text:label",
            ],
        ),
        (
            ["statsu"],
            [
                "heron statsu: VERB is one of demo, audit, certs, cuts, evaluate, export, health, leakage, report, simulate, status, not 'statsu': did you mean status?"
            ],
        ),
        (
            ["simulate", "--clients", "none", "--partiton", "iid", "--data", "magic:x"],
            [
                "heron simulate: unknown option --partiton: did you mean --partition?",
                "heron simulate: --clients: Input should be a valid integer, unable to parse string as an integer, not 'none'",
                "heron simulate: --data: unknown data source 'magic:x': write one of ",
            ],
        ),
        (
            ["demo", "--rounds", "0", "--clients", "0"],
            ["heron demo: --rounds: a whole number of at least 1", "heron demo: --clients: a whole number of at least 1"],
        ),
    ],
)
def test_a_verb_says_each_mistake_on_a_line_of_its_own(words: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.CONFIGURATION
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(lines)
    assert all(line.startswith(begin) for line, begin in zip(said, lines, strict=True)), said


def test_the_client_names_flags_and_variables_and_what_was_meant_by_them_at_once() -> None:
    environment = {
        "HERON_CLIENT_THREADS": "many",
        "HERON_CLIENT_WINDOW_BYTE": "1",
        "HERON_CLEINT_NAME": "x",
        "HERON_SERVER_ROUNDS": "3",
        "HERON_DATA_DIR": "/data",
        "HERON_CLIENT_PORT": "tcp://10.0.0.1:1",
    }
    with pytest.raises(ConfigurationError) as caught:
        parse_config(["--sevrer", "h:1", "--data", "magic:x", "--shard", "4/4", "--name"], environment)
    begins = (
        "--name has no value: give unique name",
        "unknown option --sevrer: did you mean --server?",
        "HERON_CLEINT_NAME is set, but is no option's variable: did you mean HERON_CLIENT_NAME?",
        "HERON_CLIENT_WINDOW_BYTE is set, but is no option's variable: did you mean HERON_CLIENT_WINDOW_BYTES?",
        "--server is missing",
        "--data: unknown data source 'magic:x'",
        "--shard: ",
        "HERON_CLIENT_THREADS is a number of at least 1, not 'many'",
    )
    assert len(caught.value.sentences) == len(begins), caught.value.sentences
    assert all(s.startswith(begin) for s, begin in zip(caught.value.sentences, begins, strict=True)), caught.value.sentences


def test_every_variable_of_the_clients_options_is_known() -> None:
    values = {
        "server": "127.0.0.1:1",
        "data": "digits:train",
        "shard": "0/1",
        "partition": "iid",
        "name": "a",
        "log-level": "info",
        "log-format": "human",
    }
    numbers = {"threads": "1", "window-bytes": "4194304", "give-up-after-seconds": "1", "metrics-port": "0", "metrics-host": "h"}
    flags = {"self-check": "yes", "check-data": "no", "insecure": "no", "memory-limit": "1GB", "state-dir": "s", "tls-dir": ""}
    given = {**values, **numbers, **flags}
    assert set(given) == set(OPTION_HELP)
    assert parse_config([], {variable_of(option): text for option, text in given.items()}).name == "a"


def test_a_process_without_a_home_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from heron_common.data.unpacked import cache_directory
    from heron_common.files.user_directories import cache_home, state_home
    from heron_server.publication import default_program_cache

    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("heron_common.files.user_directories.Path.home", homeless)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ConfigurationError, match=r"--state-dir: this user has no home directory .* give --state-dir, or set XDG_STATE_HOME"
    ):
        parse_config(["--server", "127.0.0.1:1", "--data", "digits:train"], {})
    with pytest.raises(ConfigurationError, match="give --program-cache, or set XDG_CACHE_HOME"):
        default_program_cache()
    with pytest.raises(ConfigurationError, match="set XDG_CACHE_HOME"):
        cache_directory()
    assert str(cache_home("", {"XDG_CACHE_HOME": "/c"})) == "/c" and str(state_home("", {"XDG_STATE_HOME": "/s"})) == "/s"
    assert parse_config(["--server", "127.0.0.1:1", "--data", "digits:train", "--state-dir", "here"], {}).state_dir.name == "here"
