"""`heron.serve`: what `heron-server` does, from a script."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from torch import nn

from heron_cli.python_api.arguments import read_call, resumed
from heron_cli.python_api.data import Data
from heron_cli.python_api.mistakes import Mistakes
from heron_cli.python_api.run import Run
from heron_cli.python_api.training import OnRound, Training
from heron_server.app import Serving
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import configuration_of


def serve(
    model: nn.Module | str,
    *,
    run_dir: Path | str,
    cut: str | None = None,
    preset: str = "heron",
    clients: int = 4,
    rounds: int = 60,
    eval_data: Data | None = None,
    validation_data: Data | None = None,
    data_spec: str | None = None,
    on_round: OnRound | None = None,
    **options: Any,
) -> Run:
    """Let a server listen for clients and train in the background, and return its run; `run.address` is what clients reach.

    Args:
        model: a `torch.nn.Module`, which stays as it is, or a name as `--model` takes it.
        run_dir: the run's directory.
        cut: the submodule behind which the module is cut; needed for a module of your own.
        preset: the algorithm.
        clients: how many take part.
        rounds: how many are trained.
        eval_data: what every round is scored on: arrays (x, y), a dataset, or a data source by name.
        validation_data: by whose loss the best checkpoint is chosen, given alike.
        data_spec: what clients' data look like, as `--data-spec` has it; found out from `eval_data` where those are arrays.
        on_round: called with each finished round, on the run's own thread; what it raises ends the run.
        options: every other option of `heron-server` by its name: `listen="0.0.0.0:50051"`, `tls_dir="authority/server"`, `resume=True`.

    Raises:
        ConfigurationError, DataError: arguments are wrong; all mistakes at once.
        HeronError: the model cannot be cut there, a program does not match it, or port or disk stand in the way.

    """
    arguments = {
        "cut": cut,
        "preset": preset,
        "clients": clients,
        "rounds": rounds,
        "eval_data": eval_data,
        "validation_data": validation_data,
        "data_spec": data_spec,
        "run_dir": Path(run_dir),
        "on_round": on_round,
        **options,
    }
    return _begin(model, arguments)


def _begin(model: nn.Module | str, arguments: dict[str, Any]) -> Run:
    mistakes = Mistakes()
    options, objects = read_call(model, arguments, data=("eval_data", "validation_data"), mistakes=mistakes)
    config: ServerConfig | None = None
    with mistakes.collected():
        config = configuration_of(ServerConfig, options).settled()
    mistakes.raise_if_any()
    assert config is not None
    stop = threading.Event()
    serving = Serving(config, stop, objects=objects, owns_process=False)
    training = Training(serving, stop, arguments["on_round"])
    return Run(
        training.directory,
        model=model,
        training=training,
        again=lambda **changes: _begin(model, resumed(arguments, changes)),
        address=serving.address,
    )
