"""What can be refused of an export at once: before torch is loaded and a model is built, which takes from seconds to minutes."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import partial
from pathlib import Path

from heron_common.errors import ConfigurationError
from heron_server.storage.run_directory import recorded_identity


class ExportFormat(StrEnum):
    """TORCH: a program of torch.export. HF: a folder for transformers. ONNX: a file with standard operators. SAFETENSORS: weights by name."""

    TORCH = "torch"
    HF = "hf"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"


NOTE = "heron.json"
"""Name of the note about an export's origin inside of files and folders that can hold one."""

_SUFFIXES = {ExportFormat.TORCH: ".pt2", ExportFormat.ONNX: ".onnx", ExportFormat.SAFETENSORS: ".safetensors"}
"""torch.export opens no other file, and whoever finds the others knows them by it."""


def note_beside(path: Path) -> Path:
    """Return where the note about a safetensors file is."""
    return path.with_suffix(".json")


def suffix_of(chosen: ExportFormat) -> str | None:
    """Return how a file of this format has to end; None where it is a folder."""
    return _SUFFIXES.get(chosen)


def check_place(chosen: ExportFormat, output: Path, replaces: bool) -> None:
    """Refuse to write over anything, or, if it may be replaced, over anything but an export; raises ConfigurationError."""
    suffix = suffix_of(chosen)
    if not output.name or (suffix is not None and output.suffix != suffix):
        expected = f"a file to be made that ends in {suffix}" if suffix is not None else "a folder to be made"
        raise ConfigurationError(f"--output was expected to name {expected}, not {str(output)!r}")
    beside = [note_beside(output)] if chosen is ExportFormat.SAFETENSORS else []
    for path in (output, *beside):
        if not path.exists():
            continue
        if not replaces:
            raise ConfigurationError(f"{path} exists already: give --force to replace it, or another --output")
        if chosen is ExportFormat.HF and not (path.is_dir() and (path / NOTE).is_file()):
            raise ConfigurationError(
                f"{path} is no folder that `heron export` made, so --force does not replace it: choose another --output"
            )
        if chosen is not ExportFormat.HF and path.is_dir():
            raise ConfigurationError(f"{path} is a folder, and --format {chosen} writes a file: choose another --output")


def check_arguments(run_dir: Path, chosen: ExportFormat, output: Path, *, replaces: bool, keeps_adapters: bool) -> None:
    """Refuse every argument that can be known as wrong without the model; all mistakes at once.

    Raises:
        ConfigurationError: there is no run, the format does not fit its model, or the output's place is taken, misnamed or not to be written.
        StorageError: the run's record is damaged.

    """
    mistakes: list[str] = []
    for check in (partial(_check_model, run_dir, chosen, keeps_adapters), partial(check_place, chosen, output, replaces)):
        try:
            check()
        except ConfigurationError as exc:
            mistakes += exc.sentences
    above = next((folder for folder in output.absolute().parents if folder.exists()), output)
    if not (above.is_dir() and os.access(above, os.W_OK)):
        mistakes.append(f"{above} cannot be written: choose another --output")
    if mistakes:
        raise ConfigurationError(*mistakes)


def _check_model(run_dir: Path, chosen: ExportFormat, keeps_adapters: bool) -> None:
    name = recorded_identity(run_dir).configuration.get("model")
    # Of models from outside only the built one tells.
    if not isinstance(name, str) or ":" in name:
        return
    refuse_format(name, chosen, is_transformer=False)
    refuse_adapters(name, keeps_adapters, has_adapters=False)


def refuse_format(name: str, chosen: ExportFormat, *, is_transformer: bool) -> None:
    """Refuse a folder for transformers of a model that is none; raises ConfigurationError."""
    if chosen is ExportFormat.HF and not is_transformer:
        others = ", ".join(kind for kind in ExportFormat if kind is not ExportFormat.HF)
        raise ConfigurationError(f"--format hf is for transformers, but the run's model is {name!r}: use one of {others}")


def refuse_adapters(name: str, keeps_adapters: bool, *, has_adapters: bool) -> None:
    """Refuse to keep what is not there; raises ConfigurationError."""
    if keeps_adapters and not has_adapters:
        raise ConfigurationError(f"--keep-adapters was given, but the run's model {name!r} has none: leave it out")
