"""Uploads of held-out samples in one attempt: kept apart from those that are trained on, scored, and forgotten. Part of the owner's state."""

from __future__ import annotations

from collections import deque

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.algorithm.payload_shapes import evaluation_specs
from heron_common.algorithm.plan import Plan
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import TensorSpec, check_specs
from heron_common.protocol.messages import UploadKey
from heron_common.specification.text_lengths import announced_model
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.facts import RunFacts
from heron_server.storage.spool import SpoolEntry


class HeldOutUploads:
    """Takes a client's held-out batches until its first upload for training; holds training back until every client is past them.

    The model that a round starts from is what should be scored, so under every schedule but ARRIVAL no upload is trained on before each client of
    the cohort sent one for training, or ended: its held-out batches came before. ARRIVAL waits for nobody, and scores with the back that stands.
    """

    def __init__(self, plan: Plan, facts: RunFacts, cohort: tuple[str, ...]) -> None:
        self._plan, self._model, self._max_batches = plan, facts.model, facts.evaluation_batches
        self._awaited = set(cohort) if self._max_batches and facts.algorithm.schedule is not ServerSchedule.ARRIVAL else set()
        self._over: set[str] = set()
        self._uploads: dict[UploadKey, AcceptedUpload] = {}
        self._waiting: deque[AcceptedUpload] = deque()

    @property
    def holds_training(self) -> bool:
        """Whether some client may still send held-out batches that have to be scored first."""
        return bool(self._awaited)

    def awaits(self, client_id: str) -> bool:
        """Whether training is held back for this client, so that what it sends must be admitted whatever the spool holds."""
        return client_id in self._awaited

    def ended(self, client_id: str) -> None:
        """No more held-out batches come from this client: it trains, or it is gone."""
        self._over.add(client_id)
        self._awaited.discard(client_id)

    def check(self, key: UploadKey, num_probes: int, tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Check an upload's header and return its tensors; a batch may be short, but not empty.

        Raises:
            RefusedError: UNEXPECTED_UPLOAD or INVALID_TENSOR.

        """
        if key.local_step >= self._max_batches or num_probes:
            raise RefusedError(
                ErrorCode.UNEXPECTED_UPLOAD,
                f"this run takes {self._max_batches} batches of held-out samples in a round, without probes, "
                f"but batch {key.local_step} with {num_probes} probes came: send what the answer to the join says",
            )
        if key.client_id in self._over and key not in self._uploads:
            raise RefusedError(
                ErrorCode.UNEXPECTED_UPLOAD,
                f"held-out samples come before a round's first step, but batch {key.local_step} came after it: go on without it",
            )
        rows = tensors[0].shape[0] if tensors and tensors[0].shape else 0
        specs = evaluation_specs(self._plan, announced_model(self._model, tensors), min(max(rows, 1), self._plan.batch_size))
        check_specs(specs, tensors)
        return specs

    def known_digest(self, key: UploadKey) -> str | None:
        """Return the digest with which this upload was accepted before, or None."""
        upload = self._uploads.get(key)
        return upload.sha256 if upload else None

    def accept(self, upload: AcceptedUpload) -> None:
        """Acknowledge an upload: it will be scored."""
        self._uploads[upload.key] = upload
        if not upload.trained:
            self._waiting.append(upload)

    def take(self) -> AcceptedUpload | None:
        """Remove and return the upload to score next."""
        return self._waiting.popleft() if self._waiting else None

    def entries(self) -> list[SpoolEntry]:
        """Return the spool entries of uploads that no checkpoint covers."""
        return [upload.entry for upload in self._uploads.values() if upload.entry is not None]

    @property
    def uploads(self) -> list[AcceptedUpload]:
        """All of them, in the order of acceptance."""
        return list(self._uploads.values())
