"""The samples that a run's model was tried on when it began, where they are the operator's own: later commands try it on the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from heron_common.errors import StorageError
from heron_common.files.atomic import write_atomically
from heron_common.specification.data_specification import PADDING

_NAME = "probes.safetensors"

_MOST_BYTES = 1 << 30


def write_probe_file(run_dir: Path, x: npt.NDArray[Any]) -> None:
    """Keep samples [N, *input_shape]; raises OSError if the disk refuses."""
    write_atomically(run_dir / _NAME, save({"x": np.ascontiguousarray(x)}))


def read_probe_file(run_dir: Path, input_shape: tuple[int, ...], tokens: bool = False) -> npt.NDArray[Any] | None:
    """Return what was kept, numbers or tokens, None if nothing was.

    Raises:
        StorageError: it is no plain file of such samples.

    """
    path = run_dir / _NAME
    if not path.exists() and not path.is_symlink():
        return None
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("not a plain file of samples")
        x: npt.NDArray[Any] = load(path.read_bytes())["x"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
        raise StorageError(f"{path} is damaged ({exc}): restore it from a backup or start a new run") from exc
    is_sound = x.dtype == (np.int64 if tokens else np.float32) and x.shape[1:] == input_shape and len(x) > 0
    if not is_sound or not bool((x >= PADDING).all() if tokens else np.isfinite(x).all()):
        raise StorageError(f"{path} is damaged (no samples of shape {'x'.join(map(str, input_shape))}): restore it from a backup")
    return x
