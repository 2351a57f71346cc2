"""Build heron-client for this machine's architecture: a folder in a tarball and one executable file, with checksums, in dist/.

`python deploy/binary/build.py` (`make client-binary`) needs the standard library alone. What is packed comes out of a virtual environment that holds
the plain dependencies, the extras `text` and `images`, and PyInstaller, at the versions of constraints.txt: what is not there cannot be packed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from licences import write_licences

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "client-binary"
ENVIRONMENT = ROOT / "build" / "client-venv"
DIST = ROOT / "dist"

EXTRAS = ("text", "images", "binary")
"""`digits` is left out: that source reads a file of scikit-learn's, which is larger than all the rest; save the digits as npz: instead."""

FORBIDDEN = (
    "torch",
    "transformers",
    "pydantic",
    "heron_server",
    "heron_cli",
    "onnx",
    "onnxscript",
    "scipy",
    "sklearn",
    "huggingface_hub",
    "PyInstaller",
)
"""Modules that would mean that the wrong environment was packed."""


def main() -> int:
    """Build, prove what is in it, and write dist/."""
    environment_python = prepare_environment()
    stripped = strip_python(BUILD)
    command = [str(environment_python), "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    command += ["--distpath", str(BUILD / "dist"), "--workpath", str(BUILD / "work"), str(ROOT / "deploy" / "binary" / "heron-client.spec")]
    surroundings = os.environ | ({"HERON_STRIPPED_PYTHON": str(stripped)} if stripped else {})
    subprocess.run(command, check=True, cwd=ROOT, env=surroundings)
    folder, onefile = BUILD / "dist" / "heron-client", BUILD / "dist" / "heron-client-onefile"
    modules = packed_modules(environment_python, folder / "heron-client")
    if wrong := sorted(forbidden(modules) | forbidden(path.name for path in (folder / "libraries").iterdir())):
        print(f"build.py: {', '.join(wrong)} must not be packed: see what imports it in {BUILD / 'work'}", file=sys.stderr)
        return 1
    (folder / "CONTENTS.txt").write_text("\n".join(sorted(modules)) + "\n", encoding="utf-8")
    write_licences(environment_python, folder, ROOT / "LICENSE")
    # A user other than the one who unpacked it must be able to run it, whatever the mask of the one who built it.
    subprocess.run(["chmod", "-R", "u+rwX,go+rX,go-w", str(folder), str(onefile)], check=True)
    publish(folder, onefile)
    return 0


def prepare_environment() -> Path:
    """Make the virtual environment if it is not there or its requirements changed, and return its interpreter."""
    requirements = [*client_requirements()]
    recorded = "\n".join([sys.version, *requirements, (ROOT / "constraints.txt").read_text(encoding="utf-8")])
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "requirements.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == recorded:
        return python
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"), *requirements]
    subprocess.run(install, check=True)
    stamp.write_text(recorded, encoding="utf-8")
    return python


def client_requirements(extras: tuple[str, ...] = EXTRAS) -> Iterator[str]:
    """Yield the plain dependencies and those of the extras, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    for extra in extras:
        yield from project["optional-dependencies"][extra]


def strip_python(folder: Path) -> Path | None:
    """Return a copy of the interpreter's shared library without debug information; None where it has none of its own or `strip` is missing."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    library = Path(sysconfig.get_config_var("LIBDIR") or "") / name
    if not (name.startswith("libpython") and library.is_file() and shutil.which("strip")):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / name
    subprocess.run(["strip", "--strip-debug", "-o", str(copy), str(library)], check=True)
    return copy


def packed_modules(python: Path, executable: Path) -> set[str]:
    """Return the names of everything in an executable's archive, as PyInstaller itself reads it."""
    command = [str(python), "-m", "PyInstaller.utils.cliutils.archive_viewer", "--list", "--recursive", "--brief", str(executable)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {found[1] for line in listing.splitlines() if (found := re.fullmatch(r"\s*'?([\w./+-]+)'?,?", line))}


def forbidden(names: set[str] | Iterator[str]) -> set[str]:
    """Return which of these modules or folders must not be there."""
    return {name for name in names if re.split(r"[./-]", name)[0] in FORBIDDEN}


def publish(folder: Path, onefile: Path) -> None:
    """Write tarball and executable to dist/, each with its digest beside it, and say how large they are."""
    DIST.mkdir(exist_ok=True)
    name = f"heron-client-{version()}-linux-{platform.machine()}"
    tarball, executable = DIST / f"{name}.tar.xz", DIST / name
    with _whole(tarball) as made, tarfile.open(made, "w:xz", preset=6) as archive:
        archive.add(folder, "heron-client", filter=_anonymous)
    with _whole(executable) as made:
        shutil.copy2(onefile, made)
    for path in (tarball, executable):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with _whole(path.with_name(path.name + ".sha256")) as made:
            made.write_text(f"{digest}  {path.name}\n", encoding="ascii")
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB in {path.parent}")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a place to write a file; only when it is whole does it get its name, and what stood there with its digest goes before."""
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield made
        path.with_name(path.name + ".sha256").unlink(missing_ok=True)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def version() -> str:
    """Return the release that is built."""
    text = (ROOT / "common" / "heron_common" / "version.py").read_text(encoding="utf-8")
    return re.findall(r'^VERSION = "(.+)"$', text, re.MULTILINE)[0]


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Name no user of the machine that built it."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = int(os.environ.get("SOURCE_DATE_EPOCH", member.mtime))
    return member


if __name__ == "__main__":
    sys.exit(main())
