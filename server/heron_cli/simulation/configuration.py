"""What a simulation can be told: every option of a run, and how its data are divided over clients in this process."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from heron_cli.simulation.plots import SUFFIXES
from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.data.partition import Partition, parse_partition
from heron_common.data.sources import SPECIFICATIONS, source_kind
from heron_common.errors import ConfigurationError
from heron_common.terminal.log_setup import LOG_FORMAT_HELP
from heron_common.version import VERSION
from heron_server.configuration.config import RunSection, TrainingConfig
from heron_server.configuration.options import OptionSource, configuration_of, read_options
from heron_server.configuration.section import COMMON, Section, checked

SOURCE = OptionSource(
    "heron simulate",
    "Trains with many clients in this process: the same server and client code as over a network, messages handed over in memory. "
    "Options of a run mean what they mean to heron-server, but a schedule that takes uploads as they arrive becomes lockstep, "
    "which makes a run repeatable, "
    "and nobody is late unless a deadline is given.",
    environment_prefix="HERON_SIMULATE_",
    version=VERSION,
)

_NEVER_SECONDS = 365 * 86400.0
"""In one process nothing gets lost on the way: a client that is slow is only slow, and nobody need be dropped for it."""

_PATIENT = {"round_deadline_seconds": _NEVER_SECONDS, "liveness_seconds": _NEVER_SECONDS, "cohort_wait_seconds": _NEVER_SECONDS}


class SimulationSection(Section):
    """What only a simulation is told."""

    data: str = Field(
        "digits",
        description="training data that all clients share out: a kind like digits or fashion-mnist, which then also sets --data-spec and --eval-data, "
        "or a data source of heron-client",
        json_schema_extra=COMMON,
    )
    partition: str = Field("iid", description="how it is divided: iid, dirichlet:ALPHA, labels:K or sizes:ALPHA", json_schema_extra=COMMON)
    summary: Path | None = Field(None, description="file for the summary as JSON; none by default", json_schema_extra=COMMON)
    plot: Path | None = Field(
        None, description="file for a plot of accuracy and loss by round (default: next to the summary); needs heron-sfl[plots]"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="which lines of the log are written")
    log_format: Literal["auto", "human", "key-value"] = Field("auto", description=LOG_FORMAT_HELP)

    @field_validator("plot")
    @classmethod
    def _format_is_known(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix not in SUFFIXES:
            raise ValueError(f"a file that ends in {', '.join(SUFFIXES)} was expected")
        return value

    @field_validator("data", "partition")
    @classmethod
    def _exists(cls, value: str, field: ValidationInfo) -> str:
        checked(parse_partition if field.field_name == "partition" else source_kind, value)
        return value


class SimulatedRunSection(RunSection):
    """What is trained, on what, by whom; the command gives each run a directory of its own."""

    run_dir: Path = Field(
        Path("heron-runs/simulation-TIME"),
        description="directory of this run, which is kept: checkpoints, summary.json",
        json_schema_extra=COMMON,
    )


class SimulationConfig(TrainingConfig):
    """Everything a simulation can be told."""

    run: SimulatedRunSection
    simulation: SimulationSection

    @property
    def training_source(self) -> str:
        """The data source that clients share out."""
        return self.simulation.data if ":" in self.simulation.data else f"{self.simulation.data}:train"

    @property
    def local_source(self) -> str | None:
        """A data source of this process, beside that of --eval-data."""
        return self.training_source

    @property
    def partition(self) -> Partition:
        """How it is divided."""
        return parse_partition(self.simulation.partition)

    @property
    def has_run_directory(self) -> bool:
        """Whether there is a directory to keep; otherwise, where a program simulates and gives none, the run's files go when it ends."""
        return "run_dir" in self.run.model_fields_set

    @property
    def plot_path(self) -> Path | None:
        """Where the plot goes, if anywhere."""
        summary = self.simulation.summary
        return self.simulation.plot or (summary.with_suffix(".png") if summary is not None else None)

    def completed(self) -> SimulationConfig:
        """Return this configuration with what follows from --data, and with the patience of a single process, where nothing else was given."""
        run: dict[str, Any] = {}
        kind, _, part = self.training_source.partition(":")
        if "data_spec" not in self.run.model_fields_set and kind in SPECIFICATIONS:
            run["data_spec"] = kind
        if "eval_data" not in self.run.model_fields_set and "train" in part.split(":"):
            run["eval_data"] = ":".join([kind, *("test" if word == "train" else word for word in part.split(":"))])
        rounds = {name: value for name, value in _PATIENT.items() if name not in self.rounds.model_fields_set}
        arrives = self.plan.server_schedule is None and self.algorithm.schedule is ServerSchedule.ARRIVAL
        plan = {"server_schedule": ServerSchedule.LOCKSTEP} if arrives else {}
        return self.model_copy(
            update={
                "run": self.run.model_copy(update=run),
                "rounds": self.rounds.model_copy(update=rounds),
                "plan": self.plan.model_copy(update=plan),
            }
        )


def read_simulation(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> SimulationConfig:
    """Read the options of `heron simulate`.

    Raises:
        ConfigurationError: names every unknown or wrong option, or says what --resume needs.

    """
    return _kept(
        _settled(
            read_options(SimulationConfig, SOURCE, arguments=arguments, environment=os.environ if environment is None else environment)
        )
    )


def simulation_config(**options: Any) -> SimulationConfig:
    """Return a configuration from options by name, `simulation_config(preset="frozen", clients=5, seed=1, participation=0.2)`.

    Neither the command line nor the environment is read.

    Raises:
        ConfigurationError: see `read_simulation`.

    """
    return _settled(configuration_of(SimulationConfig, options))


def _kept(config: SimulationConfig) -> SimulationConfig:
    """Return the configuration with a directory of its own where none was given."""
    if config.has_run_directory:
        return config
    place = f"heron-runs/simulation-{time.strftime('%Y%m%d-%H%M%S')}"
    # Two may start within a second.
    free = next(path for path in (Path(f"{place}-{n}" if n > 1 else place) for n in itertools.count(1)) if not path.exists())
    return config.model_copy(update={"run": config.run.model_copy(update={"run_dir": free})})


def _settled(config: SimulationConfig) -> SimulationConfig:
    if config.run.resume and not config.has_run_directory:
        raise ConfigurationError("--resume continues the run in --run-dir, but no --run-dir was given: give the one of the run")
    return config.completed()
