"""HERON from Python: `heron.simulate`, `heron.serve`, `heron.Client`, and a `Run` to iterate. Each name is imported when it is used.

>>> import heron
>>> sorted(heron.__all__)[:4]
['Client', 'ConfigurationError', 'Curves', 'DataError']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heron_common.process.quiet_libraries import quiet_libraries
from heron_common.process.server_libraries import raise_if_missing
from heron_common.version import VERSION

if TYPE_CHECKING:
    from heron_cli.python_api.curves import Curves
    from heron_cli.python_api.history import History
    from heron_cli.python_api.run import Run, open_run
    from heron_cli.python_api.serving import serve
    from heron_cli.python_api.simulating import simulate
    from heron_client.client import Client
    from heron_common.errors import ConfigurationError, DataError, HeronError
    from heron_server.summary import RoundRecord

__all__ = [
    "Client",
    "ConfigurationError",
    "Curves",
    "DataError",
    "HeronError",
    "History",
    "RoundRecord",
    "Run",
    "__version__",
    "open_run",
    "serve",
    "simulate",
]

_HOMES = {
    "Client": "heron_client.client",
    "ConfigurationError": "heron_common.errors",
    "Curves": "heron_cli.python_api.curves",
    "DataError": "heron_common.errors",
    "HeronError": "heron_common.errors",
    "History": "heron_cli.python_api.history",
    "RoundRecord": "heron_server.summary",
    "Run": "heron_cli.python_api.run",
    "open_run": "heron_cli.python_api.run",
    "serve": "heron_cli.python_api.serving",
    "simulate": "heron_cli.python_api.simulating",
}
"""Where each name comes from: devices have neither torch nor what needs it."""

__version__ = VERSION

quiet_libraries()


def __getattr__(name: str) -> Any:
    """Import a name; where it needs a library of the server's that is not installed, a ConfigurationError says how to get it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'heron' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as exc:
        raise_if_missing(exc)
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return every public name, imported or not."""
    return sorted(__all__)
