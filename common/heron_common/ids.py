"""Names and random identifiers: client names, run ids, sessions, identity keys."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from heron_common.errors import ConfigurationError

_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RoundReference(NamedTuple):
    """One attempt at one round; a repeated or resumed round has a new attempt."""

    round_index: int
    attempt: int

    @property
    def in_words(self) -> str:
        """What people call it, who count from 1: `round 3`, or `round 3 (attempt 2)` where it was repeated."""
        return f"round {self.round_index + 1}" + (f" (attempt {self.attempt + 1})" if self.attempt else "")


def checked_client_name(name: str) -> str:
    """Return `name` if it is usable as a client name, in paths and in logs.

    Raises:
        ConfigurationError: it is empty, longer than 100 characters, or holds anything but letters, digits, '.', '_' and '-'.

    """
    if _CLIENT_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"a client name is 1 to 100 letters, digits, '.', '_' or '-' and starts with a letter or digit, not {name[:120]!r}: choose another --name"
        )
    return name


def new_token() -> str:
    """Return 128 random bits as hexadecimal: a run id, a session or an identity key."""
    return secrets.token_hex(16)
