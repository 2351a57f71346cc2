"""What `import heron` gives: the names that are promised, typed, on a lean install too."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys

import pytest

import heron
from heron_common.terminal.argument_names import argument_names, spoken_in_python

PUBLIC = [
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
"""Taking a name away, or giving one another meaning, breaks programs of others: CHANGELOG.md says so."""


def test_the_public_names_are_those_that_are_promised_and_each_is_there() -> None:
    assert sorted(heron.__all__) == heron.__all__ == dir(heron) == PUBLIC
    assert [name for name in PUBLIC if not name.startswith("_") and not inspect.getdoc(getattr(heron, name))] == []
    with pytest.raises(AttributeError, match="module 'heron' has no attribute 'simulat'"):
        heron.simulat  # type: ignore[attr-defined]  # noqa: B018 - the name is what is tried


@pytest.mark.process
def test_importing_heron_loads_nothing_heavy_and_a_lean_install_has_its_client() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'pydantic', 'onnx', 'pandas', 'matplotlib'): sys.modules[name] = None\n"
        "import heron\n"
        "assert not {'grpc', 'onnxruntime', 'heron_server', 'heron_cli'} & set(sys.modules)\n"
        "print(heron.Client.__module__, heron.RoundRecord.__name__, dir(heron) == heron.__all__)\n"
        "try:\n    heron.simulate\nexcept heron.ConfigurationError as exc:\n    print(exc)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.splitlines()
    assert output[0] == "heron_client.client RoundRecord True"
    assert output[1].endswith("is not installed: pip install 'heron-sfl[server]'")


def test_doctests_of_the_package_run() -> None:
    found = doctest.testmod(heron)
    assert found.attempted >= 2 and found.failed == 0


def test_sentences_name_arguments_where_a_command_has_flags() -> None:
    assert argument_names("--eval-data is missing: give --eval-data or --held-out") == "eval_data is missing: give eval_data or held_out"
    with pytest.raises(heron.DataError, match=r"^data_spec is wrong$"), spoken_in_python():
        raise heron.DataError("--data-spec is wrong")
