"""The samples that a run's model was tried on when it began, where they are the operator's own: later commands try it on the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from heron_common.errors import StorageError
from heron_common.files.atomic import write_atomically
from heron_common.numerics.tensors import Float32Array

_NAME = "probes.safetensors"

_MOST_BYTES = 1 << 30


def write_probe_file(run_dir: Path, x: Float32Array) -> None:
    """Keep samples [N, *input_shape]; raises OSError if the disk refuses."""
    write_atomically(run_dir / _NAME, save({"x": np.ascontiguousarray(x)}))


def read_probe_file(run_dir: Path, input_shape: tuple[int, ...]) -> Float32Array | None:
    """Return what was kept, None if nothing was.

    Raises:
        StorageError: it is no plain file of such samples.

    """
    path = run_dir / _NAME
    if not path.exists() and not path.is_symlink():
        return None
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("not a plain file of samples")
        x: Float32Array = load(path.read_bytes())["x"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
        raise StorageError(f"{path} is damaged ({exc}): restore it from a backup or start a new run") from exc
    if x.dtype != np.float32 or x.shape[1:] != input_shape or not len(x) or not bool(np.isfinite(x).all()):
        raise StorageError(f"{path} is damaged (no samples of shape {'x'.join(map(str, input_shape))}): restore it from a backup")
    return x
