"""From a configuration to what is trained: data specification, model, algorithm, and programs that are proved to be the model's."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from heron_common.algorithm.algorithm import Algorithm, LocalLosses
from heron_common.algorithm.plan_checks import contradictions, step_mistakes
from heron_common.data.check import check_samples
from heron_common.data.columns import with_columns
from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, StorageError
from heron_common.files.user_directories import cache_home
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference
from heron_common.terminal.log_setup import TOLD
from heron_server.configuration.config import RunSection, TrainingConfig
from heron_server.configuration.section import value_of
from heron_server.models.base import write_base
from heron_server.models.families.local_losses import with_block_heads
from heron_server.models.probes import Probes, probes_for, probes_of
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.models.train_weights import speaks_of_blocks, with_train_weights
from heron_server.models.user.given_module import PREFIX as OBJECT_PREFIX
from heron_server.models.user.moving_state import refuse_moving_state
from heron_server.models.user.user_code import PREFIX
from heron_server.objects import NO_OBJECTS, Objects
from heron_server.programs.cost import ClientCost
from heron_server.programs.export import ProgramCache
from heron_server.programs.measurements import Measurements
from heron_server.programs.parity import ParityReport
from heron_server.programs.publish import PublishedProgram, complete_algorithm, fit_smoothing_radius, needed_programs, publish
from heron_server.storage.probe_file import read_probe_file
from heron_server.training.early_end import EndRules, check_figures
from heron_server.training.trainer import choose_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What is trained and scored, and the proof that its programs are right."""

    eval_source: SampleReader | None
    validation_source: SampleReader | None
    _: KW_ONLY
    data: DataSpecification
    model: SplitModel
    algorithm: Algorithm
    cost: ClientCost
    programs: list[PublishedProgram]
    parity: ParityReport


def publish_run(
    config: TrainingConfig, columns: tuple[str, ...] = (), *, stop: threading.Event | None = None, objects: Objects = NO_OBJECTS
) -> Published:
    """Build the model, complete the algorithm, compile and prove the programs; `columns` are those that a resumed run wrote down.

    Raises:
        Interrupted: `stop` was set meanwhile.
        ConfigurationError, DataError, ProgramError, ParityError: something does not fit or is not equal; nothing was written but the program cache.

    """
    _refuse_impossible(config)
    # First: programs take long to compile, and a mistake in --eval-data should not wait for them.
    held_out, validating = (
        objects.open_source(name) if name is not None else None for name in (config.run.eval_data, config.run.validation_data)
    )
    data = specification_of(config.run, (held_out, validating), columns)
    eval_source = check_samples(held_out, data) if held_out is not None and not data.tokens else None
    validation_source = check_samples(validating, data) if validating is not None and not data.tokens else None
    chosen = config.algorithm
    probes = _probes(config, data, known=eval_source or validation_source, objects=objects)
    run = config.run
    model = build_model(run.model, run.model_options, data=data, seed=run.seed, cut=run.cut, probes=probes, module=objects.model)
    blocks = config.run.block_names
    model = with_train_weights(model, chosen.train_weights, exact=chosen.exact_weights, blocks=blocks)
    ends_at_block = chosen.local_losses is LocalLosses.END and speaks_of_blocks(chosen.train_weights, chosen.exact_weights)
    model = with_block_heads(model, chosen.local_losses, blocks=() if ends_at_block else blocks, seed=config.run.seed)
    refuse_moving_state(model)
    data = model.completed(data)
    # Text is read by the model's tokenizer.
    eval_source = check_samples(held_out, data, model.tokenizer) if held_out is not None and data.tokens else eval_source
    validation_source = check_samples(validating, data, model.tokenizer) if validating is not None and data.tokens else validation_source
    cache_directory = config.storage.program_cache or default_program_cache()
    cache, measurements = ProgramCache(cache_directory, stop), Measurements(cache_directory)
    algorithm, cost = complete_algorithm(chosen, model, measurements.client_cost)
    count = len(needed_programs(algorithm)) * len(model.lengths or (0,))
    log.info(
        "compiling programs", extra={"programs": count, TOLD: f"compiling {count} programs, unless an earlier start has left them ..."}
    )
    if config.plan.smoothing_radius is None:
        algorithm = fit_smoothing_radius(algorithm, model, cache=cache, seed=config.run.seed, measure=measurements.difference_error)
    programs, parity = publish(algorithm, model, cache=cache, seed=config.run.seed, measure=measurements.difference_error)
    return Published(
        eval_source, validation_source, data=data, model=model, algorithm=algorithm, cost=cost, programs=programs, parity=parity
    )


def specification_of(run: RunSection, held_out: Iterable[DataSource | None] = (), columns: tuple[str, ...] = ()) -> DataSpecification:
    """Return what a run expects of data, as far as that is known without its model.

    Names of columns are those of --data-spec, else those that a resumed run wrote down, else those of the first held-out data that have any.

    Raises:
        ConfigurationError: --data-spec is none.

    """
    data = dataclasses.replace(parse_specification(run.data_spec), refuses_overlong=run.overlong == "refuse")
    data = dataclasses.replace(data, columns=data.columns or columns)
    for source in held_out:
        data = data if source is None else with_columns(data, source.inputs)
    return data


def _refuse_impossible(config: TrainingConfig) -> None:
    """Refuse at once what needs neither data nor model to be known as wrong."""
    algorithm = config.algorithm
    mistakes = step_mistakes(algorithm.plan, config.plan.given) + contradictions(algorithm)
    sentences = ["the plan cannot run: " + "; ".join(mistakes)] if mistakes else []
    for check in (lambda: choose_device(config.trainer.device), lambda: _check_end(config)):
        try:
            check()
        except ConfigurationError as exc:
            sentences += exc.sentences
    if sentences:
        raise ConfigurationError(*sentences)


def _check_end(config: TrainingConfig) -> None:
    run = config.run
    check_figures(
        value_of(config.rounds, EndRules),
        task=parse_specification(run.data_spec).task,
        is_scored=run.eval_data is not None,
        holds_out=run.held_out > 0,
    )


def write_frozen_weights(model: SplitModel, blobs: Path, resumes: bool) -> BlobReference | None:
    """Write the frozen weights to where clients fetch them from; None if there are none. What an earlier start that came to nothing left there is removed.

    Raises:
        ConfigurationError: the run that is resumed began with others: its checkpoints hold only what is trained.
        StorageError: the disk refuses.

    """
    if not model.frozen:
        return None
    try:
        before = {path.name for path in blobs.iterdir() if len(path.name) == 64} if blobs.is_dir() else set()
        reference = write_base(model.frozen, blobs)
        if resumes and reference.sha256 not in before:
            (blobs / reference.sha256).unlink()
            raise ConfigurationError(
                "the frozen weights are not those that this run began with: give the same model folder again, or start a new run with another --run-dir"
            )
        for name in before - {reference.sha256}:
            (blobs / name).unlink()
    except OSError as exc:
        raise StorageError(f"cannot write the frozen weights to {blobs} ({exc.strerror or exc}): free some space") from exc
    return reference


def default_program_cache() -> Path:
    """Return the directory for compiled programs by the XDG convention. Raises ConfigurationError where there is none."""
    return cache_home("give --program-cache, or ") / "heron" / "programs"


def _probes(config: TrainingConfig, data: DataSpecification, *, known: SampleReader | None, objects: Objects) -> Probes | None:
    """Return the run's own samples for a user's model to be tried on, those that it began with where it is resumed; None if there are none."""
    run = config.run
    if not run.model.startswith((PREFIX, OBJECT_PREFIX)):
        return None
    if run.resume:
        samples = read_probe_file(run.run_dir, data.input_shape, data.tokens)
        return Probes(samples, are_made_up=False) if samples is not None else None
    if known is not None:
        return probes_of(known)
    source = run.eval_data or run.validation_data or config.local_source
    return probes_for(objects.open_source(source), data, family=run.model, options=run.model_options) if source is not None else None
