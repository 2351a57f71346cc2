"""Data that a Python program hands over: a data source by name, a pair of arrays, or a dataset; and what such data look like to a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from heron_common.data.python_rows import Origin, rows_of
from heron_common.data.rows import StringRows
from heron_common.data.sources import HANDED_OVER, DataSource, source_kind, source_of
from heron_common.errors import ConfigurationError, DataError
from heron_server.models.copies import copied, generators_kept

Data = str | tuple[Any, Any] | Any
"""A data source by name, arrays (x, y), or an object with a length whose [i] is one x and y."""

_SHOWN = 16


@dataclass(frozen=True)
class GivenData:
    """Data by the name that a run's record has for them; `source` is None where that is a data source's own name."""

    name: str
    source: DataSource | None = None


def given_data(argument: str, value: Data) -> GivenData:
    """Return what was handed over for an argument.

    Raises:
        ConfigurationError: there is no such data source.
        DataError: x and y are no arrays of numbers or strings, or have different lengths.

    """
    if isinstance(value, str):
        source_kind(value)
        return GivenData(value)
    origin = Origin(argument, gave="has", should="should have", remedy="hand over arrays (x, y), a dataset, or the name of a data source")
    if isinstance(value, list):
        # A list of two arrays would else be a dataset of two samples.
        value = tuple(value) if len(value) == 2 else value
    if isinstance(value, tuple):
        value = tuple(_on_cpu(part) for part in value)
    inputs, labels = rows_of(value, origin)
    if inputs.shape[0] != labels.shape[0]:
        raise DataError(f"{argument} has {inputs.shape[0]} samples in x, but {labels.shape[0]} labels in y: they must match")
    if len(inputs.shape) < 2:
        raise DataError(
            f"{argument} has x of shape {list(inputs.shape)}, a number a sample: give every sample a row, like x.reshape(-1, 1)"
        )
    return GivenData(f"{HANDED_OVER}{_digest(value)}", source_of(argument, inputs, labels))


def specification_of_data(argument: str, data: DataSource, module: nn.Module | None) -> str:
    """Return what data look like, as `data_spec` has it: their shape, and classes or outputs, as many as the module gives.

    Raises:
        ConfigurationError: that cannot be known from them.

    """
    if isinstance(data.inputs, StringRows):
        raise ConfigurationError(f"{argument} holds text: say with data_spec what a sample is, like 'text:64:2'")
    shape = "x".join(map(str, data.input_shape))
    if isinstance(data.labels, StringRows):
        names = sorted({str(name) for name in data.labels.read(data.rows).reshape(-1)})
        return f"{shape}:{','.join(names)}"
    few = data.labels.read(data.rows[:1])
    if few.dtype.kind == "f":
        return f"{shape}:regression:{few.size}"
    if few.size != 1:
        raise ConfigurationError(
            f"{argument} has {few.size} whole numbers for each y: give one class, floats, or say with data_spec what they are"
        )
    outputs = _outputs(module, data) if module is not None else None
    return f"{shape}:{outputs if outputs is not None else max(2, int(data.read_labels().max()) + 1)}"


def _outputs(module: nn.Module, data: DataSource) -> int | None:
    """Return how many numbers a copy of the module gives for a sample; None if it gives no rows, which is told when it is built."""
    x = torch.from_numpy(np.asarray(data.inputs.read(data.rows[:2]), np.float32))
    try:
        with torch.no_grad(), generators_kept():
            logits = copied(module).cpu().eval()(x)
        return int(logits.shape[1]) if logits.dim() == 2 else None
    except Exception:
        return None


def _on_cpu(part: Any) -> Any:
    return part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part


def _digest(value: Any) -> str:
    """Return a name for data: for arrays by what they hold, for a dataset by its class and length, since only reading all of it would say more."""
    if not isinstance(value, tuple):
        return f"{type(value).__name__}:{len(value)}"
    digest = hashlib.sha256()
    for part in value:
        array = np.asarray(part)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update("\0".join(map(str, array.flat)).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes())
    return f"arrays:{digest.hexdigest()[:_SHOWN]}"
