"""What somebody may have meant, and which variables of the environment a program may be meant to read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

_CLOSE = 0.7
"""`client` for `clients`, `--run-dri` for `--run-dir`, but not `--colour` for `--cut`."""

_PREFIX_CLOSE = 0.85
"""Of a whole variable: HERON_SEVER_CLIENTS for HERON_SERVER_CLIENTS, but nothing of somebody's own like HERON_DATA_DIR."""

PREFIXES = ("HERON_SERVER_", "HERON_CLIENT_", "HERON_SIMULATE_")

_SERVICE_LINK = re.compile(r".*(_SERVICE_HOST|_SERVICE_PORT(_[A-Z0-9_]+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")


def did_you_mean(word: str, known: Collection[str], closeness: float = _CLOSE) -> str:
    """Return `: did you mean X?` for what is nearest to a word, or nothing if nothing is near."""
    # A device whose options are right need not load it.
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1, closeness)
    return f": did you mean {near[0]}?" if near else ""


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what Kubernetes adds for a service that is called heron-server or heron-client."""
    return {
        name: value
        for name, value in environment.items()
        if not (name.startswith(PREFIXES) and (_SERVICE_LINK.fullmatch(name) or _SERVICE_ADDRESS.fullmatch(value)))
    }


def variable_mistakes(environment: Mapping[str, str], prefix: str, known: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable that seems to be meant for the program of this prefix, but is none of its own."""
    names = sorted(known)
    for name in sorted(environment):
        if name in names or not name.upper().startswith("HERON_"):
            continue
        if name.upper().startswith(prefix):
            yield f"{name} is set, but is no option's variable{did_you_mean(name.upper(), names)}"
        elif not name.startswith(PREFIXES) and (near := did_you_mean(name.upper(), names, _PREFIX_CLOSE)):
            yield f"{name} is set, but is no option's variable{near}"
