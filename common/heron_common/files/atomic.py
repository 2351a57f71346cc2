"""Write a file so that a crash or a full disk leaves either the old one or the new one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write bytes: temporary file beside it, fsync, rename, fsync of the directory. Raises OSError; the old file then stands.

    `mode` is the file's from its first byte on; the process's default otherwise.
    """
    replace_atomically(path, lambda file: file.write(data), mode)


def write_json_atomically(path: Path, value: Any) -> None:
    """Write a JSON document the same way, indented and with a final newline."""
    write_atomically(path, (json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """Return a JSON value in which NaN and infinity, which JSON does not have, are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def replace_atomically(path: Path, write: Callable[[BinaryIO], object], mode: int | None = None) -> None:
    """Let `write` fill a temporary file, then put it in place; returns when it is durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # What an earlier process left under this name, or a link that somebody put there, is never written through.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def share(path: Path) -> None:
    """Give a file, or a folder with all in it, the mode that a plain `open` would have given it: what the process's mask allows."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    # Whoever asks for the mask has to set it, and other threads make files meanwhile.
    probe.touch()
    try:
        mode = probe.stat().st_mode & 0o666
    finally:
        probe.unlink()
    for item in (path, *path.rglob("*")):
        item.chmod(mode | (mode & 0o444) >> 2 if item.is_dir() else mode)
