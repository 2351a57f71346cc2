"""In which order the server trains on uploads: a pure queue per attempt."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from heron_common.algorithm.algorithm import ServerSchedule

STEPS_AHEAD = 2
"""Where the order is by step, a client may be this many uploads ahead of the one needed next: enough to hide the network, bounded."""


class UploadSlot(NamedTuple):
    """One upload that an attempt may bring."""

    client_id: str
    local_step: int


class TrainingOrder:
    """Decides which accepted uploads are next.

    ARRIVAL: first come, first trained. SEQUENTIAL: client after client (SFLV2, arXiv 2004.12088). LOCKSTEP: step after step, and within a step
    client after client, so that the result does not depend on the network. SHUFFLED: step after step, all clients' uploads of a step at once, to be mixed.
    """

    def __init__(self, schedule: ServerSchedule, cohort: tuple[str, ...], steps: tuple[int, ...]) -> None:
        self._schedule = schedule
        self._steps = {step: position for position, step in enumerate(steps)}
        self._arrived: dict[UploadSlot, None] = {}
        self._ended: set[str] = set()
        self._expected: deque[tuple[UploadSlot, ...]] = deque()
        if schedule is ServerSchedule.SEQUENTIAL:
            self._expected.extend((UploadSlot(client, step),) for client in cohort for step in steps)
        elif schedule is ServerSchedule.LOCKSTEP:
            self._expected.extend((UploadSlot(client, step),) for step in steps for client in cohort)
        elif schedule is ServerSchedule.SHUFFLED:
            self._expected.extend(tuple(UploadSlot(client, step) for client in cohort) for step in steps)

    def arrived(self, slot: UploadSlot) -> None:
        """An upload was accepted."""
        self._arrived[slot] = None

    def ended(self, client_id: str) -> None:
        """Nothing more will arrive from this client."""
        self._ended.add(client_id)

    def skip(self, slots: Iterable[UploadSlot]) -> None:
        """These were trained before a restart, each with all others of its group that were trained at all."""
        done = set(slots)
        self._expected = deque(group for group in self._expected if not done.intersection(group))
        for slot in done:
            self._arrived.pop(slot, None)

    @property
    def pending(self) -> int:
        """How many accepted uploads are not trained yet."""
        return len(self._arrived)

    def needed_next(self) -> UploadSlot | None:
        """Return an upload that training waits for or can take now; None if any will do or none is expected."""
        while self._expected:
            group = [slot for slot in self._expected[0] if slot in self._arrived or slot.client_id not in self._ended]
            if group:
                return next((slot for slot in group if slot not in self._arrived), group[0])
            self._expected.popleft()
        return None

    def admits(self, slot: UploadSlot) -> bool:
        """Whether this upload may come now: where the order is by step, not more than STEPS_AHEAD steps before the one needed next."""
        needed = self.needed_next()
        if self._schedule not in (ServerSchedule.LOCKSTEP, ServerSchedule.SHUFFLED) or needed is None:
            return True
        return self._steps[slot.local_step] - self._steps[needed.local_step] <= STEPS_AHEAD

    def take(self) -> tuple[UploadSlot, ...]:
        """Remove and return the uploads to train on next; none if they have not arrived."""
        if self._schedule is ServerSchedule.ARRIVAL:
            taken = tuple(itertools.islice(self._arrived, 1))
        else:
            needed = self.needed_next()
            taken = ()
            if needed is not None and needed in self._arrived:
                taken = tuple(slot for slot in self._expected.popleft() if slot in self._arrived)
        for slot in taken:
            del self._arrived[slot]
        return taken
