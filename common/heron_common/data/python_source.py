"""Data by the user's own function: two arrays, or an object that returns one sample at a time."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from heron_common.data.python_rows import Origin, rows_of
from heron_common.data.rows import RowReader
from heron_common.errors import ConfigurationError

PYTHON_USAGE = "python:package.module:callable (returns arrays x and y, or an object with len() whose [i] is one x and y)"


def open_python(argument: str) -> tuple[RowReader, RowReader]:
    """Import the module, from the current directory too, call the function and check what it returns.

    Raises:
        ConfigurationError: the argument names no module and callable, or they do not exist.
        DataError: the call fails, or returns something else.

    """
    origin = Origin(f"data source 'python:{argument}'", gave="returned", should="should return", remedy="mend the function")
    module_name, _, function_name = argument.partition(":")
    if not module_name or not function_name.isidentifier():
        raise ConfigurationError(f"data source 'python' needs a module and a callable, not {argument!r}: write {PYTHON_USAGE}")
    # As `python -m` has it: the user's module lies where the client is started.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(
            f"data source 'python:{argument}' cannot be imported ({exc}): check the names and the current directory"
        ) from exc
    except Exception as exc:
        raise origin.failed(f"failed while it was imported ({type(exc).__name__}: {exc})") from exc
    try:
        returned = function()
    except Exception as exc:
        raise origin.failed(f"failed ({type(exc).__name__}: {exc})") from exc
    return rows_of(returned, origin)
