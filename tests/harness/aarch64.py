"""A device of another architecture: Debian's arm64 Python and PyPI's arm64 wheels in a folder, run by an emulator of single programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = "qemu-aarch64"
LIBRARIES = "libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1"
PACKAGES = f"{LIBRARIES} libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3.11"
_NAMES = "numpy|onnxruntime|grpcio|protobuf|prometheus.client|rich|markdown-it-py|mdurl|pygments|flatbuffers|packaging|typing.extensions"
WHEELS = re.compile(rf"^({_NAMES})==[^ \n]+", re.MULTILINE | re.IGNORECASE)
FLOOR = "manylinux_2_28_aarch64"
"""The oldest C library that docs/edge-binary.md promises."""
PLATFORMS = (FLOOR, "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")

CPUINFO = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd08\n\n"
"""This emulator shows the host's, on which ONNX Runtime's detection of processors crashes; a file below its prefix is taken instead."""


@dataclass(frozen=True)
class EmulatedDevice:
    """Where the other architecture's files lie."""

    folder: Path

    @property
    def command(self) -> list[str]:
        """What starts the device's Python."""
        return [EMULATOR, "-L", str(self.folder / "root"), str(self.folder / "root" / "usr" / "bin" / "python3.11")]

    @property
    def environment(self) -> dict[str, str]:
        """Where that Python finds the client of this checkout and its libraries; nothing of the host's."""
        roots = [ROOT / "proto", ROOT / "common", ROOT / "edge_client", self.folder / "site"]
        return {"PYTHONPATH": ":".join(map(str, roots)), "PYTHONNOUSERSITE": "1"}


def emulated_device() -> EmulatedDevice:
    """Return the device, fetched once into build/; skip the test where an emulator or a mirror is missing."""
    for program in (EMULATOR, "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install qemu-user")
    device = EmulatedDevice(ROOT / "build" / "aarch64")
    if not (device.folder / "complete").exists():
        shutil.rmtree(device.folder, ignore_errors=True)
        try:
            _fetch(device.folder)
        except (OSError, subprocess.SubprocessError) as exc:
            pytest.skip(f"packages of the other architecture cannot be fetched: {exc}")
        (device.folder / "complete").touch()
    return device


def _fetch(folder: Path) -> None:
    root, site, packages, wheels, lists = (folder / name for name in ("root", "site", "packages", "wheels", "lists"))
    for needed in (root, site, packages, wheels, lists / "partial"):
        needed.mkdir(parents=True)
    settings = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State::Lists": lists, "Dir::State::status": "/dev/null"}
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items()), f"-oDir::Cache::archives={packages}"]
    _do([*apt, "update"], packages)
    _do([*apt, "download", *PACKAGES.split()], packages)
    for package in packages.glob("*.deb"):
        _do(["dpkg-deb", "-x", str(package), str(root)], packages)
    pinned = [found[0] for found in WHEELS.finditer((ROOT / "constraints.txt").read_text(encoding="utf-8"))]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
    ]
    _do([*pip, *(word for name in PLATFORMS for word in ("--platform", name)), "-d", str(wheels), *pinned], folder)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPUINFO)
    processors = root / "sys" / "devices" / "system" / "cpu"
    processors.mkdir(parents=True)
    for name in ("possible", "present"):
        (processors / name).write_text("0\n")


def _do(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=600)
