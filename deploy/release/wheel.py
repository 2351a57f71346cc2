"""Build the source distribution and the wheel into dist/, from the files that git knows, and look at what is in them: `make wheel`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import clean, tools
from pins import ROOT
from wheel_contents import findings

PACKAGE_ROOTS = ("proto", "common", "server", "edge_client")
DIST = ROOT / "dist"


def tracked_files() -> list[Path]:
    """Return every file that git knows and that is there, relative to the repository."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listing.split("\0") if name and (ROOT / name).is_file()]


def copy(files: list[Path], target: Path) -> None:
    """Copy files of the repository to the same places below another folder."""
    for path in files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)


def build() -> Path:
    """Build both, the wheel out of the source distribution, check them, and return the wheel; exit with a sentence for each fault."""
    files = tracked_files()
    with tempfile.TemporaryDirectory() as folder:
        # Not the working tree itself: what an earlier build left in build/ or *.egg-info would get in, and a file that was never added would be missed.
        source, made = Path(folder) / "source", Path(folder) / "dist"
        copy(files, source)
        subprocess.run(
            [str(tools()), "-m", "build", "--outdir", str(made), str(source)], check=True, env=clean(), stdout=subprocess.DEVNULL
        )
        subprocess.run([str(tools()), "-m", "twine", "check", "--strict", *map(str, made.iterdir())], check=True)
        (wheel,) = made.glob("*.whl")
        packaged = {path.relative_to(path.parts[0]).as_posix() for path in files if path.parts[0] in PACKAGE_ROOTS}
        faults = findings(wheel, packaged)
        if faults:
            sys.exit("\n".join(f"wheel.py: {fault}" for fault in faults))
        DIST.mkdir(exist_ok=True)
        for path in made.iterdir():
            shutil.copy2(path, DIST / path.name)
            print(f"dist/{path.name}: {path.stat().st_size / 1e3:.0f} kB")
        return DIST / wheel.name


if __name__ == "__main__":
    build()
