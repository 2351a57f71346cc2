"""ResNet-18 on Fashion-MNIST or CIFAR-10; devices hold the stem and the first block: `python examples/resnet18.py`.

Fashion-MNIST is found where Debian's dataset-fashion-mnist puts it, or in --data-folder; CIFAR-10 (--data cifar-10) in --data-folder, as published.
The default width of 16 channels runs in minutes on two cores; --width 64 is the network of the paper.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from local_run import Run, example_arguments, run_locally


def own_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only this example takes."""
    parser.add_argument(
        "--data", choices=("fashion-mnist", "cifar-10"), default="fashion-mnist", help="which images (default: fashion-mnist)"
    )
    parser.add_argument("--data-folder", help="folder of the images")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (default: 16; the paper's network: 64)")


def main() -> int:
    """Train."""
    options = example_arguments(__doc__, rounds=5, more=own_arguments)
    folder = f":{options.data_folder}" if options.data_folder else ""
    server = {
        "model": "resnet",
        "cut": "layer1.0",
        "model-options": f"depth=18 width={options.width}",
        "data-spec": options.data,
        "eval-data": f"{options.data}:test{folder}",
        "local-steps": options.local_steps or 10,
        "batch-size": 32,
    }
    return run_locally(Run(options, server, f"{options.data}:train{folder}"))


if __name__ == "__main__":
    sys.exit(main())
