"""Run the suite against the built wheel, away from the checkout: `make wheel-check`, `make wheel-check ARGS='tests/common -k wire'`.

The wheel is built and looked at, installed alone (what a device gets) and with everything the tests need, in fresh environments outside of the checkout.
Beside them lie the repository's files without the packages: whatever is imported there can only come from the wheel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import clean, environment
from pins import ROOT
from wheel import PACKAGE_ROOTS, build, copy, tracked_files
from wheel_contents import version

COMMANDS = ("heron", "heron-server", "heron-client")
SERVER_ONLY = ("torch", "transformers", "pydantic", "onnx", "safetensors", "grpc_health", "scipy", "sklearn")
PYTEST = ("-m", "pytest", "-q", "-m", "not slow", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-p", "no:cacheprovider")

_WHERE = """
import importlib, pathlib, sys, sysconfig
installed, checkout = pathlib.Path(sysconfig.get_path("purelib")).resolve(), pathlib.Path(sys.argv[1]).resolve()
for name in ("heron_proto.v1.split_training_pb2", "heron_common", "heron_server", "heron_client", "heron_cli"):
    path = pathlib.Path(importlib.import_module(name).__file__).resolve()
    if installed not in path.parents or checkout in path.parents:
        sys.exit(f"wheel_check.py: {name} comes from {path}, not from {installed}")
inside = [path for path in sys.path if path and checkout in [pathlib.Path(path).resolve(), *pathlib.Path(path).resolve().parents]]
if inside:
    sys.exit(f"wheel_check.py: the checkout is on sys.path: {inside}")
print(f"heron_* are imported from {installed}")
"""

_LEAN = f"""
import importlib.util, sys
present = [name for name in {SERVER_ONLY!r} if importlib.util.find_spec(name)]
if present:
    sys.exit(f"wheel_check.py: without extras the wheel brings {{present}}")
import heron_client.app, heron_client.training.runtime, heron_client.session, heron_client.network.transport
print("without extras the client's modules are imported, and none of the server's libraries is there")
"""


def main() -> int:
    """Build, install, prove where imports come from, run the suite, and return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="work here and leave it there, for a look; otherwise a temporary folder that is deleted"
    )
    options, words = parser.parse_known_args()
    wheel = build()
    with tempfile.TemporaryDirectory(prefix="heron-wheel-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        if folder == ROOT or ROOT in folder.parents:
            parser.error(f"--folder {folder} is inside of the checkout: name one elsewhere")
        folder.mkdir(parents=True, exist_ok=True)
        check_client(wheel, folder)
        return run_suite(wheel, folder, words)


def check_client(wheel: Path, folder: Path) -> None:
    """Install the wheel without extras and prove that the client's commands start there."""
    python = environment(folder / "lean", [str(wheel)])
    subprocess.run([str(python), "-c", _LEAN], check=True, cwd=folder, env=clean())
    check_commands(python, folder)
    subprocess.run([str(python.with_name("heron-client")), "--help"], check=True, cwd=folder, env=clean(), stdout=subprocess.DEVNULL)


def check_commands(python: Path, folder: Path) -> None:
    """Start every command of an environment, and compare what it says of its version with the source.

    Raises:
        SystemExit: one says something else.

    """
    for command in COMMANDS:
        said = subprocess.run(
            [str(python.with_name(command)), "--version"], check=True, cwd=folder, env=clean(), capture_output=True, text=True
        ).stdout.strip()
        if said != f"{command} {version()}":
            sys.exit(f"wheel_check.py: {command} --version says {said!r}, expected {command} {version()}")


def run_suite(wheel: Path, folder: Path, words: list[str]) -> int:
    """Install the wheel with everything that the tests need, lay their files beside it, and run them."""
    # torch first and pinned, as in the Makefile: a range would take the largest build there is. Some tests use pip.
    python = environment(folder / "full", ["torch"], [f"{wheel}[dev]", "pip>=24"])
    files = folder / "files"
    copy([path for path in tracked_files() if path.parts[0] not in PACKAGE_ROOTS], files)
    subprocess.run([str(python), "-c", _WHERE, str(ROOT)], check=True, cwd=files, env=clean())
    check_commands(python, folder)
    environment_of_tests = clean() | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([str(python), *PYTEST, *words], check=False, cwd=files, env=environment_of_tests).returncode


if __name__ == "__main__":
    sys.exit(main())
