"""A checkpoint inside a round: beside what one at a boundary holds, what the round started from and everything that it moved since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from heron_common.ids import RoundReference
from heron_common.protocol.reported_ranges import known_figure
from heron_server.rounds.jobs import RoundInputs, SaveJob
from heron_server.training.alignment import HeadAlignment
from heron_server.training.trainer import Trainer
from heron_server.training.uploads import DecodedUpload

_FRONT, _HEAD, _STATISTICS, _OWN_HEAD, _ROWS = "input.front", "input.head", "input.statistics", "input_head.", "rows."


@dataclass(frozen=True)
class InsideRound:
    """What to go on with: the attempt, what it started from, and how many uploads in its order of training are covered."""

    round: RoundReference
    inputs: RoundInputs
    positions: int


def open_round_tensors(trainer: Trainer, alignment: HeadAlignment | None, inputs: RoundInputs) -> dict[str, torch.Tensor]:
    """Return the tensors that a round has of its own while it is open."""
    tensors = {_FRONT: _bytes(inputs.front), _HEAD: _bytes(inputs.head), _STATISTICS: _bytes(inputs.statistics)}
    tensors |= {f"{_OWN_HEAD}{client}": _bytes(head) for client, head in inputs.heads.items()}
    if trainer.replicas is not None:
        tensors |= trainer.replicas.weights()
    if alignment is not None:
        for client, pieces in alignment.kept().items():
            for index, piece in enumerate(pieces):
                name = f"{_ROWS}{client}/{index:06d}."
                tensors |= {f"{name}activations": torch.from_numpy(piece.activations), f"{name}labels": torch.from_numpy(piece.labels)}
                tensors |= {f"{name}mask": torch.from_numpy(piece.mask)} if piece.mask is not None else {}
    return tensors


def open_round_state(job: SaveJob) -> dict[str, Any]:
    """Return the rest of it as JSON values."""
    inputs = job.inputs
    return {
        "round": list(job.round),
        "positions": job.positions,
        "scales": list(inputs.scales),
        "second_moment": inputs.second_moment,
        "derivative_quantile": inputs.derivative_quantile,
        "rests": inputs.rests,
        "step_factor": inputs.step_factor,
    }


def restore_open_round(
    trainer: Trainer, alignment: HeadAlignment | None, *, tensors: dict[str, torch.Tensor], state: dict[str, Any]
) -> InsideRound:
    """Set replicas and kept rows to what they were, and return what to go on with; weights and moments were loaded before."""
    if trainer.replicas is not None:
        trainer.replicas.load_weights(tensors)
    if alignment is not None:
        alignment.forget()
        for name in sorted(n for n in tensors if n.startswith(_ROWS) and n.endswith(".activations")):
            stem = name[: -len("activations")]
            mask = tensors[f"{stem}mask"].numpy() if f"{stem}mask" in tensors else None
            piece = DecodedUpload(tensors[name].numpy(), tensors[f"{stem}labels"].numpy(), mask)
            alignment.keep(stem[len(_ROWS) :].rpartition("/")[0], piece)
    heads = {name[len(_OWN_HEAD) :]: value.numpy().tobytes() for name, value in tensors.items() if name.startswith(_OWN_HEAD)}
    inputs = RoundInputs(
        tensors[_FRONT].numpy().tobytes(),
        tensors[_HEAD].numpy().tobytes(),
        scales=tuple(float(s) for s in state["scales"]),
        second_moment=known_figure("second_moment", state["second_moment"]),
        derivative_quantile=known_figure("derivative_quantile", state["derivative_quantile"]),
        heads=heads,
        rests=bool(state["rests"]),
        statistics=tensors[_STATISTICS].numpy().tobytes(),
        step_factor=float(state.get("step_factor", 1.0)),
    )
    return InsideRound(RoundReference(*state["round"]), inputs, int(state["positions"]))


def _bytes(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
