"""Export a trained model: written beside its place, opened again, compared with the run's model, and only then put where it was asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heron_common.errors import ProgramError, StorageError
from heron_common.files.atomic import share
from heron_common.version import VERSION
from heron_server.exports import formats, hub
from heron_server.exports.formats import Run
from heron_server.exports.place import ExportFormat, check_place, refuse_adapters, refuse_format
from heron_server.exports.trained_model import TrainedModel
from heron_server.exports.whole import Samples, Whole, check_difference, has_adapters, random_samples, whole_of
from heron_server.models.transformer.pretrained import PREFIX

_FILES: dict[ExportFormat, Callable[[Whole, dict[str, Any], Samples, Path], None]] = {
    ExportFormat.TORCH: formats.write_torch,
    ExportFormat.ONNX: formats.write_onnx,
    ExportFormat.SAFETENSORS: formats.write_safetensors,
}


@dataclass(frozen=True)
class Delivered:
    """What was written: its files or its folder, and the largest difference of outputs from the run's model, relative to the largest output."""

    paths: tuple[Path, ...]
    difference: float


def deliver(
    trained: TrainedModel, chosen: ExportFormat, *, output: Path, keeps_adapters: bool = False, replaces: bool = False
) -> Delivered:
    """Write a trained model as a whole; a file or folder that is not equal to the run's model is not kept. `trained` is used up.

    Args:
        trained: its adapters are merged in place.
        chosen: the format.
        output: a file, or a folder for HF.
        keeps_adapters: whether adapters stay what they are instead of being merged into their layers.
        replaces: whether an earlier export may stand at `output`.

    Raises:
        ConfigurationError: the format does not fit the model, or something is at `output` already.
        ProgramError: the model cannot be written in this format, or what was written cannot be opened or differs from it.
        StorageError: the folder cannot be written.

    """
    check_format(trained, chosen, keeps_adapters)
    check_place(chosen, output, replaces)
    samples = random_samples(trained.model)
    whole = whole_of(trained.model, not keeps_adapters)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".heron-export-", ignore_cleanup_errors=True) as made:
            staged = Path(made) / output.name
            _write(trained, whole, samples=samples, chosen=chosen, path=staged)
            difference = _proved(trained, whole, samples=samples, chosen=chosen, path=staged, output=output)
            return Delivered(_put_in_place(Path(made), output), difference)
    except OSError as exc:
        raise StorageError(
            f"the export cannot be written to {output} ({exc.strerror or exc}): free some space, or choose another --output"
        ) from exc


def check_format(trained: TrainedModel, chosen: ExportFormat, keeps_adapters: bool) -> None:
    """Refuse what does not fit the model; raises ConfigurationError."""
    name = trained.configuration["model"]
    refuse_format(name, chosen, is_transformer=trained.model.tokens and trained.model.token_input is None)
    refuse_adapters(name, keeps_adapters, has_adapters=has_adapters(trained.model))


def _write(trained: TrainedModel, whole: Whole, *, samples: Samples, chosen: ExportFormat, path: Path) -> None:
    note = _note(trained, whole, chosen)
    if chosen is ExportFormat.HF:
        hub.write_folder(whole, trained.model, reference=trained.configuration["model"], note=note, folder=path)
    else:
        _FILES[chosen](whole, note, samples, path)


def _note(trained: TrainedModel, whole: Whole, chosen: ExportFormat) -> dict[str, Any]:
    """Return where an export comes from and what it takes and gives, as JSON values; no path of this machine."""
    data, options = trained.data, trained.configuration
    name = options["model"]
    if name.startswith(PREFIX):
        name = PREFIX + Path(name.removeprefix(PREFIX)).name
    return {
        "made_by": f"heron export --format {chosen}, HERON {VERSION}",
        "run": {"run_id": trained.run_id, "completed_rounds": trained.completed_rounds, "preset": options.get("preset")},
        "model": {"name": name, "options": options["model_options"], "cut": options["cut"], "seed": options["seed"]},
        "task": data.task.value,
        "inputs": {n: ["batch", *(s or "sequence" for s in shape)] for n, shape in zip(whole.inputs, whole.shapes, strict=True)},
        "num_outputs": trained.model.num_classes,
        "class_names": list(data.class_names),
        # Samples are read as (raw - mean) / standard_deviation, by the first dimension where there are several.
        "mean": list(data.channel_means) or data.mean,
        "standard_deviation": list(data.channel_deviations) or data.standard_deviation,
        "sample_shape": list(data.input_shape),
        "columns": list(data.columns),
    }


def _proved(trained: TrainedModel, whole: Whole, *, samples: Samples, chosen: ExportFormat, path: Path, output: Path) -> float:
    """Open what was written in its own library and compare; batches of two sizes, so that the size is free indeed."""
    try:
        run = _open(trained, whole, chosen=chosen, path=path)
        with torch.no_grad():
            found = torch.cat([run(tuple(t[rows] for t in samples.inputs)) for rows in (slice(0, -1), slice(-1, None))])
    except Exception as exc:
        reason = str(exc).strip().splitlines()[0][:300] if str(exc).strip() else "no message"
        raise ProgramError(
            f"what was written for {output} cannot be run again ({type(exc).__name__}: {reason}): it is not kept; use another --format"
        ) from exc
    return check_difference(samples, found, f"what was written for {output}")


def _open(trained: TrainedModel, whole: Whole, *, chosen: ExportFormat, path: Path) -> Run:
    if chosen is ExportFormat.HF:
        return hub.open_folder(trained.model, path)
    if chosen is ExportFormat.SAFETENSORS:
        return formats.open_safetensors(whole, path)
    return formats.open_torch(path) if chosen is ExportFormat.TORCH else formats.open_onnx(path)


def _put_in_place(made: Path, output: Path) -> tuple[Path, ...]:
    """Move what was made; an earlier export goes only now."""
    paths = []
    for item in sorted(made.iterdir()):
        place = output.parent / item.name
        if place.is_dir():
            shutil.rmtree(place)
        # Libraries write as they like, some for nobody else to read.
        share(item)
        item.replace(place)
        paths.append(place)
    return tuple(paths)
