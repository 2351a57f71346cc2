"""The client's options: flags, then environment variables `HERON_CLIENT_<OPTION>`, then defaults. All mistakes come at once."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from heron_common.data.partition import Partition, Shard, parse_partition, parse_shard
from heron_common.data.sources import source_kind, source_names
from heron_common.errors import ClockError, ConfigurationError
from heron_common.exit_codes import exit_codes_help
from heron_common.files.user_directories import state_home
from heron_common.ids import checked_client_name
from heron_common.process.addresses import is_loopback, split_host_port
from heron_common.terminal.option_parser import OptionParser
from heron_common.terminal.spelling import own_variables, variable_mistakes
from heron_common.version import VERSION

if TYPE_CHECKING:
    from heron_common.files.tls_directory import Credentials

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Everything a client can be told."""

    server: str
    """host:port of heron-server."""
    data: str
    """Data source; raw values, the server says how to normalise them."""
    shard: Shard
    """Which part of the source is this client's; the whole by default."""
    partition: Partition
    """How the source is divided into parts; all clients of a run are told the same. IID by default."""
    name: str
    """Unique in the run; the name on the certificate with TLS, otherwise host and shard by default, so that devices need no configuration."""
    state_dir: Path
    """Identity and program cache; a client keeps its name after a crash because of it."""
    threads: int
    """Threads of the runtime; one by default, because a device has other work and small fronts gain nothing from more."""
    window_bytes: int
    """Bytes of activations between compute and upload; 4 MiB hides a round trip."""
    give_up_after_seconds: float
    """How long an unreachable server is tried; 0, the default, means for ever: servers come back."""
    metrics_host: str
    """Interface of the metrics endpoint; loopback by default."""
    metrics_port: int | None
    """Port of the metrics endpoint; none by default, because many clients may share a host; 0 takes a free one."""
    log_level: str
    """debug, info, warning or error."""
    check_data: bool = False
    """Only compare the data with the run, print a page and end."""
    self_check: bool = False
    """Only look whether this device can take part, print a page and end."""
    memory_limit_bytes: int | None = None
    """What the self-check compares the run's memory with; by default what is free."""
    credentials: Credentials | None = field(default=None, repr=False)
    """Contents of `--tls-dir`, proved; without them everything travels in clear."""
    insecure: bool = False
    """Whether that was allowed beyond loopback."""


_PREFIX = "HERON_CLIENT_"

_FLAGS = {"check-data", "self-check", "insecure"}

_SERVER = re.compile(r"(\[[^\]]+\]|[^:\s]+):\d{1,5}")

_BYTES = re.compile(r"(\d{1,15}(?:\.\d+)?) ?(|[kMG]i?B)", re.IGNORECASE)
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

OPTION_HELP = {
    "server": "host:port of heron-server",
    "data": f"data source: {'; '.join(source_names())}",
    "shard": "INDEX/COUNT, this client's part of the source (default: 0/1, all of it)",
    "partition": "how parts are made: iid, dirichlet:ALPHA, labels:K or sizes:ALPHA, the same for every client (default: iid)",
    "name": "unique name of this client (default: the certificate's with --tls-dir, host and shard otherwise)",
    "tls-dir": "mutual TLS with the certificate in this directory, the folder that `heron certs issue NAME` writes (default: no TLS)",
    "insecure": "allow a server beyond loopback without TLS: activations and labels then travel in clear",
    "state-dir": "directory for identity and program cache (default: below the user's state directory, by name)",
    "threads": "threads of the runtime (default: 1)",
    "window-bytes": "bytes of activations between compute and upload (default: 4194304)",
    "give-up-after-seconds": "how long an unreachable server is tried (default: 0, for ever)",
    "metrics-host": "interface of the metrics endpoint (default: 127.0.0.1)",
    "metrics-port": "port of the metrics endpoint (default: no endpoint; 0: any free port)",
    "check-data": "only compare the data with what the server's run expects, print a page and end; takes no part in the run",
    "self-check": "only look whether this device can take part in the server's run, print a page and end; exit code 0 means go, 9 no-go",
    "memory-limit": "with --self-check: memory that the client may take, like 120MB (default: what is free)",
    "log-level": "debug, info, warning or error (default: info)",
}


def parse_config(arguments: Sequence[str], environment: Mapping[str, str]) -> ClientConfig:
    """Read the options.

    Raises:
        ConfigurationError: something is missing or wrong; one message names every mistake.
        ClockError: nothing but the clock is.

    """
    parser = OptionParser(
        prog="heron-client",
        description="Trains the front of a model on this device by forward passes alone.",
        epilog="Every option may also be given in the environment: --state-dir as HERON_CLIENT_STATE_DIR. " + exit_codes_help(),
    )
    parser.add_argument("--version", action="version", version=f"heron-client {VERSION}")
    for option, explanation in OPTION_HELP.items():
        # A flag's value is a word too, as it is in the environment.
        if option in _FLAGS:
            parser.add_argument(f"--{option}", action="store_const", const="yes", help=explanation)
        else:
            parser.add_argument(f"--{option}", help=explanation)
    namespace, mistakes = parser.read(arguments)
    given = vars(namespace)
    variables = own_variables(environment)
    mistakes += variable_mistakes(variables, _PREFIX, map(variable_of, OPTION_HELP))
    text: dict[str, str | None] = {}
    places: dict[str, str] = {}
    for option in OPTION_HELP:
        flag, variable = given[option.replace("-", "_")], variables.get(variable_of(option))
        text[option] = flag or variable
        places[option] = f"--{option}" if flag or not variable else variable_of(option)
    return _Reader(text, places=places, environment=environment, mistakes=mistakes).read()


def variable_of(option: str) -> str:
    """Return the environment variable of an option."""
    return f"{_PREFIX}{option.upper().replace('-', '_')}"


class _Reader:
    """Turns option texts into a configuration and collects what is wrong on the way."""

    def __init__(self, text: dict[str, str | None], *, places: dict[str, str], environment: Mapping[str, str], mistakes: list[str]) -> None:
        self._text = text
        self._places = places
        self._environment = environment
        self._mistakes = mistakes
        self._clock_is_wrong = False

    def read(self) -> ClientConfig:
        # A device may be looked at before its data are there.
        self_check = self._flag("self-check")
        server, data = self._required("server"), (self._text["data"] or "") if self_check else self._required("data")
        if server and not _SERVER.fullmatch(server):
            self._add("server", f"is host:port like 10.0.0.5:50051, not {server!r}")
        if data:
            self._tried("data", source_kind, data)
        shard = self._shard()
        certified, credentials = self._device()
        name = certified or self._name(shard)
        insecure = self._flag("insecure")
        self._refuse_clear_text(server, insecure)
        config = ClientConfig(
            server=server,
            data=data,
            shard=shard,
            partition=self._partition(),
            name=name,
            state_dir=self._state_dir(name),
            threads=int(self._number("threads", 1, least=1)),
            window_bytes=int(self._number("window-bytes", 4 << 20, least=1 << 20)),
            give_up_after_seconds=self._number("give-up-after-seconds", 0, least=0),
            metrics_host=self._text["metrics-host"] or "127.0.0.1",
            metrics_port=int(self._number("metrics-port", 0, least=0, most=65535)) if self._text["metrics-port"] is not None else None,
            log_level=self._log_level(),
            check_data=self._flag("check-data"),
            self_check=self_check,
            memory_limit_bytes=self._memory_limit(self_check),
            credentials=credentials,
            insecure=insecure,
        )
        if self._mistakes:
            # Only where nothing else is wrong may whoever starts this process hope that it passes.
            kind = ClockError if self._clock_is_wrong and len(self._mistakes) == 1 else ConfigurationError
            raise kind(*self._mistakes)
        return config

    def _add(self, option: str, sentence: str) -> None:
        self._mistakes.append(f"{self._places[option]} {sentence}")

    def _tried(self, option: str, read: Callable[[str], T], text: str) -> T | None:
        """Return what `read` makes of a text, or None with its mistake by the name of where it stands."""
        try:
            return read(text)
        except ConfigurationError as exc:
            self._mistakes += [f"{self._places[option]}: {sentence}" for sentence in exc.sentences]
            return None

    def _state_dir(self, name: str) -> Path:
        if given := self._text["state-dir"]:
            return Path(given)
        return self._tried("state-dir", lambda name: default_state_dir(name, self._environment), name) or Path(name)

    def _required(self, option: str) -> str:
        if not self._text[option]:
            self._add(option, f"is missing: give {OPTION_HELP[option]}")
        return self._text[option] or ""

    def _flag(self, option: str) -> bool:
        text = (self._text[option] or "no").lower()
        if text not in ("yes", "true", "1", "no", "false", "0"):
            self._add(option, f"is yes or no, not {text!r}")
        return text in ("yes", "true", "1")

    def _shard(self) -> Shard:
        return self._tried("shard", parse_shard, self._text["shard"] or "0/1") or Shard(0, 1)

    def _partition(self) -> Partition:
        return self._tried("partition", parse_partition, self._text["partition"] or "iid") or Partition()

    def _name(self, shard: Shard) -> str:
        return self._tried("name", checked_client_name, self._text["name"] or default_name(shard)) or "invalid"

    def _device(self) -> tuple[str, Credentials | None]:
        """Return what `--tls-dir` holds: the certificate's name, which no other may contradict, and the certificate."""
        directory = self._text["tls-dir"]
        if not directory:
            return "", None
        # Only clients with TLS pay for its modules.
        from heron_client.network.tls import read_device

        try:
            certified, credentials = read_device(Path(directory))
        except ConfigurationError as exc:
            self._mistakes += [f"{self._places['tls-dir']}: {sentence}" for sentence in exc.sentences]
            self._clock_is_wrong = isinstance(exc, ClockError)
            return "", None
        if (name := self._text["name"]) and name != certified:
            self._add(
                "name",
                f"is {name!r}, but the certificate in {directory} is for {certified!r}, and the server goes by the certificate: leave --name out",
            )
        return certified, credentials

    def _refuse_clear_text(self, server: str, insecure: bool) -> None:
        tls = bool(self._text["tls-dir"])
        if tls and insecure:
            self._mistakes.append(f"{self._places['tls-dir']} and {self._places['insecure']} contradict each other: give one of them")
        if server and not tls and not insecure and _SERVER.fullmatch(server) and not is_loopback(split_host_port(server)[0]):
            self._add(
                "server",
                f"{server} is beyond loopback, and without TLS everybody on the way could read the data: give --tls-dir "
                "(the folder that `heron certs issue NAME` writes), or --insecure to allow it",
            )

    def _number(self, option: str, default: float, *, least: float, most: float = 1e15) -> float:
        text = self._text[option]
        try:
            value = float(text) if text else default
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            limit = f" and at most {most:g}" if most < 1e15 else ""
            self._add(option, f"is a number of at least {least:g}{limit}, not {text!r}")
            return default
        return value

    def _memory_limit(self, self_check: bool) -> int | None:
        text = self._text["memory-limit"]
        if not text:
            return None
        if not self_check:
            self._add("memory-limit", "is what --self-check compares with, and limits nothing by itself: give both or neither")
        if (found := _BYTES.fullmatch(text.strip())) is None:
            self._add("memory-limit", f"is bytes like 120MB, 120MiB or 1.5GB, not {text!r}")
            return None
        return int(float(found[1]) * _UNITS[(found[2] or "").lower()])

    def _log_level(self) -> str:
        level = (self._text["log-level"] or "info").lower()
        if level not in ("debug", "info", "warning", "error"):
            self._add("log-level", f"is debug, info, warning or error, not {level!r}")
        return level


def default_name(shard: Shard) -> str:
    """Return a name from host and shard, with characters that names may not have replaced."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:60] or "client"
    return f"{host}-shard-{shard.index}-of-{shard.count}" if shard.count > 1 else host


def default_state_dir(name: str, environment: Mapping[str, str]) -> Path:
    """Return the directory for a client's state by the XDG convention. Raises ConfigurationError where there is none."""
    return state_home("give --state-dir, or ", environment) / "heron-client" / name
