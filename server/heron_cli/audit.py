"""`heron audit`: replay a run from its first checkpoint and its clients' logs, and prove that the weights are what came of them. Needs no data and no clients."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.errors import CheckpointError, ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.files.plain_files import reading
from heron_common.ids import RoundReference
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import DType, Float32Array, TensorSpec
from heron_common.numerics.update_log import replay, weights_digest
from heron_common.terminal.output import say
from heron_server.training.aggregation import aggregate

if TYPE_CHECKING:
    from heron_server.storage.audit import AuditRound
    from heron_server.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class ProvedRound:
    """One round of a run: how many clients' logs were replayed, how many sent weights that had to be taken as they came; to what the run then went back."""

    round_index: int
    replayed: int
    _: KW_ONLY
    taken: int
    returned_to: int | None = None


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("audit", help="replay a run from its checkpoints and its clients' logs and prove its final weights")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="PATH", help="directory of a run with --update-encoding log")
    parser.set_defaults(run=run_audit)


def run_audit(options: argparse.Namespace) -> int:
    """Prove every round and say so; the first contradiction ends it.

    Raises:
        ConfigurationError: there is no run, or its clients submitted no logs.
        CheckpointError: a file is missing or damaged, or a round does not arrive at the weights that it claims.

    """
    taken = replayed = 0
    last = 0
    for proved in _sound(options.run_dir):
        last, taken, replayed = proved.round_index + 1, taken + proved.taken, replayed + proved.replayed
        note = f", {proved.taken} sent weights" if proved.taken else ""
        back = f"; the run went back to what it was after {proved.returned_to} rounds" if proved.returned_to is not None else ""
        say(f"round {proved.round_index + 1}: {proved.replayed} logs replayed{note}, average proved{back}")
    say("", f"The front after round {last} is proved bit for bit: {replayed} logs replayed from the first checkpoint on.")
    if taken:
        say(f"{taken} updates were weights, not logs: their average is proved, how they came about is not.")
    return ExitCode.OK


def _sound(run_dir: Path) -> Iterator[ProvedRound]:
    with reading(f"the trail or a checkpoint of {run_dir}", CheckpointError):
        yield from prove(run_dir)


def prove(run_dir: Path) -> Iterator[ProvedRound]:
    """Yield each round once its logs arrive at its clients' digests and their average at its own, and at its checkpoint where there is one.

    Rounds in which fronts rested leave no record, and their checkpoints must show unchanged weights.
    """
    # safetensors and torch: the other verbs do without them, and so may an installation for a device.
    from heron_server.storage.audit import AuditTrail
    from heron_server.storage.checkpoint import CheckpointStore
    from heron_server.training.recovery import Recovery

    if not (run_dir / "checkpoints").is_dir():
        raise ConfigurationError(f"{run_dir} holds no run: give the --run-dir of heron-server")
    trail = AuditTrail(run_dir / "audit")
    checkpoints = {c.completed_rounds: c for c in CheckpointStore(run_dir / "checkpoints", 1).read_all()}
    completed = max(checkpoints, default=0)
    recorded = {index for index in trail.recorded() if index < completed}
    if not recorded:
        raise ConfigurationError(
            f"{run_dir} has no audit trail: only runs whose clients submit logs can be audited (--update-encoding log)"
        )
    if 0 not in checkpoints:
        raise CheckpointError(f"the first checkpoint of {run_dir} is missing, so there is nothing to replay from: restore it from a backup")
    layout = FlatLayout(tuple(TensorSpec(name, DType.FLOAT32, shape) for name, shape in trail.read(min(recorded)).facts.tensors))
    theta = _trained(checkpoints[0], layout)
    returns = {one.after_round: one.to_round for one in Recovery.of(checkpoints[completed].state.get("recovery")).returns}
    proved_at: dict[int, Float32Array] = {}
    # Rounds without a record leave the weights alone: only where something is to be proved or remembered is anything to do.
    for index in sorted(recorded | {after - 1 for after in (*checkpoints, *returns) if after > 0} | set(returns.values())):
        if index in returns.values():
            proved_at[index] = theta
        target = returns.get(index + 1)
        if index in recorded:
            theta, proved = _prove_round(trail.read(index), theta, layout)
            yield replace(proved, returned_to=target)
        if target is not None:
            # Weights that were proved on the way here: what the decision names, nothing has to be taken on trust.
            theta = _gone_back_to(target, proved_at, index)
        if index + 1 in checkpoints:
            _compare(
                weights_digest(_trained(checkpoints[index + 1], layout)).hex(),
                weights_digest(theta).hex(),
                f"the checkpoint after round {index + 1}",
            )


def _gone_back_to(target: int, proved_at: dict[int, Float32Array], index: int) -> Float32Array:
    if target not in proved_at:
        raise CheckpointError(
            f"after round {index + 1} the run went back to what it was after {target} rounds, which is no round before: restore it from a backup"
        )
    return proved_at[target]


def _prove_round(entry: AuditRound, theta: Float32Array, layout: FlatLayout) -> tuple[Float32Array, ProvedRound]:
    facts = entry.facts
    where = f"round {facts.round_index + 1}"
    _compare(facts.start_sha256, weights_digest(theta).hex(), f"the start of {where}")
    flats: list[Float32Array] = []
    for client, digest, submission in zip(facts.clients, facts.client_sha256, entry.submissions, strict=True):
        flat = submission
        if submission.dtype == np.float64:
            reference = RoundReference(facts.round_index, facts.attempt)
            flat = replay(
                theta, submission, scales=entry.scales, run_seed=facts.run_seed, client_id=client, reference=reference, layout=layout
            )
        _compare(digest, weights_digest(flat).hex(), f"client {client!r} in {where}")
        flats.append(flat)
    result = aggregate(AggregationRule(facts.aggregation), flats, weights=entry.weights, reference=theta)
    _compare(facts.result_sha256, weights_digest(result).hex(), f"the average of {where}")
    logs = sum(submission.dtype == np.float64 for submission in entry.submissions)
    return result, ProvedRound(facts.round_index, logs, taken=len(flats) - logs)


def _compare(claimed: str, found: str, what: str) -> None:
    if claimed != found:
        raise CheckpointError(
            f"{what} claims weights {claimed[:12]}, but the replay arrives at {found[:12]}: these files do not belong together, or were changed"
        )


def _trained(checkpoint: Checkpoint, layout: FlatLayout) -> Float32Array:
    flat: Float32Array = np.concatenate([checkpoint.tensors[spec.name].numpy().reshape(-1) for spec in layout.specs])
    return flat
