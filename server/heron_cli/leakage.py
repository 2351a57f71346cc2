"""`heron leakage`: what activations at a cut give away, by attacking them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heron_cli.leakage_figures.kept import KEPT_AS
from heron_cli.leakage_figures.words import introduction, limits, paragraphs
from heron_cli.trained_options import add_trained_options, checkpoint_of, vouched_by
from heron_common.errors import ConfigurationError, StorageError
from heron_common.exit_codes import ExitCode
from heron_common.files.atomic import finite, write_json_atomically
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.terminal.option_parser import above_zero, at_least
from heron_common.terminal.output import report_progress, say

if TYPE_CHECKING:
    from heron_common.specification.data_specification import DataSpecification
    from heron_server.exports.trained_model import TrainedModel
    from heron_server.leakage.sweep import Assault, Found


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "leakage",
        help="attack the activations at a cut, and say how much of the samples comes back",
        description="Attacks the activations of a run's trained front, or of a model's first weights at every cut that `heron cuts` lists, with a ridge "
        "decoder, a decoder network and a white-box inversion. Takes minutes.",
    )
    add_trained_options(
        parser,
        without_run="without --run-dir the model whose first weights are attacked, as heron-server takes it; with it ",
        without_run_options="as heron-server takes them, or ",
    )
    parser.add_argument(
        "--data", required=True, metavar="SOURCE", help="data source of attacked samples and of the attacker's own, like digits:train"
    )
    parser.add_argument(
        "--data-spec", metavar="TEXT", help="without --run-dir: what data look like, as heron-server takes it, like 3x32x32:10"
    )
    parser.add_argument(
        "--cut",
        action="append",
        default=[],
        metavar="PLACE",
        help="without --run-dir: a place of `heron cuts`; may be repeated (default: all)",
    )
    parser.add_argument("--seed", type=at_least(0), metavar="N", help="without --run-dir: seed of the first weights (default: 0)")
    _add_defence(parser)
    parser.add_argument("--attacked", type=at_least(2), metavar="N", help="samples that are attacked (default: 64, of text 8)")
    parser.add_argument("--own", type=at_least(1), metavar="N", help="most samples that the attacker has (default: 1000, of text 400)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw attacked images and what comes back of them: .png, .svg or .pdf")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="threads of torch on the CPU (default: all that there are)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_leakage)


def _add_defence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wire-dtype",
        type=WireDtype,
        choices=list(WireDtype),
        metavar="NAME",
        help="how activations travel (default: as in the run, or float32)",
    )
    asks = "to see what it would do: a run does not do it"
    parser.add_argument("--clip", type=above_zero, metavar="RMS", help=f"scale rows of a larger root mean square down to this; {asks}")
    parser.add_argument(
        "--noise",
        type=above_zero,
        default=0.0,
        metavar="SHARE",
        help=f"add Gaussian noise, its standard deviation a share of --clip; {asks}",
    )


def run_leakage(options: argparse.Namespace) -> int:
    """Attack, print, draw; keep the figures with the run if they are of what the run does.

    Raises:
        ConfigurationError: there is no such run, model or cut, or options contradict each other.
        CheckpointError: there is no such checkpoint, or it is damaged.
        DataError: data are not what the model expects, or too few to attack with.
        StorageError: the picture, or the figures of a run, cannot be written.

    """
    _check(options)
    import torch

    from heron_server.leakage.sweep import as_json, num_attacked

    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    document, found = _begin(options)
    shown: list[Found] = []
    document["cuts"] = []
    for one in found:
        figures = finite(as_json(one))
        document["attacked_rows"] = num_attacked(one)
        if not options.json:
            say(*([] if shown else introduction(document)), *paragraphs(figures))
        document["cuts"].append(figures)
        shown.append(one)
    say(*([json.dumps(document, allow_nan=False)] if options.json else ["", *limits()]))
    if options.picture is not None:
        _draw(shown, options.picture)
    if options.run_dir is not None and options.clip is None and options.wire_dtype is None:
        _keep(document, options.run_dir)
    return ExitCode.OK


def _check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    of_model = {"--data-spec": options.data_spec, "--cut": options.cut or None, "--seed": options.seed}
    if options.run_dir is not None:
        given = [name for name, value in of_model.items() if value is not None]
        if given:
            raise ConfigurationError(
                f"{given[0]} is the run's own where --run-dir is given: leave it out, or leave --run-dir out and give --model"
            )
        return
    if options.model is None or options.data_spec is None:
        raise ConfigurationError("either --run-dir is needed, for a trained front, or --model and --data-spec, for a model's first weights")
    of_run = {"--round": options.round, "--checkpoint": options.checkpoint}
    given = [name for name, value in of_run.items() if value is not None]
    if given:
        raise ConfigurationError(f"{given[0]} names a checkpoint of a run, but there is no --run-dir: give it, or leave {given[0]} out")


def _begin(options: argparse.Namespace) -> tuple[dict[str, Any], Iterator[Found]]:
    """Return what was asked for, as JSON values, and what yields the figures of each cut."""
    from heron_common.data.sources import open_source, parse_specification
    from heron_server.exports.trained_model import load_trained
    from heron_server.leakage.defence import Defence
    from heron_server.leakage.sweep import Assault, measure_places
    from heron_server.models.registry import parse_model_options

    source = open_source(options.data)
    trained = None if options.run_dir is None else load_trained(options.run_dir, checkpoint_of(options), vouched_by(options))
    dtype = options.wire_dtype or (WireDtype.FLOAT32 if trained is None else wire_dtype_of(trained.configuration))
    assault = Assault(source, Defence(dtype, clip=options.clip, noise=options.noise), attacked=options.attacked, own=options.own)
    document = {"data": options.data, "wire_dtype": dtype.value, "clip": options.clip, "noise": options.noise}
    if trained is not None:
        _check_picture(options.picture, trained.data)
        weights = f"run {trained.run_id} after {trained.completed_rounds} rounds"
        about = {
            "model": trained.configuration["model"],
            "weights": weights,
            "run_id": trained.run_id,
            "completed_rounds": trained.completed_rounds,
        }
        return {**about, **document}, _of_run(trained, assault)
    data = parse_specification(options.data_spec)
    _check_picture(options.picture, data)
    seed = options.seed or 0
    found = measure_places(
        options.model,
        parse_model_options(options.model_options or ""),
        data=data,
        places=options.cut,
        assault=assault,
        seed=seed,
        progress=lambda words: report_progress(f"attacking {words}"),
    )
    return {"model": options.model, "weights": f"first weights of seed {seed}", **document}, found


def _of_run(trained: TrainedModel, assault: Assault) -> Iterator[Found]:
    from heron_server.leakage.sweep import ITS_OPTIONS, measure_cut

    cut = trained.configuration["cut"] or ITS_OPTIONS
    yield measure_cut(trained.model, trained.data, assault, cut=cut, progress=lambda words: report_progress(f"attacking {cut}: {words}"))


def wire_dtype_of(configuration: dict[str, Any]) -> WireDtype:
    """Return how a run's activations travel: as its options say, else its own preset's table, else as all presets of ours have it."""
    own = configuration.get(f"presets.{configuration.get('preset')}") or {}
    return WireDtype(configuration.get("wire_dtype") or own.get("wire_dtype") or WireDtype.FLOAT32)


def _check_picture(picture: Path | None, data: DataSpecification) -> None:
    if picture is None:
        return
    if data.tokens:
        raise ConfigurationError("--picture shows images, but the model reads text: leave it out")
    from heron_cli.leakage_figures.picture import check_picture

    check_picture(picture, data.input_shape)


def _draw(found: list[Found], path: Path) -> None:
    from heron_cli.leakage_figures.picture import draw
    from heron_server.leakage.meter import Leakage

    pictured = [one for one in found if isinstance(one, Leakage)]
    rows = [(f"{one.cut}\n{one.recovered:.0%}", one.reconstructions.numpy()) for one in pictured]
    draw(pictured[0].samples.numpy(), rows, path)


def _keep(document: dict[str, Any], run_dir: Path) -> None:
    try:
        write_json_atomically(run_dir / KEPT_AS, document)
    except OSError as exc:
        raise StorageError(
            f"{run_dir / KEPT_AS} cannot be written ({exc.strerror or exc}): free some space, or look at the rights"
        ) from exc
