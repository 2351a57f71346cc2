"""The licences of what is packed: the texts that every installed package ships, and a list of what came from where."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

_ASK = """
import json, importlib.metadata as metadata
found = []
for distribution in metadata.distributions():
    texts = [str(distribution.locate_file(file)) for file in distribution.files or ()
             if ".dist-info/" in str(file) and any(word in file.name.upper() for word in ("LICENSE", "LICENCE", "COPYING", "NOTICE"))]
    texts += [str(distribution.locate_file(file)) for file in distribution.files or () if file.name in ("ThirdPartyNotices.txt", "LICENSE.txt", "LICENSE")
              and ".dist-info/" not in str(file) and len(file.parts) <= 2]
    about = distribution.metadata
    licence = about.get("License-Expression") or next((c.rpartition(":: ")[2] for c in about.get_all("Classifier", []) if c.startswith("License ::")), "")
    found.append({"name": about["Name"], "version": distribution.version, "licence": licence or (about.get("License") or "see its text").splitlines()[0],
                  "texts": texts})
print(json.dumps(found))
"""


def write_licences(python: Path, folder: Path, own: Path) -> None:
    """Write FOLDER/licences/ and its list for the packages of `python`'s environment that have files in FOLDER, and for Python itself."""
    target = folder / "licences"
    target.mkdir(exist_ok=True)
    shutil.copy(own, target / "heron-sfl.txt")
    lines = ["heron-sfl  Apache-2.0", *_python_licence(target)]
    packages = json.loads(subprocess.run([str(python), "-c", _ASK], check=True, capture_output=True, text=True).stdout)
    for package in sorted(packages, key=lambda package: package["name"].lower()):
        if package["name"].lower() in _NOT_PACKED:
            continue
        lines.append(f"{package['name']} {package['version']}  {package['licence']}")
        for place, text in enumerate(package["texts"]):
            source = Path(text)
            if source.is_file():
                shutil.copy(source, target / f"{package['name']}-{place}-{source.name.removesuffix('.txt')}.txt")
    system = sorted(
        path.name for path in (folder / "libraries").glob("*.so*") if not path.is_symlink() and not path.name.startswith("libpython")
    )
    lines += ["", "Libraries of the machine that built this, under the licences of its distribution: " + ", ".join(system)]
    (folder / "LICENCES.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


_NOT_PACKED = {
    "altgraph", "anyio", "click", "filelock", "fsspec", "h11", "hf-xet", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "huggingface-hub",
    "idna", "markdown-it-py", "mdurl", "packaging", "pip", "pygments", "pyinstaller-hooks-contrib", "pyyaml", "setuptools", "shellingham", "tqdm",
    "truststore", "typer", "certifi", "rich-toolkit", "sniffio",
}  # fmt: skip
"""In the environment because something that is packed names them, and left out by heron-client.spec. PyInstaller's loader is in every binary."""


def _python_licence(target: Path) -> list[str]:
    for folder in (Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)):
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                shutil.copy(folder / name, target / "python.txt")
                return [f"Python {sys.version.split()[0]}  PSF-2.0"]
    return [f"Python {sys.version.split()[0]}  PSF-2.0 (text: https://docs.python.org/3/license.html)"]
