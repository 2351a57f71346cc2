"""Where a user's own files go by the desktop convention, and what to say where a process has no home: a container's random user, a bare service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from heron_common.errors import ConfigurationError


def cache_home(remedy: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of what may be deleted at any time; `remedy` is what to give instead, for the sentence.

    Raises:
        ConfigurationError: nobody says where that is.

    """
    return _directory("XDG_CACHE_HOME", below_home=".cache", remedy=remedy, environment=environment)


def state_home(remedy: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of what is kept between starts. Raises as `cache_home` does."""
    return _directory("XDG_STATE_HOME", below_home=".local/state", remedy=remedy, environment=environment)


def _directory(variable: str, *, below_home: str, remedy: str, environment: Mapping[str, str]) -> Path:
    if given := environment.get(variable):
        return Path(given)
    try:
        return Path.home() / below_home
    except RuntimeError as exc:
        raise ConfigurationError(
            f"this user has no home directory (HOME is not set, and user {os.getuid()} has no entry in the user database): {remedy}set {variable} to a "
            "directory that it may write"
        ) from exc
