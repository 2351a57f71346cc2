"""Summaries of runs as they might have been, for what reads them: long, with awkward names, with gaps."""

from __future__ import annotations

import math
from typing import Any

LONG_NAME = "greenhouse-north-bed-17-behind-the-water-tank_raspberry-pi-zero.2"
REASON = "missed the round deadline"
ABANDONED = "missed the round deadline: 1 of at least 2 updates came"


def summary_of(num_rounds: int, num_clients: int) -> dict[str, Any]:
    """Return the summary of a long run with drops, a round without updates and one client that never reported."""
    names = [LONG_NAME, *(f"bed-{number}" for number in range(1, num_clients))]
    return {
        "summary_version": 5,
        "run_id": "49d8030b3d9e4159fe9b9b3a4dbfeb8b",
        "preset": "heron",
        "num_rounds": num_rounds,
        "rounds_completed": num_rounds,
        "rounds": [_round(index, num_clients) for index in range(num_rounds)],
        "clients": {name: _client(number) for number, name in enumerate(names)},
        "uploads": {"accepted": 10, "trained": 9, "scored": 0, "rejected": 1},
        "drops": {REASON: {LONG_NAME: 3, "bed-1": 1}, "left: <b>stopped</b>": {"bed-1": 2}},
        "abandoned_attempts": {ABANDONED: 2},
        "rejected_uploads": {LONG_NAME: {"norm": 4}, "bed-1": {"norm": 1, "label mix": 2}},
        "ended_because": f"all {num_rounds} rounds are done",
        "seconds": 7384.2,
        "diverged_round": None,
        "algorithm": {"plan": {"preset": "heron", "learning_rate": 4.0, "local_steps": 10}, "aggregation": "mean", "schedule": "lockstep"},
        "configuration": {
            "run": {
                "model": "cnn",
                "data_spec": "digits",
                "seed": 0,
                "run_dir": "/srv/" + "a-long-folder/" * 12 + "run",
                "model_options": {},
            },
            "plan": {"local_steps": None},
        },
        "model": {"client_model_weights": 126, "cut": [2, 4, 4]},
        "parity": {"difference_error": 0.0029, "output_error": 1.2e-7},
        "versions": {"heron": "0.1.0", "torch": "2.13.0+cpu"},
        "checkpoint": None,
    }


def _round(index: int, num_clients: int) -> dict[str, Any]:
    skipped = index == 4
    falling = 1.2 * math.exp(-index / 60) + 0.2
    return {
        "round_index": index,
        "attempt": int(index == 7),
        "cohort": num_clients,
        "updates": 0 if skipped else num_clients - (index % 9 == 0),
        "test_accuracy": None if skipped else 0.97 - falling / 2,
        "test_loss": None if skipped else falling,
        "local_loss": None if skipped else falling + 0.15,
        "server_loss": None if skipped else falling + 0.05,
        "seconds": 0.0 if skipped else 14.0 + index % 5,
        "federated_accuracy": None if skipped else 0.95 - falling / 2,
        "federated_loss": None if skipped else falling + 0.1,
        "compute_seconds": None if skipped else 8.5,
        "upload_wait_seconds": None if skipped else 1.5,
        "bytes_up_so_far": None if skipped else 87_654_321 * (index + 1),
        "bytes_down_so_far": None if skipped else 1_234_567 * (index + 1),
    }


def _client(number: int) -> dict[str, Any]:
    return {
        "examples": 360,
        "rounds_completed": 100,
        "peak_memory_bytes": 0 if number == 2 else 67_000_000 + 100_000 * number,
        "peak_anonymous_bytes": 0 if number == 2 else 41_000_000 + 100_000 * number,
        "log_mismatches": 0,
        "bytes_up": {"activations": 8_192_000 + number, "labels": 512_000},
        "bytes_down": {"weights": 181_080, "control": 35_736},
        "compute_seconds": 851.2,
        "upload_wait_seconds": 150.0,
        "round_seconds": 1600.0,
    }
