"""The software bills of materials: HERON as the root, every dependency at its pin, no place of the machine; slowly, the client's own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from heron_common.version import VERSION
from tests.deploy.programs import DEPLOY, ROOT
from tests.deploy.release_scripts import script
from tests.harness.sources import only_in_checkout


def bill() -> dict[str, Any]:
    """Return what cyclonedx-py writes of an environment into which a wheel was installed from a file, in small."""
    place = {"type": "distribution", "url": "file:///home/someone/dist/heron_sfl.whl"}
    site = {"type": "website", "url": "https://numpy.org"}
    numpy = script("pins").pin("numpy")
    return {
        "metadata": {"tools": {}},
        "components": [
            {"bom-ref": "numpy", "name": "numpy", "version": numpy, "type": "library", "externalReferences": [site]},
            {
                "bom-ref": "ours",
                "name": "heron-sfl",
                "version": VERSION,
                "type": "library",
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "externalReferences": [place],
            },
        ],
        "dependencies": [{"ref": "ours", "dependsOn": ["numpy"]}],
    }


def test_heron_is_the_root_and_no_place_of_the_machine_is_named() -> None:
    made = script("sbom").rooted(bill())
    root = made["metadata"]["component"]
    assert (root["name"], root["version"], root["licenses"][0]["license"]["id"]) == ("heron-sfl", VERSION, "Apache-2.0")
    assert [part["name"] for part in made["components"]] == ["numpy"]
    assert made["components"][0]["externalReferences"] and "file:" not in json.dumps(made)
    assert made["dependencies"] == [{"ref": root["bom-ref"], "dependsOn": ["numpy"]}]


def test_a_version_that_is_not_the_pinned_one_is_found_out() -> None:
    made = script("sbom").rooted(bill())
    numpy = made["components"][0]
    assert script("sbom").differences(made) == []
    numpy["version"] += "+cpu"
    assert script("sbom").differences(made) == []
    made["components"].append({"name": "nvidia-cublas", "version": "13.0"})
    assert script("sbom").differences(made) == []
    numpy["version"] = "1.0"
    made["components"].append({"name": "left_pad", "version": "1.3"})
    pinned = script("pins").pin("numpy")
    assert script("sbom").differences(made) == ["left-pad 1.3 is not in constraints.txt", f"numpy is 1.0, constraints.txt has {pinned}"]


@pytest.mark.slow
@only_in_checkout
def test_the_clients_bill_has_every_plain_dependency_and_nothing_of_the_servers() -> None:
    subprocess.run([sys.executable, str(DEPLOY / "release" / "sbom.py"), "client"], check=True, timeout=600)
    text = (ROOT / "dist" / f"heron-sfl-{VERSION}-client.cdx.json").read_text(encoding="utf-8")
    made = json.loads(text)
    pins = script("pins")
    names = {pins.canonical(part["name"]) for part in made["components"]}
    assert set(pins.requirements()) <= names
    assert not names & {"torch", "transformers", "pydantic", "onnx", "safetensors", "pip", "heron-sfl"}
    (edges,) = (edge["dependsOn"] for edge in made["dependencies"] if edge["ref"] == made["metadata"]["component"]["bom-ref"])
    assert len(edges) == len(pins.requirements())
    assert made["bomFormat"] == "CycloneDX" and "file:" not in text and str(ROOT) not in text
