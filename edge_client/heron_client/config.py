"""The client's options: flags, then environment variables `HERON_CLIENT_<OPTION>`, then defaults. All mistakes come at once."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heron_common.data.partition import Partition, Shard, parse_partition, parse_shard
from heron_common.data.sources import source_kind, source_names
from heron_common.errors import ClockError, ConfigurationError
from heron_common.exit_codes import exit_codes_help
from heron_common.files.user_directories import state_home
from heron_common.ids import checked_client_name
from heron_common.options import option, option_fields, option_of
from heron_common.process.addresses import is_loopback, split_host_port
from heron_common.terminal.figures import human_number
from heron_common.terminal.log_setup import LOG_FORMAT_HELP, LOG_FORMATS
from heron_common.terminal.option_parser import OptionParser
from heron_common.terminal.spelling import own_variables, variable_mistakes
from heron_common.version import VERSION

if TYPE_CHECKING:
    from heron_common.files.tls_directory import Credentials

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Everything a client can be told, in the order of its help."""

    server: str = field(metadata=option("host:port of heron-server", common=True))
    data: str = field(metadata=option(f"data source: {'; '.join(source_names())}", common=True))
    """Raw values; the server says how to normalise them."""
    shard: Shard = field(metadata=option("INDEX/COUNT, this client's part of the source (default: 0/1, all of it)", common=True))
    partition: Partition = field(
        metadata=option(
            "how parts are made: iid, dirichlet:ALPHA, labels:K or sizes:ALPHA, the same for every client (default: iid)", common=True
        )
    )
    name: str = field(
        metadata=option("unique name of this client (default: the certificate's with --tls-dir, host and shard otherwise)", common=True)
    )
    """From host and shard, so that devices need no configuration."""
    credentials: Credentials | None = field(
        default=None,
        repr=False,
        metadata=option(
            "mutual TLS with the certificate in this directory, the folder that `heron certs issue NAME` writes (default: no TLS)",
            name="tls_dir",
            common=True,
        ),
    )
    """Contents of the directory, proved."""
    insecure: bool = field(
        default=False, metadata=option("allow a server beyond loopback without TLS: activations and labels then travel in clear")
    )
    state_dir: Path = field(
        metadata=option("directory for identity and program cache (default: below the user's state directory, by name)", common=True)
    )
    """A client keeps its name after a crash because of it."""
    threads: int = field(default=1, metadata=option("threads of the runtime (default: 1)", at_least=1))
    """A device has other work, and small fronts gain nothing from more."""
    window_bytes: int = field(
        default=4 << 20, metadata=option("bytes of activations between compute and upload (default: 4194304)", at_least=1 << 20)
    )
    """4 MiB hide a round trip."""
    give_up_after_seconds: float = field(
        default=0, metadata=option("how long an unreachable server is tried (default: 0, for ever)", at_least=0)
    )
    """For ever, because servers come back."""
    metrics_host: str = field(default="127.0.0.1", metadata=option("interface of the metrics endpoint (default: 127.0.0.1)"))
    metrics_port: int | None = field(
        default=None,
        metadata=option("port of the metrics endpoint (default: no endpoint; 0: any free port)", at_least=0, at_most=65535, common=True),
    )
    """None, because many clients may share a host."""
    check_data: bool = field(
        default=False,
        metadata=option(
            "only compare the data with what the server's run expects, print a page and end; takes no part in the run", common=True
        ),
    )
    self_check: bool = field(
        default=False,
        metadata=option(
            "only look whether this device can take part in the server's run, print a page and end; exit code 0 means go, 9 no-go",
            common=True,
        ),
    )
    memory_limit_bytes: int | None = field(
        default=None,
        metadata=option("with --self-check: memory that the client may take, like 120MB (default: what is free)", name="memory_limit"),
    )
    log_level: str = field(
        default="info", metadata=option("which lines of the log are written: debug, info, warning or error (default: info)")
    )
    log_format: str = field(default="auto", metadata=option(f"{LOG_FORMAT_HELP} (default: auto)"))


_PREFIX = "HERON_CLIENT_"

_LARGEST = 1e15
"""Of a number without a bound of its own."""

_SERVER = re.compile(r"(\[[^\]]+\]|[^:\s]+):\d{1,5}")

_BYTES = re.compile(r"(\d{1,15}(?:\.\d+)?) ?(|[kMG]i?B)", re.IGNORECASE)
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

_OPTIONS = {name.replace("_", "-"): declared for name, declared in option_fields(ClientConfig).items()}

OPTION_HELP = {name: option_of(declared).description for name, declared in _OPTIONS.items()}


def parse_config(arguments: Sequence[str], environment: Mapping[str, str]) -> ClientConfig:
    """Read the options.

    Raises:
        ConfigurationError: something is missing or wrong; one message names every mistake.
        ClockError: nothing but the clock is.

    """
    parser = OptionParser(
        prog="heron-client",
        description="Trains the front of a model on this device by forward passes alone.",
        rare=[f"--{name}" for name, declared in _OPTIONS.items() if not option_of(declared).common],
        epilog="Every option may also be given in the environment: --state-dir as HERON_CLIENT_STATE_DIR. " + exit_codes_help(),
    )
    parser.add_argument("--version", action="version", version=f"heron-client {VERSION}")
    for name, explanation in OPTION_HELP.items():
        # A flag's value is a word too, as it is in the environment.
        if isinstance(_OPTIONS[name].default, bool):
            parser.add_argument(f"--{name}", action="store_const", const="yes", help=explanation)
        else:
            parser.add_argument(f"--{name}", help=explanation)
    namespace, mistakes = parser.read(arguments)
    given = vars(namespace)
    variables = own_variables(environment)
    mistakes += variable_mistakes(variables, _PREFIX, map(variable_of, OPTION_HELP))
    text: dict[str, str | None] = {}
    places: dict[str, str] = {}
    for name in OPTION_HELP:
        flag, variable = given[name.replace("-", "_")], variables.get(variable_of(name))
        text[name] = flag or variable
        places[name] = f"--{name}" if flag or not variable else variable_of(name)
    return _Reader(text, places=places, environment=environment, mistakes=mistakes).read()


def config_of(given: Mapping[str, object]) -> ClientConfig:
    """Return a configuration from options by name, for a program that has no command line; None is what was not given.

    Raises:
        ConfigurationError, ClockError: see `parse_config`; sentences name options as arguments.

    """
    # A switch is a word here too.
    words = {
        name: ("yes" if value else "no") if isinstance(value, bool) else str(value) for name, value in given.items() if value is not None
    }
    text = {name: words.get(name.replace("-", "_")) for name in OPTION_HELP}
    places = {name: name.replace("-", "_") for name in OPTION_HELP}
    return _Reader(text, places=places, environment=os.environ, mistakes=[]).read()


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
            threads=int(self._number("threads")),
            window_bytes=int(self._number("window-bytes")),
            give_up_after_seconds=self._number("give-up-after-seconds"),
            metrics_host=self._text["metrics-host"] or self._default("metrics-host"),
            metrics_port=int(self._number("metrics-port")) if self._text["metrics-port"] is not None else None,
            log_level=self._chosen("log-level", ("debug", "info", "warning", "error")),
            log_format=self._chosen("log-format", LOG_FORMATS),
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

    def _default(self, option: str) -> Any:
        return _OPTIONS[option].default

    def _number(self, option: str) -> float:
        """Return a number between the bounds that its option declares; empty text is the default."""
        text, bounds, default = self._text[option], option_of(_OPTIONS[option]), float(self._default(option) or 0)
        least, most = bounds.at_least or 0, _LARGEST if bounds.at_most is None else bounds.at_most
        try:
            value = float(text) if text else default
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            limit = f" and at most {human_number(most)}" if most < _LARGEST else ""
            self._add(option, f"is a number of at least {human_number(least)}{limit}, not {text!r}")
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

    def _chosen(self, option: str, choices: tuple[str, ...]) -> str:
        chosen = str(self._text[option] or self._default(option)).lower()
        if chosen not in choices:
            self._add(option, f"is {', '.join(choices[:-1])} or {choices[-1]}, not {chosen!r}")
        return chosen


def default_name(shard: Shard) -> str:
    """Return a name from host and shard, with characters that names may not have replaced."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:60] or "client"
    return f"{host}-shard-{shard.index}-of-{shard.count}" if shard.count > 1 else host


def default_state_dir(name: str, environment: Mapping[str, str]) -> Path:
    """Return the directory for a client's state by the XDG convention. Raises ConfigurationError where there is none."""
    return state_home("give --state-dir, or ", environment) / "heron-client" / name
