"""Write what a client's and a server's environment hold as CycloneDX JSON into dist/: `make sbom`.

The wheel is installed without and with the extra `server`, at the versions of constraints.txt, and `cyclonedx-py` lists what came. HERON itself is the
root of the document: its name, version and licence, and what it needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import clean, environment, tools
from pins import ROOT, canonical, pins, project
from wheel import DIST, build
from wheel_contents import version

SIDES = {"client": "", "server": "[server]"}
"""The extra that each side installs."""

OF_TORCH = ("nvidia-", "cuda-", "triton")
"""What a build of torch for CUDA brings besides; torch itself pins these, and constraints.txt is written where there is none."""


def main() -> int:
    """Write the bills of the sides that are named, or of both."""
    sides = sys.argv[1:] or list(SIDES)
    if unknown := set(sides) - set(SIDES):
        sys.exit(f"sbom.py: {', '.join(sorted(unknown))}: expected client, server or nothing")
    wheel = build()
    for side in sides:
        # torch first and pinned, as in the Makefile: a range would take the largest build there is.
        torch_first = [["torch"]] if side == "server" else []
        python = environment(ROOT / "build" / "sbom" / side, *torch_first, [f"{wheel}{SIDES[side]}"])
        bill = rooted(listing(python))
        if faults := differences(bill):
            sys.exit("\n".join(f"sbom.py: {side}: {fault}" for fault in faults))
        path = DIST / f"heron-sfl-{version()}-{side}.cdx.json"
        path.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        validate(path)
        print(f"{path.relative_to(ROOT)}: {len(bill['components'])} components")
    return 0


def listing(python: Path) -> dict[str, Any]:
    """Return what `cyclonedx-py` finds in an environment, without what differs from machine to machine."""
    command = [str(tools()), "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    result = subprocess.run([*command, str(python)], check=True, capture_output=True, text=True, env=clean() | _moment())
    bill: dict[str, Any] = json.loads(result.stdout)
    return bill


def _moment() -> dict[str, str]:
    """Return the time of the last commit as the time of the document."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return {}
    seconds = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    return {"SOURCE_DATE_EPOCH": seconds}


def rooted(bill: dict[str, Any]) -> dict[str, Any]:
    """Return the bill with HERON as its root, as it was installed, and without places on this machine."""
    name = project()["name"]
    (ours,) = (part for part in bill["components"] if canonical(part["name"]) == name)
    others = [_portable(part) for part in bill["components"] if part is not ours]
    root = _portable(ours) | {"type": "application"}
    return bill | {"metadata": bill["metadata"] | {"component": root}, "components": others}


def _portable(part: dict[str, Any]) -> dict[str, Any]:
    kept = [reference for reference in part.get("externalReferences", []) if not reference["url"].startswith("file:")]
    without = {key: value for key, value in part.items() if key != "externalReferences"}
    return without | ({"externalReferences": kept} if kept else {})


def differences(bill: dict[str, Any]) -> list[str]:
    """Return a sentence for each component that is not at the version of constraints.txt; what a build adds after a plus counts for nothing."""
    pinned = pins()
    found = {canonical(part["name"]): part["version"].partition("+")[0] for part in bill["components"]}
    unknown = [name for name in found if name not in pinned and not name.startswith(OF_TORCH)]
    faults = [f"{name} {found[name]} is not in constraints.txt" for name in unknown]
    return faults + [
        f"{name} is {number}, constraints.txt has {pinned[name]}" for name, number in found.items() if pinned.get(name, number) != number
    ]


def validate(path: Path) -> None:
    """Compare a bill with the schema that it names."""
    program = (
        "import sys; from cyclonedx.schema import SchemaVersion; from cyclonedx.validation.json import JsonStrictValidator;"
        "text = open(sys.argv[1], encoding='utf-8').read(); fault = JsonStrictValidator(SchemaVersion.from_version(sys.argv[2])).validate_str(text);"
        "sys.exit(str(fault) if fault else 0)"
    )
    number = json.loads(path.read_text(encoding="utf-8"))["specVersion"]
    subprocess.run([str(tools()), "-c", program, str(path), number], check=True, env=clean())


if __name__ == "__main__":
    sys.exit(main())
