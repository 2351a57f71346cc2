"""Each example is one command that runs to its end: a server, client processes, a round or two."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from tests.harness.tokenizers import word_tokenizer
from tests.harness.transformers import write_configuration

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NUM_IMAGES = 40


def run_example(name: str, directory: Path, *options: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), "--rounds", "1", "--local-steps", "1", "--clients", "1", "--directory", str(directory)]
    # Away from the checkout: nothing may depend on where it is started.
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=200, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1: " in done.stdout and "largest client" in done.stdout, done.stdout
    return done.stdout


def write_tweets(directory: Path) -> None:
    """Stand in for what the example fetches: a tiny encoder with weights and a tokenizer, and some rows."""
    folder = write_configuration("bert", directory)
    model = AutoModelForSequenceClassification.from_config(_with_labels(folder))
    model.save_pretrained(directory / "model")
    (directory / "model" / "tokenizer.json").write_bytes(word_tokenizer("good bad fair day night", framed=True))
    for name in ("train", "test"):
        with (directory / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sentiment", "text"])
            rows.writerows([[label, f"{word} day"] for label, word in (("positive", "good"), ("negative", "bad"), ("neutral", "fair"))] * 8)


def _with_labels(folder: Path) -> object:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, num_labels=3)


def write_idx(directory: Path) -> None:
    """Write images and labels in Fashion-MNIST's format."""
    for part in ("train", "t10k"):
        images = bytes(value % 251 for value in range(NUM_IMAGES * 28 * 28))
        sizes = b"".join(n.to_bytes(4, "big") for n in (NUM_IMAGES, 28, 28))
        (directory / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images)
        labels = bytes(i % 10 for i in range(NUM_IMAGES))
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + NUM_IMAGES.to_bytes(4, "big") + labels)


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    assert "--cut features" in run_example("own_model.py", tmp_path)


@pytest.mark.slow
def test_gpt2_on_text(tmp_path: Path) -> None:
    assert "perplexity" in run_example("gpt2_text.py", tmp_path, "--length", "16")


def test_minilm_on_tweets(tmp_path: Path) -> None:
    write_tweets(tmp_path)
    run_example("tweets.py", tmp_path)


def test_resnet_18_on_images(tmp_path: Path) -> None:
    write_idx(tmp_path)
    run_example("resnet18.py", tmp_path, "--width", "8", "--data-folder", str(tmp_path))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "local_run.py"))
def test_every_example_explains_itself(name: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / name), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"python examples/{name}" in " ".join(done.stdout.split())
