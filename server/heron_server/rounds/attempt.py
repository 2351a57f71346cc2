"""One attempt at a round: which uploads and updates it expects, which it has, which are trained. Part of the owner's state."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from heron_common.algorithm.payload_shapes import cut_gradient_specs, update_specs, upload_specs
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import Float32Array, TensorSpec, check_specs, total_bytes
from heron_common.protocol.messages import Assignment, UploadKey, UploadPurpose
from heron_common.specification.model_spec import BlobReference
from heron_common.specification.text_lengths import announced_model
from heron_server.rounds.accepted import AcceptedUpdate, AcceptedUpload
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.held_out_uploads import HeldOutUploads
from heron_server.rounds.schedule import TrainingOrder, UploadSlot
from heron_server.storage.spool import SpoolEntry


@dataclass
class Attempt:
    """What one attempt expects and has."""

    assignment: Assignment
    facts: RunFacts
    _: KW_ONLY
    cohort: tuple[str, ...]
    start: Float32Array = field(default_factory=lambda: np.zeros(0, np.float32))
    """The trained weights, flat, that every client of the round starts from."""
    heads: dict[str, BlobReference] = field(default_factory=dict)
    """Each client's own head, where it has one."""
    uploads: dict[UploadKey, AcceptedUpload] = field(default_factory=dict)
    updates: dict[str, AcceptedUpdate] = field(default_factory=dict)
    positions: int = 0
    """How many uploads training, scoring and rejections are done with."""

    def __post_init__(self) -> None:
        self._by_client: dict[str, list[AcceptedUpload]] = {}
        self.order = TrainingOrder(self.facts.algorithm.schedule, self.cohort, self.assignment.plan.sending_steps)
        # Of the longest texts, where they have several lengths.
        self.upload_specs = upload_specs(self.assignment.plan, self.facts.model)
        self.held_out = HeldOutUploads(self.assignment.plan, self.facts, self.cohort)
        self.cut_gradient_specs = cut_gradient_specs(self.assignment.plan, self.facts.model)

    @property
    def purpose(self) -> UploadPurpose:
        """The purpose of every upload that is trained on."""
        return UploadPurpose.PROBE if self.assignment.plan.num_probes else UploadPurpose.TRAIN

    def assignment_for(self, client_id: str) -> Assignment:
        """Return the assignment of one client: the round's, with its own head if it has one."""
        head = self.heads.get(client_id)
        return self.assignment if head is None else dataclasses.replace(self.assignment, auxiliary_head=head)

    def check_upload(
        self, key: UploadKey, num_probes: int, *, tensors: tuple[TensorSpec, ...], announced_bytes: int
    ) -> tuple[TensorSpec, ...]:
        """Check an upload's header against what this round expects, before anything is read or allocated; return its tensors.

        Raises:
            RefusedError: ROUND_OVER, UNEXPECTED_UPLOAD, INVALID_TENSOR, OVERSIZED or TOO_FAR_AHEAD.

        """
        self.check_round(key)
        if key.purpose is UploadPurpose.EVALUATE:
            specs = self.held_out.check(key, num_probes, tensors)
            _check_size(specs, announced_bytes)
            return specs
        plan = self.assignment.plan
        if key.purpose is not self.purpose or num_probes != plan.num_probes or key.local_step not in plan.sending_steps:
            raise RefusedError(
                ErrorCode.UNEXPECTED_UPLOAD,
                f"the plan asks for {self.purpose.value} uploads with {plan.num_probes} probes at steps {_short(plan.sending_steps)}, "
                f"not for {key.purpose.value} with {num_probes} probes at step {key.local_step}",
            )
        specs = upload_specs(plan, announced_model(self.facts.model, tensors))
        check_specs(specs, tensors)
        _check_size(specs, announced_bytes)
        if not self.is_in_turn(key):
            raise RefusedError(
                ErrorCode.TOO_FAR_AHEAD, f"step {key.local_step} is too far ahead of the other clients: send it again later", 0.1
            )
        return specs

    def is_in_turn(self, key: UploadKey) -> bool:
        """Whether this upload may come now: the same one again always may."""
        if key.purpose is UploadPurpose.EVALUATE:
            return True
        return key in self.uploads or self.order.admits(UploadSlot(key.client_id, key.local_step))

    def check_round(self, key: UploadKey) -> None:
        """Refuse what belongs to another round or attempt: ROUND_OVER."""
        if key.round != self.assignment.round:
            raise RefusedError(
                ErrorCode.ROUND_OVER,
                f"{key.round.in_words} is over; the server is at {self.assignment.round.in_words}: ask for the next assignment",
            )

    def is_needed_next(self, key: UploadKey) -> bool:
        """Whether training waits for this very upload, so that it must be admitted whatever the spool holds."""
        if self.held_out.holds_training:
            return self.held_out.awaits(key.client_id)
        if key.purpose is UploadPurpose.EVALUATE:
            return False
        return self.order.needed_next() == UploadSlot(key.client_id, key.local_step)

    def known_digest(self, key: UploadKey) -> str | None:
        """Return the digest with which this upload was accepted before, or None."""
        if key.purpose is UploadPurpose.EVALUATE:
            return self.held_out.known_digest(key)
        upload = self.uploads.get(key)
        return upload.sha256 if upload else None

    def accept_upload(self, upload: AcceptedUpload) -> None:
        """Acknowledge an upload: it will be trained on in its turn or, of held-out samples, scored."""
        if upload.key.purpose is UploadPurpose.EVALUATE:
            self.held_out.accept(upload)
            return
        self.uploads[upload.key] = upload
        self._by_client.setdefault(upload.key.client_id, []).append(upload)
        if not upload.trained:
            self.order.arrived(UploadSlot(upload.key.client_id, upload.key.local_step))
        self.held_out.ended(upload.key.client_id)

    def ended(self, client_id: str) -> None:
        """No upload of any kind comes from this client any more."""
        self.order.ended(client_id)
        self.held_out.ended(client_id)

    def take_uploads(self) -> tuple[AcceptedUpload, ...]:
        """Return the uploads to train on next, several only where the schedule mixes them; none if they have not come."""
        if self.held_out.holds_training:
            return ()
        slots = self.order.take()
        return tuple(
            self.uploads[UploadKey(self.assignment.round, s.client_id, purpose=self.purpose, local_step=s.local_step)] for s in slots
        )

    def acknowledged(self, client_id: str, before_step: int | None = None) -> None:
        """Note that a client has lambda of its uploads before a step (or all) by now."""
        for upload in self._by_client.get(client_id, ()):
            if before_step is None or upload.key.local_step < before_step:
                upload.arrived = True

    def next_position(self) -> int:
        """Count one more upload that training, scoring or a rejection is done with; return its place in that order."""
        self.positions += 1
        return self.positions - 1

    def give_up_covered(self) -> tuple[list[AcceptedUpload], list[AcceptedUpload], list[SpoolEntry]]:
        """A checkpoint covers everything trained so far: return the uploads that lost their payload, those that lost lambda, and what to delete.

        lambda goes only where its client went on since.
        """
        covered = [upload for upload in self._all_uploads() if upload.trained and upload.entry is not None]
        without = [upload for upload in self.uploads.values() if upload.arrived and upload.cut_gradient is not None]
        released = [upload.entry for upload in covered if upload.entry is not None]
        released += [upload.cut_gradient for upload in without if upload.cut_gradient is not None]
        for upload in covered:
            upload.entry = None
        for upload in without:
            upload.cut_gradient = None
        return covered, without, released

    def covered_bytes(self) -> int:
        """Return how much a checkpoint now would free."""
        held = [upload.entry for upload in self._all_uploads() if upload.trained and upload.entry is not None]
        held += [upload.cut_gradient for upload in self.uploads.values() if upload.arrived and upload.cut_gradient is not None]
        return sum(entry.size_bytes for entry in held)

    def _all_uploads(self) -> list[AcceptedUpload]:
        return [*self.uploads.values(), *self.held_out.uploads]

    def check_update(
        self, client_id: str, steps: int, *, encoding: UpdateEncoding, tensors: tuple[TensorSpec, ...], announced_bytes: int
    ) -> tuple[TensorSpec, ...]:
        """Check an update's header: every upload that the plan asks for came first, sizes are the plan's; return its tensors.

        Raises:
            RefusedError: UPDATE_INCOMPLETE, INVALID_TENSOR or OVERSIZED.

        """
        plan = self.assignment.plan
        came = len(self._by_client.get(client_id, ()))
        if steps != plan.local_steps or came != len(plan.sending_steps):
            raise RefusedError(
                ErrorCode.UPDATE_INCOMPLETE,
                f"an update follows {plan.local_steps} steps and {len(plan.sending_steps)} uploads, but {steps} steps are declared and {came} uploads came",
            )
        if encoding is UpdateEncoding.LOG and not plan.logs:
            raise RefusedError(
                ErrorCode.INVALID_TENSOR, f"this plan's updates are dense, but one encoded as {encoding.value} came: send the weights"
            )
        specs = update_specs(plan, self.facts.model, encoding)
        check_specs(specs, tensors)
        _check_size(specs, announced_bytes)
        return specs

    def rows_of(self, client_id: str) -> int:
        """Return how many rows the server received from a client for training."""
        plan = self.assignment.plan
        return plan.batch_size * sum(plan.uploads_at(upload.key.local_step) for upload in self._by_client.get(client_id, ()))

    def entries(self) -> list[SpoolEntry]:
        """Return every spool entry that this attempt still holds."""
        held = [upload.entry for upload in self.uploads.values() if upload.entry is not None]
        held += [upload.cut_gradient for upload in self.uploads.values() if upload.cut_gradient]
        held += self.held_out.entries()
        return held + [update.entry for update in self.updates.values() if update.entry]


def _check_size(specs: tuple[TensorSpec, ...], announced_bytes: int) -> None:
    expected = total_bytes(specs)
    if announced_bytes != expected:
        raise RefusedError(
            ErrorCode.OVERSIZED if announced_bytes > expected else ErrorCode.INVALID_TENSOR,
            f"expected {expected} bytes, the header announces {announced_bytes}",
        )


def _short(steps: tuple[int, ...]) -> str:
    return str(list(steps)) if len(steps) <= 6 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"
