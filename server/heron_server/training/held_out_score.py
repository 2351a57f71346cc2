"""Federated evaluation: score the clients' held-out samples with the back, and sum up what a round brought."""

from __future__ import annotations

from typing import Any

from heron_common.algorithm.payload_shapes import evaluation_specs
from heron_common.ids import RoundReference
from heron_common.protocol.messages import UploadKey, UploadPurpose
from heron_common.specification.model_spec import ModelSpec
from heron_common.specification.text_lengths import of_length
from heron_server.rounds.jobs import ScoreJob
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.training.evaluation import Score
from heron_server.training.trainer import Trainer
from heron_server.training.uploads import decode_tensors


class HeldOutScore:
    """The score of one round. Fronts are those that the round starts from, so it belongs to the model after the round before.

    The back is the model's own, in evaluation mode: where every client has one of its own it is their average.
    Activations come from the client's programs, so a front with batch normalisation has normalised them by their batch, not by its running statistics.
    """

    def __init__(self, trainer: Trainer, model: ModelSpec) -> None:
        self._trainer, self._model = trainer, model
        self._scores: dict[UploadKey, Score] = {}
        self._versions: list[int] = []

    def run(self, job: ScoreJob, queue: TrainerQueue) -> None:
        """Carry out one job and report it."""
        upload = job.upload
        model = of_length(self._model, upload.length)
        row_bytes = sum(spec.size_bytes for spec in evaluation_specs(job.plan, model, 1))
        specs = evaluation_specs(job.plan, model, upload.payload().size_bytes // row_bytes)
        score = Score(self._trainer.model)
        self._trainer.score(decode_tensors(upload, specs, job.plan.wire_dtype), score)
        self._scores[upload.key] = score
        self._versions.append(self._trainer.server_version)
        queue.upload_scored(upload)

    def state(self) -> list[Any]:
        """Return the scores of the open round as JSON values."""
        return [
            [*key.round, key.client_id, key.purpose.value, key.local_step, score.sums(), version]
            for (key, score), version in zip(self._scores.items(), self._versions, strict=True)
        ]

    def restore(self, state: list[Any]) -> None:
        """Take up scores that `state` returned."""
        self.forget()
        for round_index, attempt, client_id, purpose, local_step, sums, version in state:
            key = UploadKey(RoundReference(round_index, attempt), client_id, purpose=UploadPurpose(purpose), local_step=local_step)
            self._scores[key] = Score.of(self._trainer.model, sums)
            self._versions.append(version)

    def forget(self) -> None:
        """A round is over."""
        self._scores.clear()
        self._versions.clear()

    def figures(self, round_index: int) -> dict[str, Any]:
        """Return the round record's figures of this round's held-out samples; none if there were none."""
        if not self._scores:
            return {}
        total = Score(self._trainer.model)
        # In the order of their names, whatever the order in which they came: sums of floats depend on it.
        for key in sorted(self._scores, key=lambda k: (k.client_id, k.local_step)):
            total.include(self._scores[key])
        score = total.result()
        return {
            "federated_of_round": round_index - 1,
            "federated_accuracy": score.accuracy,
            "federated_loss": score.loss,
            "federated_perplexity": score.perplexity,
            "federated_examples": score.num_examples,
            "federated_first_version": self._versions[0],
            "federated_last_version": self._versions[-1],
        }
