"""Ask the package registry whether every dependency of the client has wheels for x86_64 and aarch64 at the versions of constraints.txt.

`python deploy/binary/wheels.py` (`make client-binary-wheels`) downloads them into a temporary directory, half a gigabyte at most, and keeps none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build import ROOT, client_requirements

ARCHITECTURES = ("x86_64", "aarch64")
OLDEST_GLIBC = 28
"""manylinux_2_28 is the newest tag that any of the wheels may ask for: Debian 10, RHEL 8, Ubuntu 20.04 and whatever came later."""


def download_command(architecture: str, target: Path, requirements: Sequence[str]) -> list[str]:
    """Return the pip command that fetches wheels for an architecture, and nothing that would have to be compiled."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(target)]
    for minor in (17, *range(24, OLDEST_GLIBC + 1)):
        command += ["--platform", f"manylinux_2_{minor}_{architecture}"]
    command += ["--platform", f"manylinux2014_{architecture}", "--implementation", "cp"]
    command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}", "-c", str(ROOT / "constraints.txt")]
    return [*command, *requirements]


def main() -> int:
    """Fetch them for both and print what came."""
    missing = 0
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as directory:
            requirements = [*client_requirements()]
            result = subprocess.run(download_command(architecture, Path(directory), requirements), check=False)
            wheels = sorted(Path(directory).glob("*.whl"))
            native = [wheel.name for wheel in wheels if architecture in wheel.name]
            print(
                f"{architecture}: {len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.1f} MB, native: {', '.join(native)}"
            )
            missing += result.returncode != 0
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
