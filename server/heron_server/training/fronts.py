"""The end of a round for what clients trained: aggregate their updates, average their statistics, and keep what proves it where they came as logs."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from heron_common.algorithm.plan import Plan
from heron_common.errors import StorageError
from heron_common.numerics.tensors import Float32Array, Float64Array, num_parameters
from heron_common.numerics.update_log import weights_digest
from heron_common.specification.model_spec import ModelSpec
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import CloseJob
from heron_server.storage.audit import AuditFacts, AuditRound, AuditTrail
from heron_server.training.aggregation import aggregate, in_proportion
from heron_server.training.trainer import Trainer

log = logging.getLogger(__name__)


class FrontAverage:
    """Takes over what a round's clients submitted."""

    def __init__(self, facts: RunFacts, trainer: Trainer, audit: AuditTrail) -> None:
        self._facts, self._trainer, self._audit = facts, trainer, audit

    def take_over(self, job: CloseJob, weights: Float64Array) -> None:
        """Set what clients trained, and running statistics, to the aggregates of the round's updates by the run's rule."""
        if not job.plan.trains_front and not self._facts.model.statistics:
            return
        flats: list[Float32Array] = []
        for update in job.updates:
            if update.entry is None:
                raise RuntimeError("an update of a round that trains the front or moves its statistics is empty")
            flats.append(np.frombuffer(update.entry.read(), "<f4"))
        if self._facts.model.statistics:
            size = num_parameters(self._facts.model.statistics)
            # By the same rule as weights: a liar's variance would be in every mean. No rule takes one below 0 that was not there before.
            theirs = [flat[-size:] for flat in flats]
            self._trainer.set_statistics(
                aggregate(self._facts.algorithm.aggregation, theirs, weights=weights, reference=self._trainer.statistics())
            )
            flats = [flat[:-size] for flat in flats]
        if job.plan.trains_front:
            self._average_fronts(job, flats, weights)

    def _average_fronts(self, job: CloseJob, flats: list[Float32Array], weights: Float64Array) -> None:
        """Set the front (and a head that clients train) to the aggregate; where updates came as logs, keep what proves it."""
        job, flats, weights = _in_proportion(job, flats, weights)
        if not flats:
            return
        num_front = num_parameters(self._facts.model.client_model)
        mean = aggregate(self._facts.algorithm.aggregation, flats, weights=weights, reference=job.start)
        self._trainer.set_client_weights(mean[:num_front], mean[num_front:] if job.plan.trains_head else None)
        if job.plan.logs:
            self._record_for_audit(job, flats, mean=mean, weights=weights)

    def _record_for_audit(self, job: CloseJob, flats: list[Float32Array], *, mean: Float32Array, weights: Float64Array) -> None:
        facts = AuditFacts(
            round_index=job.round.round_index,
            attempt=job.round.attempt,
            run_seed=self._facts.run_seed,
            clients=tuple(update.client_id for update in job.updates),
            aggregation=self._facts.algorithm.aggregation.value,
            trains_head=job.plan.trains_head,
            tensors=_trained_tensors(self._facts.model, job.plan),
            start_sha256=weights_digest(job.start).hex(),
            result_sha256=weights_digest(mean).hex(),
            client_sha256=tuple(weights_digest(flat).hex() for flat in flats),
        )
        shape = (job.plan.local_steps, job.plan.direction_groups * job.plan.num_directions)
        submissions = tuple(
            flat if update.log is None else np.frombuffer(update.log, "<f8").reshape(shape)
            for update, flat in zip(job.updates, flats, strict=True)
        )
        try:
            self._audit.write(AuditRound(facts, np.array(job.scales, np.float64), weights=weights, submissions=submissions))
        except StorageError as exc:
            log.error(str(exc))


def _in_proportion(job: CloseJob, flats: list[Float32Array], weights: Float64Array) -> tuple[CloseJob, list[Float32Array], Float64Array]:
    """Leave out clients whose weights are out of all proportion: in a mean one of them would be all that is left."""
    kept = in_proportion(flats, job.start)
    if len(kept) == len(flats):
        return job, flats, weights
    gone = [update.client_id for place, update in enumerate(job.updates) if place not in kept]
    log.warning("weights out of all proportion do not count", extra={"round_index": job.round.round_index, "clients": gone})
    share = weights[kept] if weights[kept].sum() > 0 else np.ones(len(kept))
    updates = tuple(job.updates[place] for place in kept)
    return replace(job, updates=updates), [flats[place] for place in kept], share / share.sum() if kept else share


def _trained_tensors(model: ModelSpec, plan: Plan) -> tuple[tuple[str, tuple[int, ...]], ...]:
    parts = [("front", model.client_model)] + ([("head", model.auxiliary_head)] if plan.trains_head else [])
    return tuple((f"{part}.{spec.name}", spec.shape) for part, specs in parts for spec in specs)
