"""Generate the stubs from the contracts: `make proto`.

The compiler is the oldest whose stubs every supported protobuf takes, so it cannot stand in the environment of the newest: it goes into build/, without
its dependencies, at the version of constraints.txt. protobuf promises to run generated code of its own major version and of the one before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pins import ROOT, pin

CONTRACT = "heron_proto/v1/split_training.proto"


def compiler() -> Path:
    """Install grpcio-tools into a folder of its own unless it is there, and return that folder."""
    wanted = f"grpcio-tools=={pin('grpcio-tools')}"
    folder = ROOT / "build" / f"{wanted}-python{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--target", str(unfinished), wanted], check=True)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process was as quick.
            shutil.rmtree(unfinished)
    return folder


def generate(contracts: Path, target: Path) -> None:
    """Write the three stubs of the contract below `target`."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{contracts}", f"--python_out={target}", f"--pyi_out={target}"]
    environment = os.environ | {"PYTHONPATH": str(compiler())}
    subprocess.run([*command, f"--grpc_python_out={target}", CONTRACT], check=True, env=environment)


def main() -> int:
    """Generate, into the source unless another folder is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--contracts", type=Path, default=ROOT / "proto", help="the folder that has heron_proto/v1 (proto/ of the repository)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "proto", help="where heron_proto/v1 is written (proto/ of the repository)")
    options = parser.parse_args()
    generate(options.contracts, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
