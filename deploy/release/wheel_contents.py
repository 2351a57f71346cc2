"""What has to be in the wheel and what must not be: the files of the packages, their types, the licence, the metadata, the commands."""

from __future__ import annotations

import configparser
import email
import sys
import zipfile
from email.message import Message
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pins import ROOT, project


def version() -> str:
    """Return the release that the sources say they are."""
    line = next(line for line in (ROOT / "common/heron_common/version.py").read_text(encoding="utf-8").splitlines() if "VERSION =" in line)
    return line.split('"')[1]


def findings(wheel: Path, packaged: set[str]) -> list[str]:
    """Return a sentence for each thing that is not as it should be; `packaged` are the files of the packages, as paths in the wheel."""
    described = f"heron_sfl-{version()}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        if f"{described}/METADATA" not in names:
            return [f"{wheel.name} has no {described}/METADATA: it is not of version {version()}"]
        metadata = email.message_from_bytes(archive.read(f"{described}/METADATA"))
        commands = configparser.ConfigParser()
        commands.read_string(archive.read(f"{described}/entry_points.txt").decode() if f"{described}/entry_points.txt" in names else "")
    inside = {name for name in names if not name.startswith(f"{described}/")}
    faults = [f"{name} is in the repository and not in the wheel" for name in sorted(packaged - inside)]
    faults += [f"{name} is in the wheel and git does not know it" for name in sorted(inside - packaged)]
    faults += [] if f"{described}/licenses/LICENSE" in names else ["LICENSE is not in the wheel"]
    found = dict(commands["console_scripts"]) if commands.has_section("console_scripts") else {}
    faults += [] if found == project()["scripts"] else [f"the wheel's commands are {found}, those of pyproject.toml {project()['scripts']}"]
    return faults + _metadata_faults(metadata)


def _metadata_faults(metadata: Message) -> list[str]:
    table = project()
    wanted = {
        "Name": table["name"],
        "Version": version(),
        "Summary": table["description"],
        "Requires-Python": table["requires-python"],
        "License-Expression": table["license"],
        "Description-Content-Type": "text/markdown",
    }
    faults = [f"{name} is {metadata[name]!r} in the wheel, expected {value!r}" for name, value in wanted.items() if metadata[name] != value]
    plain = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    if len(plain) != len(table["dependencies"]):
        faults.append(f"without extras the wheel requires {plain}, pyproject.toml {table['dependencies']}")
    extras = set(metadata.get_all("Provides-Extra", []))
    faults += [] if extras == set(table["optional-dependencies"]) else [f"the wheel's extras are {sorted(extras)}"]
    return faults
