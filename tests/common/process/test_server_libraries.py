"""Where only the client is installed, a missing library of the server's is one sentence; any other is a fault as before."""

from __future__ import annotations

import pytest

from heron_common.errors import ConfigurationError
from heron_common.process.server_libraries import SERVER_LIBRARIES, raise_if_missing


def test_a_library_of_the_server_is_named_with_what_brings_it() -> None:
    with pytest.raises(ConfigurationError, match=r"the package `google\.rpc` is not installed: pip install 'heron-sfl\[server\]'"):
        raise_if_missing(ModuleNotFoundError("No module named 'google.rpc'", name="google.rpc"))
    assert {"torch", "pydantic", "onnx"} < set(SERVER_LIBRARIES)


@pytest.mark.parametrize("name", ["heron_server.app", "numpy", None])
def test_another_module_that_is_missing_is_left_to_whoever_called(name: str | None) -> None:
    raise_if_missing(ModuleNotFoundError("missing", name=name))
