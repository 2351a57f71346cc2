"""In which order the server trains on uploads: a pure queue per attempt."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from heron_common.plan import ServerSchedule

LOCKSTEP_AHEAD = 2
"""Under lockstep a client may be this many uploads ahead of the one needed next: enough to hide the network, bounded."""


class UploadSlot(NamedTuple):
    """One upload that an attempt may bring."""

    client_id: str
    local_step: int


class TrainingOrder:
    """Decides which accepted upload is next.

    ARRIVAL: first come, first trained. SEQUENTIAL: client after client (SFLV2, arXiv 2004.12088). LOCKSTEP: step after step, and within a step
    client after client, so that the result does not depend on the network.
    """

    def __init__(self, schedule: ServerSchedule, cohort: tuple[str, ...], steps: tuple[int, ...]) -> None:
        self._schedule = schedule
        self._steps = {step: position for position, step in enumerate(steps)}
        self._arrived: dict[UploadSlot, None] = {}
        self._ended: set[str] = set()
        self._expected: deque[UploadSlot] = deque()
        if schedule is ServerSchedule.SEQUENTIAL:
            self._expected.extend(UploadSlot(client, step) for client in cohort for step in steps)
        elif schedule is ServerSchedule.LOCKSTEP:
            self._expected.extend(UploadSlot(client, step) for step in steps for client in cohort)

    def arrived(self, slot: UploadSlot) -> None:
        """An upload was accepted."""
        self._arrived[slot] = None

    def ended(self, client_id: str) -> None:
        """Nothing more will arrive from this client."""
        self._ended.add(client_id)

    @property
    def pending(self) -> int:
        """How many accepted uploads are not trained yet."""
        return len(self._arrived)

    def needed_next(self) -> UploadSlot | None:
        """Return the upload that training waits for; None if any will do or none is expected."""
        while self._expected and self._expected[0] not in self._arrived and self._expected[0].client_id in self._ended:
            self._expected.popleft()
        return self._expected[0] if self._expected else None

    def admits(self, slot: UploadSlot) -> bool:
        """Whether this upload may come now: under lockstep not more than LOCKSTEP_AHEAD steps before the one needed next."""
        needed = self.needed_next()
        if self._schedule is not ServerSchedule.LOCKSTEP or needed is None:
            return True
        return self._steps[slot.local_step] - self._steps[needed.local_step] <= LOCKSTEP_AHEAD

    def take(self) -> UploadSlot | None:
        """Remove and return the upload to train on next, or None if it has not arrived."""
        if self._schedule is ServerSchedule.ARRIVAL:
            slot = next(iter(self._arrived), None)
        else:
            needed = self.needed_next()
            slot = needed if needed in self._arrived else None
            if slot is not None:
                self._expected.popleft()
        if slot is not None:
            del self._arrived[slot]
        return slot
