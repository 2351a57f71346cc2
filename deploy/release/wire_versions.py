"""Run the tests that touch the wire with the lowest and with the newest supported grpcio and protobuf: `make test-versions`.

Only these packages are installed again, into build/versions/lowest and build/versions/newest, and put first on the path of everything that the tests start.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import clean, tools
from pins import ROOT, requirements

PACKAGES = ("grpcio", "protobuf", "grpcio-health-checking", "googleapis-common-protos")

TESTS = (
    "tests/common/protocol/test_wire.py",
    "tests/common/test_catalogs.py",
    "tests/fuzz/test_decoders.py",
    "tests/client/network/test_transport.py",
    "tests/client/network/test_handshake.py",
    "tests/cli/test_loopback.py",
    "tests/server/service/test_service_join.py",
    "tests/server/service/test_service_life.py",
    "tests/server/service/test_service_repeats.py",
    "tests/server/service/test_service_tls.py",
    "tests/server/service/test_service_updates.py",
    "tests/server/service/test_service_uploads.py",
    "tests/server/service/test_service_visits.py",
    "tests/system/test_contracts.py",
    "tests/system/test_tls.py",
    "tests/system/test_lockstep.py",
    "tests/system/test_network_faults.py",
    "tests/system/test_backpressure.py",
)
"""Whatever serialises, connects, waits for a dead connection or counts on what gRPC does with a flood."""

CROSSED = "tests/system/test_versions.py"
"""A server on one end and a client on the other; needs both folders."""

_PROOF = """
import importlib, pathlib, sys
folder, module = pathlib.Path(sys.argv[1]), sys.argv[2]
importlib.import_module(module)
import grpc, google.protobuf
from google._upb import _message
for library in (grpc, google.protobuf, _message):
    if folder not in pathlib.Path(library.__file__).parents:
        sys.exit(f"wire_versions.py: {module} imports {library.__file__}, expected it from {folder}")
print(f"{folder.name}: {module} runs on grpcio {grpc.__version__} and protobuf {google.protobuf.__version__}")
"""


def lowest() -> list[str]:
    """Return the packages at the lower bounds of pyproject.toml."""
    written = requirements("server")
    return [f"{name}=={re.findall(r'>=([^,]+)', written[name])[0]}" for name in PACKAGES]


def newest() -> list[str]:
    """Return the packages with the ranges of pyproject.toml, of which pip takes the newest."""
    written = requirements("server")
    return [written[name] for name in PACKAGES]


def folder(name: str) -> Path:
    """Return where the packages of `lowest` or `newest` are installed."""
    return ROOT / "build" / "versions" / name


def path_with(name: str) -> str:
    """Return a PYTHONPATH on which these packages come first."""
    return os.pathsep.join(filter(None, (str(folder(name)), os.environ.get("PYTHONPATH"))))


def prepare(name: str, wanted: list[str]) -> None:
    """Install the packages, together with whatever they need, and prove that server and client import them."""
    shutil.rmtree(folder(name), ignore_errors=True)
    # Not this environment's pip, which would call it a conflict with what is installed here.
    command = [str(tools()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    subprocess.run([*command, "--target", str(folder(name)), *wanted], check=True, cwd=ROOT, env=clean())
    for module in ("heron_server.service.server", "heron_client.network.transport"):
        environment = os.environ | {"PYTHONPATH": path_with(name)}
        subprocess.run([sys.executable, "-c", _PROOF, str(folder(name)), module], check=True, cwd=ROOT, env=environment)


def main() -> int:
    """Prepare both, run the tests with each, then a server with the one and a client with the other; extra words go to pytest."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]
    for name, wanted in (("lowest", lowest()), ("newest", newest())):
        prepare(name, wanted)
    failed = 0
    for name in ("lowest", "newest"):
        environment = os.environ | {"PYTHONPATH": path_with(name)}
        failed |= subprocess.run([*pytest, "-m", "not slow", *TESTS], check=False, cwd=ROOT, env=environment).returncode
    failed |= subprocess.run([*pytest, CROSSED], check=False, cwd=ROOT).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
