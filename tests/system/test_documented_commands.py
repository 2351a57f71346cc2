"""Every command that README and the pages show runs as it stands there, in an empty directory, or stands in a list with the reason why not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heron_cli.processes import LoggedProcess, ProcessGroup
from tests.harness.documented import Command, commands_of, write_files_of
from tests.harness.polling import eventually
from tests.harness.sources import only_in_checkout

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    r"(docker|kubectl|helm) ": "needs an engine or a cluster; tests/deploy reads what these start from",
    r"(git|cd|\(cd|sha256sum|build/release-tools/\S+|python3 -m venv|python3 deploy/release/places\.py|\. \.venv) ?": "a reader's own copy of the repository",
    r"pip install ": "the wheel's tests install it",
    r"deploy/install-client\.sh ": "tests/deploy runs it against machines that it makes up",
    r"heron-server --model (hf:FOLDER|python:my_models:build --cut blocks\.1)": "a folder or a language model of the reader's own",
    r"heron cuts --model hf:gpt2 ": "asks a model hub",
    r"heron (leakage|cuts) .*:FOLDER": "a folder of the reader's own",
}

QUICK = {"operate.md", "your-model.md"}

SERVER_OPTIONS = commands_of(ROOT / "README.md")
"""What dots stand for: the options of the first server that README starts, without a directory of its own."""


def why_not(command: Command) -> str:
    """Return why a command is not run here, empty where it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command.text)), "")


def run_here(page: Path) -> list[Command]:
    """Return the commands of a page that are run, in order."""
    return [command for command in commands_of(page) if not why_not(command)]


class Reader:
    """Somebody who types what a page shows, in an empty directory on one machine."""

    def __init__(self, directory: Path, group: ProcessGroup) -> None:
        self._directory = directory
        self._group = group
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        own = {"HERON_SERVER_LISTEN": f"127.0.0.1:{self._port}", "HERON_SERVER_METRICS_PORT": "0", "PYTHONPATH": str(directory)}
        self._environment = {**os.environ, **own, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self._server: LoggedProcess | None = None
        self._clients: list[LoggedProcess] = []
        self._revoked = False

    def follow(self, command: Command) -> None:
        """Do what a command says and see it succeed."""
        if command.program == "make":
            targets = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert [name for name in command.text.split()[1:] if f"\n{name}:" not in targets] == [], command
        elif command.program == "heron-server":
            self.stop()
            self._serve(command)
        elif command.program == "heron-client" and not re.search(r"--check-data|--self-check", command.text):
            self._join(command)
        else:
            if "--run-dir" in command.text:
                self.wait_for_the_run()
            done = subprocess.run(self._words(command), capture_output=True, text=True, timeout=600, env=self._environment)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            self._revoked = self._revoked or "certs revoke" in command.text
            issued = re.match(r"heron certs issue (\S+)", command.text)
            if issued:
                # "Move it to the device", as the pages say.
                shutil.copytree(Path("authority/devices") / issued[1], issued[1])

    def wait_for_the_run(self) -> None:
        """Wait until server and clients have ended by themselves."""
        for process in [*self._clients, *([self._server] if self._server else [])]:
            assert process.wait(300) == 0, process.last_line()
        self._server, self._clients = None, []

    def stop(self) -> None:
        """Ask whatever runs to stop; a device whose certificate was revoked has been refused."""
        for client in self._clients:
            if self._revoked:
                eventually(lambda client=client: client.exit_code is not None, 120, "the end of a revoked client")
                assert client.exit_code != 0 and "revoked" in client.log.read_text(encoding="utf-8"), client.last_line()
            else:
                assert self._ended(client) == 0, client.last_line()
        assert self._server is None or self._ended(self._server) == 0, self._server.last_line()
        self._server, self._clients, self._revoked = None, [], False

    def _ended(self, process: LoggedProcess) -> int | None:
        process.process.terminate()
        return process.wait(60)

    def _serve(self, command: Command) -> None:
        address = Path(command.option("--run-dir", "runs/default")) / "server.json"
        address.unlink(missing_ok=True)
        self._server = server = self._group.start_command("server", self._words(command), self._environment)
        eventually(lambda: address.exists() or server.exit_code is not None, 120, f"the start of {command.text}")
        assert server.exit_code is None, f"{command}\n{server.log.read_text(encoding='utf-8')}"

    def _join(self, command: Command) -> None:
        name = f"client-{len(self._clients)}"
        client = self._group.start_command(name, self._words(command), self._environment)
        self._clients.append(client)
        eventually(
            lambda: "joined" in client.log.read_text(encoding="utf-8") or client.exit_code is not None, 120, f"the join of {command.text}"
        )
        assert "joined" in client.log.read_text(encoding="utf-8"), f"{command}\n{client.log.read_text(encoding='utf-8')}"

    def _words(self, command: Command) -> list[str]:
        """Return a command's words with this machine for another, a free port for the usual one, and what dots stand for."""
        text = re.sub(r"(127\.0\.0\.1|0\.0\.0\.0|trainer\.local|host):50051", rf"localhost:{self._port}", command.text)
        text = text.replace("trainer.local", "localhost").replace(f"--listen localhost:{self._port}", f"--listen 127.0.0.1:{self._port}")
        if command.program == "heron-server":
            options = next(c.text for c in SERVER_OPTIONS if c.program == "heron-server").split(" ", 1)[1]
            text = text.replace("...", options.partition(" --run-dir")[0])
            text += "" if "--run-dir" in text else " --run-dir runs/default"
        return shlex.split(text.replace("--data ...", "--data digits:train"))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        write_files_of(page, tmp_path)
    with ProcessGroup(tmp_path / "logs") as group:
        yield Reader(tmp_path, group)


@only_in_checkout
@pytest.mark.process
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page.name in QUICK else pytest.mark.slow, id=page.name) for page in PAGES if run_here(page)]
)
def test_what_a_page_shows_runs_as_it_stands_there(reader: Reader, page: Path) -> None:
    prepare(reader, page.name)
    for command in run_here(page):
        reader.follow(command)
    reader.stop()


def prepare(reader: Reader, page: str) -> None:
    """Make what a page presupposes: the run of README, a server that waits for the data that are checked."""
    small = "--data digits --eval-data digits:test --clients 2 --update-encoding log"
    lines = {
        "after-a-run.md": [f"heron simulate {small} --rounds 100 --local-steps 1 --keep-checkpoints 100 --run-dir runs/digits"],
        "privacy.md": [f"heron simulate {small} --rounds 2 --local-steps 1 --run-dir runs/digits"],
        "data.md": ["heron-server --data-spec age+dose:2 --model python:two_numbers:build --cut 1 --clients 1 --rounds 1"],
        "edge-binary.md": [
            "heron certs init --dir authority --host trainer.local",
            "heron certs issue bed-1 --dir authority",
            "heron-server --listen 0.0.0.0:50051 --tls-dir authority/server ...",
        ],
        "operate.md": ["heron certs init --dir authority --host trainer.local"],
    }
    model = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    Path("two_numbers.py").write_text(model, encoding="utf-8")
    Path("visits.csv").write_text("age,dose,outcome\n" + "".join(f"{30 + i},{i % 7}.5,{i % 2}\n" for i in range(40)), encoding="utf-8")
    for line in lines.get(page, []):
        reader.follow(Command(page, line))


@only_in_checkout
def test_every_reason_not_to_run_a_command_is_needed() -> None:
    texts = [command.text for page in PAGES for command in commands_of(page)]
    assert len(texts) > 50
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, text) for text in texts)] == []
