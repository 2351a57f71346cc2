"""The model of a run as one of its checkpoints left it, rebuilt from what the run wrote down; needs neither its data nor its clients."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from heron_common.algorithm.presets import preset
from heron_common.data.specification import parse_specification
from heron_common.errors import CheckpointError, ConfigurationError, StorageError
from heron_common.files.plain_files import is_plain, reading
from heron_common.specification.data_specification import DataSpecification
from heron_server.configuration.config import RunSection
from heron_server.configuration.own_presets import PresetTable
from heron_server.configuration.plan_section import PlanSection
from heron_server.exports.vouching import Vouched
from heron_server.models.base import base_digest
from heron_server.models.behaviour import computes_otherwise
from heron_server.models.probes import Probes
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, load_moving_state
from heron_server.models.train_weights import with_train_weights
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.storage.probe_file import read_probe_file
from heron_server.storage.run_directory import recorded_identity

log = logging.getLogger(__name__)

NOBODY = Vouched()
"""Nobody answers for a run's code; models that are no code need nobody."""


@dataclass(frozen=True)
class TrainedModel:
    """A split model with the weights of a checkpoint.

    Attributes:
        model: front and back are trained; the head too, though nobody needs it any more.
        data: the run's data specification, complete.
        completed_rounds: how many rounds the checkpoint has seen.
        run_id: of the run.
        configuration: the run's options by name.

    """

    model: SplitModel
    data: DataSpecification
    _: KW_ONLY
    completed_rounds: int
    run_id: str
    configuration: dict[str, Any]


def load_trained(
    run_dir: Path, completed_rounds: int | Literal["best"] | None = None, vouched: Vouched = NOBODY, *, module: nn.Module | None = None
) -> TrainedModel:
    """Rebuild a run's model and load the checkpoint after so many rounds, the best or the newest; warn if a user's code computes something else by now.

    `module` is the run's own where it was handed over as an object; it stays as it is.

    Raises:
        ConfigurationError: there is no run, it names code that nobody vouched for, or its model cannot be built here: its code or its folder is missing or
            another one, or a library is.
        StorageError: the run's record is damaged.
        CheckpointError: the checkpoint is missing, damaged, or not of this model.

    """
    identity = recorded_identity(run_dir)
    # Before the model is built, which can take minutes.
    store = CheckpointStore(run_dir / "checkpoints", 1)
    checkpoint = store.read(store.best() if completed_rounds == "best" else completed_rounds)
    with reading(run_dir / "run.json"):
        options, chosen = _options(identity.configuration, run_dir), _train_weights(identity.configuration)
    vouched.check(run_dir, options.model, options.model_options)
    data = parse_specification(options.data_spec)
    data = dataclasses.replace(data, refuses_overlong=options.overlong == "refuse", columns=data.columns or identity.columns)
    samples = read_probe_file(run_dir, data.input_shape, data.tokens)
    probes = Probes(samples, are_made_up=False) if samples is not None else None
    built = build_model(options.model, options.model_options, data=data, seed=options.seed, cut=options.cut, probes=probes, module=module)
    built = with_train_weights(built, chosen, blocks=options.block_names)
    difference = identity.code_difference(computes_otherwise(identity.model_code, identity.behaviour, built))
    if difference:
        log.warning(difference)
    _check_base(built, options.model, run_dir)
    _load(built, checkpoint, name=options.model, run_dir=run_dir)
    return TrainedModel(
        built,
        built.completed(data),
        completed_rounds=checkpoint.completed_rounds,
        run_id=identity.run_id,
        configuration=identity.configuration,
    )


def _options(configuration: dict[str, Any], run_dir: Path) -> RunSection:
    needed = ("data_spec", "overlong", "model", "model_options", "seed", "cut")
    missing = [name for name in needed if name not in configuration]
    if missing:
        raise StorageError(
            f"{run_dir / 'run.json'} has no option {', '.join(map(repr, missing))}: restore it from a backup, or use the version that made the run"
        )
    blocks = {name: configuration[name] for name in ("blocks",) if name in configuration}
    return RunSection.model_validate({name: configuration[name] for name in needed} | blocks)


def _train_weights(configuration: dict[str, Any]) -> str:
    """Return which weights moved: what was given, or what the run's preset says."""
    name = configuration.get("preset", "heron")
    own = configuration.get(f"presets.{name}")
    row = preset(name) if own is None else PresetTable.model_validate(own).algorithm(name)
    given = PlanSection.model_validate({"train_weights": configuration.get("train_weights")})
    return row.with_options(given.given).train_weights


def _check_base(model: SplitModel, name: str, run_dir: Path) -> None:
    """Compare frozen weights, which no checkpoint holds, with those that devices were given."""
    blobs = run_dir / "blobs"
    if model.frozen and blobs.is_dir() and not is_plain(blobs / base_digest(model.frozen)):
        raise ConfigurationError(
            f"the frozen weights of model {name!r} are not those that the run was trained with: bring back the folder or the version of the hub's "
            "model that it was started with"
        )


def _load(model: SplitModel, checkpoint: Checkpoint, *, name: str, run_dir: Path) -> None:
    for part, module in (("front", model.front), ("back", model.back)):
        prefix = f"{part}."
        tensors = {key.removeprefix(prefix): value for key, value in checkpoint.tensors.items() if key.startswith(prefix)}
        try:
            load_moving_state(module, tensors)
        except (RuntimeError, LookupError, TypeError, ValueError) as exc:
            reason = " ".join(str(exc).split())
            raise CheckpointError(
                f"the {part} in the checkpoint of {run_dir} is not that of model {name!r} as it is built here ({reason[:300]}): "
                "bring back the code or the folder that the run was started with"
            ) from exc
