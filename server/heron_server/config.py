"""The server's configuration: one frozen section per concern; each description is the option's help, with the reason for its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from heron_common.addresses import is_loopback
from heron_common.aggregation_rule import AggregationRule
from heron_common.data.specification import SPECIFICATION_FORMS
from heron_common.directions import DirectionDistribution
from heron_common.errors import ConfigurationError
from heron_common.plan import (
    ClientOptimiser,
    DirectionScale,
    Estimator,
    HeadTraining,
    Objective,
    ServerSchedule,
    UpdateEncoding,
    Weighting,
)
from heron_common.presets import PRESETS
from heron_common.timing import DEFAULT_LIVENESS_SECONDS
from heron_common.wire_dtypes import WireDtype
from heron_common.zeroth_order import FiniteDifference
from heron_server.models.registry import parse_model_options
from heron_server.rounds.state import WithoutQuorum, cohort_size
from heron_server.training.gates import GateSettings


class Section(BaseModel):
    """A group of options: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSection(Section):
    """What is trained, on what, by whom."""

    preset: str = Field("heron", description=f"algorithm: one of {', '.join(PRESETS)}")
    model: str = Field("cnn", description="model family (cnn or resnet), or python:MODULE:CALLABLE for a torch module of your own")
    model_options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the model, like 'front_widths=4,2 front_strides=1,2 hidden=128'; a module of your own also takes batch_norm=frozen or batch",
        validate_default=False,
    )
    cut: str | None = Field(
        None,
        description="submodule behind which the model is cut, like layer1: needed for a module of your own (`heron cuts` lists the places)",
    )
    data_spec: str = Field(
        "digits",
        description=f"what data look like: {SPECIFICATION_FORMS}",
    )
    overlong: Literal["truncate", "refuse"] = Field(
        "truncate", description="text longer than the specification says is cut off and counted, or refused: truncate or refuse"
    )
    eval_data: str | None = Field(None, description="held-out data source that every round is scored on; none by default")
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
    clients: int = Field(4, ge=1, description="how many clients take part; the first round opens at once when so many are there")
    min_updates: int | None = Field(
        None, ge=1, description="quorum: fewer updates make no round (default: half of those that a round takes in, rounded up)"
    )
    rounds: int = Field(60, ge=1, description="how many rounds to train")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, directions and sample order: the same seed gives the same run")
    run_dir: Path = Field(Path("heron-runs/run"), description="directory of this run: checkpoints, spool, summary.json")
    resume: bool = Field(False, description="continue the run in --run-dir from its last round boundary")

    @field_validator("model_options", mode="before")
    @classmethod
    def _parse_options(cls, value: Any) -> Any:
        try:
            return parse_model_options(value) if isinstance(value, str) else value
        except ConfigurationError as exc:
            # pydantic collects ValueErrors with the option's name; ours would hide every other mistake.
            raise ValueError(str(exc)) from exc


class RoundsSection(Section):
    """When rounds open and end, and with whom."""

    participation: float = Field(
        1.0, gt=0, le=1, description="share of the clients that each round takes in, drawn anew from the seed every time; the others wait"
    )
    over_selection: float = Field(
        1.0,
        ge=1,
        le=3,
        description="so many times as many clients are drawn as --participation says, and the round ends with that many updates: 1.3 keeps slow or lost "
        "devices from holding a round up; the work of the slowest is not used",
    )
    without_quorum: WithoutQuorum = Field(
        WithoutQuorum.REPEAT, description="a round without a quorum is tried again (repeat), or counts as done without an update (skip)"
    )
    round_deadline_seconds: float = Field(
        600.0, gt=0, description="a round ends then, with or without stragglers; ten minutes suit slow devices"
    )
    liveness_seconds: float = Field(
        DEFAULT_LIVENESS_SECONDS,
        ge=3,
        description="a client that sent nothing for so long has departed; heartbeats, keepalive and every timeout of the network are derived from it",
    )
    cohort_wait_seconds: float = Field(
        30.0,
        ge=0,
        description="the first round waits so long for the rest of --clients once --min-updates are there; time to start the other devices",
    )


class PlanSection(Section):
    """What differs from the preset's plan; everything unset is the preset's."""

    local_steps: int | None = Field(None, ge=1, description="h, steps a client takes in a round")
    upload_interval: int | None = Field(None, ge=1, description="k, steps from one upload to the next")
    batch_size: int | None = Field(None, ge=1, description="B, samples of a step")
    objective: Objective | None = Field(None, description="whose loss the front descends: none, auxiliary, server or cut_gradient")
    estimator: Estimator | None = Field(None, description="how the client finds its direction: none, zeroth_order or first_order")
    head_training: HeadTraining | None = Field(None, description="who trains the auxiliary head: none, client, server or alignment")
    direction_groups: int | None = Field(
        None, ge=1, description="G, groups of the batch with a direction each (default: fixed from weight and FLOP counts)"
    )
    num_directions: int | None = Field(None, ge=1, description="P, directions per group; each costs a pass and divides the variance")
    distribution: DirectionDistribution | None = Field(None, description="directions: rademacher, gaussian or sphere")
    micro_batch: int | None = Field(
        None, ge=1, description="samples of one run of a program; changes memory only (default: fixed from activation bytes)"
    )
    smoothing_radius: float | None = Field(
        None,
        gt=0,
        description="mu, length of a perturbation in units of the direction's scale (default: the preset's, halved until finite differences are true)",
    )
    direction_scale: DirectionScale | None = Field(
        None,
        description="entries of a direction: unit, tensor_rms (each tensor's root mean square), global_rms (that of all trained weights) or block_rms (that, in one layer a round)",
    )
    difference: FiniteDifference | None = Field(None, description="forward or central")
    client_optimiser: ClientOptimiser | None = Field(
        None, description="sgd, momentum, adam, adamw, or scalar_adaptive for zeroth-order steps"
    )
    client_learning_rate: float | None = Field(None, gt=0, description="eta of the client's steps")
    client_momentum: float | None = Field(None, ge=0, lt=1, description="momentum of client_optimiser momentum")
    client_weight_decay: float | None = Field(None, ge=0, description="decoupled weight decay of client_optimiser adamw")
    final_rate_fraction: float | None = Field(
        None, ge=0, le=1, description="the client's learning rate falls linearly over the run to this share of itself; 1 keeps it"
    )
    clip_factor: float | None = Field(
        None, gt=0, description="directional derivatives beyond so many times the running 95 % quantile of their sizes are clipped"
    )
    wire_dtype: WireDtype | None = Field(
        None, description="activations and gradients at the cut travel as float32, float16, bfloat16 or int8 (a scale per row)"
    )
    update_encoding: UpdateEncoding | None = Field(
        None, description="what clients submit: dense (weights), log (coefficients, replayed bit for bit) or auto (the cheaper by counts)"
    )
    aggregation: AggregationRule | None = Field(
        None, description="mean, median, trimmed_mean (from five clients on), norm_clipped_mean or multi_krum (from five clients on)"
    )
    alignment_interval_rounds: int | None = Field(None, ge=1, description="heads are aligned every so many rounds (fsl-sage)")
    alignment_epochs: int | None = Field(None, ge=1, description="passes of an alignment over the rows that were kept (fsl-sage)")
    alignment_learning_rate: float | None = Field(None, gt=0, description="Adam's rate of an alignment (fsl-sage)")
    alignment_max_rows: int | None = Field(None, ge=1, description="latest rows per client that an alignment uses (fsl-sage)")
    server_schedule: ServerSchedule | None = Field(
        None,
        description="order of training on uploads: arrival, sequential, lockstep (reproducible bit for bit) or shuffled (a step's uploads mixed)",
    )
    weighting: Weighting | None = Field(None, description="how clients count in the average: examples or uniform")
    warmup_rounds: int | None = Field(None, ge=0, description="rounds in which only the server learns, before fronts move")


class TrainerSection(Section):
    """How the server steps its part of the model."""

    server_optimiser: Literal["sgd", "adam", "adamw"] = Field("adam", description="optimiser of back and head: sgd, adam or adamw")
    server_learning_rate: float = Field(
        2e-3, gt=0, description="eta_s; 2e-3 suits Adam on small backs, and a head of many inputs takes less by itself"
    )
    server_weight_decay: float = Field(0.0, ge=0, description="weight decay of the server's optimiser")
    server_momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    device: str = Field("auto", description="auto (cuda if there is one), cpu, cuda or cuda:N")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="fp32, or bf16 for automatic mixed precision in the server's steps")
    server_threads: int = Field(
        1, ge=1, description="threads of torch on the CPU; one is fastest for small backs and leaves the rest to the network"
    )


class GatesSection(Section):
    """What becomes of uploads that are unlike what the other clients send."""

    gates: bool = Field(
        False,
        description="refuse uploads whose activations or losses are far from the other clients', and set clients apart that keep sending such; "
        "off by default, for where every device is one's own there is nothing to gain",
    )
    norm_factor: float = Field(
        10.0,
        ge=0,
        description="activations so many times larger or smaller than the median of the clients' are refused; clients that average their fronts "
        "differ by less than 2; 0 for never",
    )
    loss_factor: float = Field(
        2.0,
        ge=0,
        description="an upload is refused on which the server's loss is so many times the median of the clients' (or half of what it was at first, if that is "
        "more); honest clients with two classes each stay below it; 0 for never",
    )
    gradient_factor: float = Field(
        10.0, ge=0, description="a server step's gradient is shortened to so many times the median of the clients'; 0 for never"
    )
    gate_warmup_uploads: int = Field(
        64, ge=1, description="nothing is refused or shortened before so many uploads of at least three clients were trained on"
    )
    quarantine_after: int = Field(
        5, ge=0, description="strikes at which a client is set apart: a refused upload is one more, an accepted one less; 0 for never"
    )
    quarantine_rounds: int = Field(
        10, ge=1, description="rounds that a client is set apart, twice as many each time again; --release-clients hears it at once"
    )
    release_clients: str = Field("", description="names, with commas between them, of clients that are heard again from this start on")

    @model_validator(mode="after")
    def _factors_leave_room(self) -> GatesSection:
        for name in ("norm_factor", "loss_factor", "gradient_factor"):
            if 0 < getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be above 1, or what is usual would be refused, or 0 for never")
        return self

    @property
    def released(self) -> tuple[str, ...]:
        """The clients to release."""
        return tuple(name.strip() for name in self.release_clients.split(",") if name.strip())

    def settings(self) -> GateSettings | None:
        """Return the gates' settings; None if there are no gates."""
        if not self.gates:
            return None
        return GateSettings(
            self.norm_factor,
            self.loss_factor,
            self.gradient_factor,
            self.gate_warmup_uploads,
            self.quarantine_after,
            self.quarantine_rounds,
        )


class NetworkSection(Section):
    """Where the server listens and whom it lets in."""

    listen: str = Field("127.0.0.1:50051", description="HOST:PORT; loopback by default, port 0 takes a free one")
    tls_dir: Path | None = Field(
        None,
        description="mutual TLS with the certificates in this directory, the `server` folder that `heron certs init` writes; no TLS by default",
    )
    insecure: bool = Field(False, description="allow listening beyond loopback without TLS: activations and labels then travel in clear")
    max_clients: int = Field(64, ge=1, description="most clients at a time; sizes the thread pool")
    metrics_host: str = Field("127.0.0.1", description="interface of the metrics endpoint")
    metrics_port: int = Field(9464, ge=0, le=65535, description="port of the Prometheus endpoint; 0 takes a free one")
    grace_seconds: float = Field(10.0, ge=0, description="how long calls and clients may take to end when the server stops")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")

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


class TrainingConfig(Section):
    """Everything a run can be told, wherever its clients are."""

    run: RunSection
    rounds: RoundsSection
    plan: PlanSection
    trainer: TrainerSection
    gates: GatesSection
    storage: StorageSection

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
        return {name: value for name, value in sorted(options.items()) if name not in PROCESS_OPTIONS}


class ServerConfig(TrainingConfig):
    """Everything a server can be told."""

    network: NetworkSection

    @model_validator(mode="after")
    def _everybody_may_come(self) -> Self:
        if self.run.clients > self.network.max_clients:
            raise ValueError(f"--clients {self.run.clients} exceeds --max-clients {self.network.max_clients}: raise --max-clients")
        return self


PROCESS_OPTIONS = frozenset(
    {"resume", "run_dir", "listen", "tls_dir", "insecure", "max_clients", "metrics_host", "metrics_port", "grace_seconds", "log_level"}
    | {
        "spool_bytes",
        "client_spool_bytes",
        "inbox_bytes",
        "keep_checkpoints",
        "program_cache",
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
    }
)
"""Options of the run that an operator may change on --resume: how long it goes on and how patient it is."""
