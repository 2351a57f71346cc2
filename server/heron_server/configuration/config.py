"""The server's configuration: one frozen section per concern; each description is the option's help, with the reason for its default."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from heron_common.algorithm.algorithm import Algorithm
from heron_common.algorithm.presets import PRESETS, check_preset, preset
from heron_common.data.sources import source_kind
from heron_common.data.specification import SPECIFICATION_FORMS, parse_specification
from heron_common.process.addresses import is_loopback
from heron_common.terminal.log_setup import LOG_FORMAT_HELP
from heron_common.terminal.spelling import did_you_mean
from heron_server.configuration.gates_section import GatesSection
from heron_server.configuration.own_presets import PresetTable
from heron_server.configuration.plan_section import PlanSection
from heron_server.configuration.section import COMMON, Section, checked, section_of
from heron_server.models.registry import FAMILIES, OUTSIDE, check_family, parse_family_options, parse_model_options
from heron_server.rounds.state import RoundRules, cohort_size
from heron_server.storage.run_directory import has_begun
from heron_server.training.early_end import EndRules, parse_comparison
from heron_server.training.trainer import TrainerSettings


class RunSection(Section):
    """What is trained, on what, by whom."""

    preset: str = Field(
        "heron",
        description=f"algorithm: one of {', '.join(PRESETS)}, or NAME of a table [presets.NAME] in the TOML file",
        json_schema_extra=COMMON,
    )
    model: str = Field(
        "cnn",
        description=f"model family ({' or '.join(FAMILIES)}), hf:FOLDER or hf:NAME for a transformer, or python:MODULE:CALLABLE for a torch module of your "
        "own",
        json_schema_extra=COMMON,
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the model, like 'front_widths=4,2 front_strides=1,2 hidden=128'; a module of your own also takes batch_norm=frozen or batch",
        validate_default=False,
    )
    cut: str | None = Field(
        None,
        description="submodule behind which the model is cut, like layer1: needed for a module of your own (`heron cuts` lists the places)",
    )
    blocks: str = Field(
        "",
        description="submodules of the front behind which local losses are, like layer1.0,layer1.1 (default: all blocks that are found, or every second one); "
        "the last block of train_weights begins behind the last of them",
    )
    data_spec: str = Field("digits", description=f"what data look like: {SPECIFICATION_FORMS}", json_schema_extra=COMMON)
    overlong: Literal["truncate", "refuse"] = Field(
        "truncate", description="text longer than the specification says is cut off and counted, or refused: truncate or refuse"
    )
    eval_data: str | None = Field(
        None, description="held-out data source that every round is scored on; none by default", json_schema_extra=COMMON
    )
    validation_data: str | None = Field(
        None,
        description="data source by whose loss the best checkpoint is chosen, to which a run goes back if it unlearns what it knew; by the loss of its server steps "
        "by default, never by --eval-data",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of its own samples that every client keeps from training and uploads before a round's first step, to score the model that the "
        "round starts from; --eval-data lies with the server, this with the clients",
    )
    evaluation_batches: int = Field(
        4, ge=1, description="most batches of held-out samples that a client uploads in a round; each costs what an upload costs"
    )
    clients: int = Field(
        4, ge=1, description="how many clients take part; the first round opens at once when so many are there", json_schema_extra=COMMON
    )
    min_updates: int | None = Field(
        None,
        ge=1,
        description="quorum: fewer updates make no round (default: half of those that a round takes in, rounded up)",
        json_schema_extra=COMMON,
    )
    rounds: int = Field(60, ge=1, description="how many rounds to train", json_schema_extra=COMMON)
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, directions and sample order: the same seed gives the same run")
    run_dir: Path = Field(
        Path("heron-runs/run"), description="directory of this run: checkpoints, spool, summary.json", json_schema_extra=COMMON
    )
    resume: bool = Field(False, description="continue the run in --run-dir from its last round boundary", json_schema_extra=COMMON)

    @field_validator("model_options", mode="before")
    @classmethod
    def _parse_options(cls, value: Any) -> Any:
        return checked(parse_model_options, value) if isinstance(value, str) else value

    @property
    def block_names(self) -> tuple[str, ...]:
        """The submodules that `blocks` names."""
        return tuple(name.strip() for name in self.blocks.split(",") if name.strip())

    @field_validator("model", "data_spec", "eval_data")
    @classmethod
    def _exists(cls, value: str | None, field: ValidationInfo) -> str | None:
        checks = {"model": check_family, "data_spec": parse_specification}
        if value is not None:
            checked(checks.get(str(field.field_name), source_kind), value)
        return value

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, value: str, field: ValidationInfo) -> str:
        own = (field.context or {}).get("presets", ())
        try:
            checked(partial(check_preset, own=own), value)
        except ValueError as exc:
            raise ValueError(f"{exc}{did_you_mean(value, [*PRESETS, *own])}") from exc
        return value

    @model_validator(mode="after")
    def _options_are_the_models(self) -> Self:
        if not self.model.startswith(OUTSIDE):
            checked(partial(parse_family_options, self.model), self.model_options)
        return self


class RoundsSection(section_of(RoundRules, EndRules)):  # type: ignore[misc]
    """When rounds open and end, and with whom; when the run does."""

    @field_validator("stop_when")
    @classmethod
    def _compares(cls, value: str | None) -> str | None:
        if value is not None:
            checked(parse_comparison, value)
        return value


class TrainerSection(section_of(TrainerSettings)):  # type: ignore[misc]
    """How the server steps its part of the model."""

    server_threads: int = Field(
        1, ge=1, description="threads of torch on the CPU; one is fastest for small backs and leaves the rest to the network"
    )


class NetworkSection(Section):
    """Where the server listens and whom it lets in."""

    listen: str = Field("127.0.0.1:50051", description="HOST:PORT; loopback by default, port 0 takes a free one", json_schema_extra=COMMON)
    tls_dir: Path | None = Field(
        None,
        description="mutual TLS with the certificates in this directory, the `server` folder that `heron certs init` writes; no TLS by default",
        json_schema_extra=COMMON,
    )
    insecure: bool = Field(False, description="allow listening beyond loopback without TLS: activations and labels then travel in clear")
    max_clients: int = Field(64, ge=1, description="most clients at a time; sizes the thread pool")
    resume_if_begun: bool = Field(
        False,
        description="continue the run in --run-dir if one has begun there, begin one otherwise: for services and containers that start again",
    )
    metrics_host: str = Field("127.0.0.1", description="interface of the metrics endpoint")
    metrics_port: int = Field(9464, ge=0, le=65535, description="port of the Prometheus endpoint; 0 takes a free one")
    grace_seconds: float = Field(10.0, ge=0, description="how long calls and clients may take to end when the server stops")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="which lines of the log are written")
    log_format: Literal["auto", "human", "key-value"] = Field("auto", description=LOG_FORMAT_HELP)

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("HOST:PORT like 127.0.0.1:50051 or [::1]:50051 was expected")
        return value

    @property
    def host(self) -> str:
        """The host part of `listen`, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port part of `listen`."""
        return int(self.listen.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @model_validator(mode="after")
    def _refuse_clear_text(self) -> NetworkSection:
        if self.tls_dir is not None and self.insecure:
            raise ValueError("--tls-dir and --insecure contradict each other: give one of them")
        if not self.is_loopback and self.tls_dir is None and not self.insecure:
            raise ValueError(
                f"--listen {self.listen} is beyond loopback, and without TLS everybody on the way could read the data: "
                "give --tls-dir (`heron certs init` makes one), or --insecure to allow it"
            )
        return self


class StorageSection(Section):
    """What goes to disk and how much of it."""

    spool_bytes: int = Field(
        1 << 30, ge=1 << 20, description="byte budget of uploads that wait on disk; clients are told to come back when it is full"
    )
    client_spool_bytes: int | None = Field(
        None,
        ge=1,
        description="most bytes of one client's uploads that may wait once the spool is half full, so that nobody takes the room of others "
        "(default: --spool-bytes divided by the clients of a round)",
    )
    inbox_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="byte budget of uploads that are arriving, over all clients; further ones are told to come back before a byte is read",
    )
    keep_checkpoints: int = Field(3, ge=1, description="how many checkpoints to keep; older ones are used if the newest is damaged")
    program_cache: Path | None = Field(None, description="directory of compiled programs (default: below the user's cache directory)")
    tensorboard_dir: Path | None = Field(
        None, description="directory for TensorBoard event files, a few scalars a round; none by default; needs heron-sfl[tensorboard]"
    )


class TrainingConfig(Section):
    """Everything a run can be told, wherever its clients are."""

    run: RunSection
    rounds: RoundsSection
    plan: PlanSection
    trainer: TrainerSection
    gates: GatesSection
    storage: StorageSection
    presets: dict[str, PresetTable] = Field(default_factory=dict, exclude=True)

    @property
    def algorithm(self) -> Algorithm:
        """The preset with the options that were given in its place."""
        own = self.presets.get(self.run.preset)
        row = preset(self.run.preset) if own is None else own.algorithm(self.run.preset)
        return row.with_options(self.plan.given)

    @property
    def local_source(self) -> str | None:
        """Training data in this process, where there are any: a user's model is tried on them where --eval-data names no others."""
        return None

    @model_validator(mode="after")
    def _quorum_is_reachable(self) -> Self:
        if self.min_updates > self.cohort_size:
            cohort = f"--clients {self.run.clients}"
            if self.rounds.participation < 1:
                cohort = f"the {self.cohort_size} that --participation {self.rounds.participation:g} takes in of {cohort}"
            raise ValueError(f"--min-updates {self.min_updates} exceeds {cohort}: no round could end")
        return self

    @property
    def cohort_size(self) -> int:
        """How many clients a round takes in when all are there."""
        return cohort_size(self.rounds.participation, self.run.clients)

    @property
    def min_updates(self) -> int:
        """The quorum: half of the cohort unless given, so that a minority of broken devices cannot stop a run."""
        return self.run.min_updates if self.run.min_updates is not None else (self.cohort_size + 1) // 2

    @property
    def client_spool_bytes(self) -> int:
        """One client's share of the spool: an equal one unless given."""
        given = self.storage.client_spool_bytes
        return given if given is not None else self.storage.spool_bytes // self.cohort_size

    def identity(self) -> dict[str, Any]:
        """Return every option that belongs to the run rather than to this process, as JSON values."""
        document = self.model_dump(mode="json")
        options = {name: value for section in document.values() for name, value in section.items()}
        if (own := self.presets.get(self.run.preset)) is not None:
            options[f"presets.{self.run.preset}"] = own.model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in sorted(options.items()) if name not in PROCESS_OPTIONS}


class ServerConfig(TrainingConfig):
    """Everything a server can be told."""

    network: NetworkSection

    def settled(self) -> ServerConfig:
        """Return this configuration with --resume given or not, as --resume-if-begun asks for."""
        if not self.network.resume_if_begun or not has_begun(self.run.run_dir):
            return self
        return self.model_copy(update={"run": self.run.model_copy(update={"resume": True})})

    @model_validator(mode="after")
    def _everybody_may_come(self) -> Self:
        if self.run.clients > self.network.max_clients:
            raise ValueError(f"--clients {self.run.clients} exceeds --max-clients {self.network.max_clients}: raise --max-clients")
        return self


PROCESS_OPTIONS = frozenset(
    {
        "resume",
        "resume_if_begun",
        "run_dir",
        "listen",
        "tls_dir",
        "insecure",
        "max_clients",
        "metrics_host",
        "metrics_port",
        "grace_seconds",
        "log_level",
        "log_format",
    }
    | {
        "spool_bytes",
        "client_spool_bytes",
        "inbox_bytes",
        "keep_checkpoints",
        "program_cache",
        "tensorboard_dir",
        "device",
        "server_threads",
        "release_clients",
    }
)
"""Options that say how this process runs, not what is trained: they may differ after --resume."""

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "rounds",
        "round_deadline_seconds",
        "liveness_seconds",
        "cohort_wait_seconds",
        "clients",
        "min_updates",
        "over_selection",
        "without_quorum",
        "stop_when",
        "patience_rounds",
    }
)
"""Options of the run that an operator may change on --resume: how long it goes on and how patient it is."""
