"""`heron.simulate`: what `heron simulate` does, for a module and data that a program holds."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

from torch import nn

from heron_cli.python_api.arguments import read_call, resumed
from heron_cli.python_api.data import Data
from heron_cli.python_api.mistakes import Mistakes
from heron_cli.python_api.run import Run
from heron_cli.python_api.training import OnRound, Training
from heron_cli.simulation.configuration import SimulationConfig, simulation_config
from heron_cli.simulation.run import Simulation


def simulate(
    model: nn.Module | str,
    data: Data,
    *,
    cut: str | None = None,
    preset: str = "heron",
    clients: int = 4,
    rounds: int = 60,
    eval_data: Data | None = None,
    validation_data: Data | None = None,
    data_spec: str | None = None,
    run_dir: Path | str | None = None,
    on_round: OnRound | None = None,
    **options: Any,
) -> Run:
    """Build a run of many clients in this process, let it train in the background, and return it.

    Args:
        model: a `torch.nn.Module`, which stays as it is, or a name as `--model` takes it.
        data: what all clients share out: arrays (x, y), a dataset with a length whose [i] is one x and y, or a data source by name.
        cut: the submodule behind which the module is cut; needed for a module of your own.
        preset: the algorithm.
        clients: how many there are.
        rounds: how many are trained.
        eval_data: what every round is scored on, given like `data`.
        validation_data: by whose loss the best checkpoint is chosen, given like `data`.
        data_spec: what data look like, as `--data-spec` has it; of arrays it is found out: their shape, and classes or outputs.
        run_dir: the run's directory; without it its files go with the run.
        on_round: called with each finished round, on the run's own thread; what it raises ends the run.
        options: every other option of `heron simulate` by its name: `partition="dirichlet:0.3"`, `seed=1`, `local_steps=10`, `resume=True`.

    Raises:
        ConfigurationError, DataError: arguments are wrong; all mistakes at once.
        HeronError: the model cannot be cut there, a program does not match it, or the disk stands in the way.

    """
    kept, directory = _directory(run_dir)
    arguments = {
        "cut": cut,
        "preset": preset,
        "clients": clients,
        "rounds": rounds,
        "data": data,
        "eval_data": eval_data,
        "validation_data": validation_data,
        "data_spec": data_spec,
        "run_dir": directory,
        "on_round": on_round,
        **options,
    }
    return _begin(model, arguments, kept)


def _begin(model: nn.Module | str, arguments: dict[str, Any], kept: object) -> Run:
    mistakes = Mistakes()
    options, objects = read_call(model, arguments, data=("data", "eval_data", "validation_data"), mistakes=mistakes)
    config: SimulationConfig | None = None
    with mistakes.collected():
        config = simulation_config(**options)
    mistakes.raise_if_any()
    assert config is not None
    stop = threading.Event()
    training = Training(Simulation(config, stop, objects), stop, arguments["on_round"])
    return Run(
        training.directory,
        model=model,
        training=training,
        again=lambda **changes: _begin(model, resumed(arguments, changes), kept),
        kept=kept,
    )


class _OwnDirectory:
    """A directory that goes with the last run that keeps it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="heron-run-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _directory(run_dir: Path | str | None) -> tuple[object, Path]:
    """Return what has to be kept for a directory to stay, and the directory."""
    if run_dir is not None:
        return None, Path(run_dir)
    kept = _OwnDirectory()
    return kept, kept.path
