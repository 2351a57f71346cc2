"""The life of rounds as a pure state machine: events and the time go in, effects come out. No clock, no network, no model.

WAITING --(enough clients)--> TRAINING --(all submitted, or deadline with quorum)--> CLOSING --(averaged)--> WAITING ... FINISHED
|
+--(quorum out of reach, or deadline without)--> CLOSING as abandoned --> WAITING, next attempt, or next round if the policy skips it
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum

from heron_common.data.partition import permutation
from heron_common.ids import RoundReference
from heron_common.numerics.directions import derive_seed
from heron_common.options import option
from heron_common.protocol.timing import DEFAULT_LIVENESS_SECONDS


class Phase(StrEnum):
    """WAITING for clients; TRAINING a round; CLOSING it (averaging, or going back); FINISHED with all rounds, or early."""

    WAITING = "waiting"
    TRAINING = "training"
    CLOSING = "closing"
    FINISHED = "finished"


class WithoutQuorum(StrEnum):
    """What becomes of a round without a quorum: it is tried again as a new attempt, or skipped, so that the next round starts from the same weights."""

    REPEAT = "repeat"
    SKIP = "skip"


class MemberStatus(StrEnum):
    """A cohort member is at work, has submitted, or was dropped from the attempt."""

    TRAINING = "training"
    SUBMITTED = "submitted"
    DROPPED = "dropped"


@dataclass(frozen=True)
class RoundRules:
    """When rounds open and end.

    Attributes:
        num_clients: with so many live clients the first round opens at once.
        min_updates: the quorum; fewer updates make no round.
        num_rounds: T.
        run_seed: what the draw of a cohort derives from, with round and attempt.

    """

    num_clients: int
    min_updates: int
    _: KW_ONLY
    num_rounds: int
    round_deadline_seconds: float = field(
        default=600.0, metadata=option("a round ends then, with or without stragglers; ten minutes suit slow devices", above=0)
    )
    liveness_seconds: float = field(
        default=DEFAULT_LIVENESS_SECONDS,
        metadata=option(
            "a client that sent nothing for so long has departed; heartbeats, keepalive and every timeout of the network are derived from it",
            at_least=3,
        ),
    )
    cohort_wait_seconds: float = field(
        default=30.0,
        metadata=option(
            "the first round waits so long for the rest of --clients once --min-updates are there; time to start the other devices",
            at_least=0,
        ),
    )
    participation: float = field(
        default=1.0,
        metadata=option(
            "share of the clients that each round takes in, drawn anew from the seed every time; the others wait", above=0, at_most=1
        ),
    )
    run_seed: int = 0
    over_selection: float = field(
        default=1.0,
        metadata=option(
            "so many times as many clients are drawn as --participation says, and the round ends with that many updates: 1.3 keeps slow or lost "
            "devices from holding a round up; the work of the slowest is not used",
            at_least=1,
            at_most=3,
        ),
    )
    without_quorum: WithoutQuorum = field(
        default=WithoutQuorum.REPEAT,
        metadata=option("a round without a quorum is tried again (repeat), or counts as done without an update (skip)"),
    )

    @property
    def clients_needed(self) -> int:
        """The fewest live clients with which a round opens."""
        return next(n for n in itertools.count(1) if cohort_size(self.participation, n) >= self.min_updates)


def wanted_updates(num_members: int, over_selection: float) -> int:
    """Return with how many updates of so many members a round ends: floor(n / o), which undoes n = ceil(wanted * o)."""
    return max(1, math.floor(num_members / over_selection + 1e-9))


def cohort_size(participation: float, num_clients: int) -> int:
    """Return how many of so many clients take part in a round: the share, rounded up, at least one if there is one."""
    # 0.07 * 100 is a little more than 7 in binary, and must not become 8.
    return min(num_clients, max(1, math.ceil(participation * num_clients - 1e-9)))


def draw_cohort(
    live: tuple[str, ...], participation: float, *, run_seed: int, reference: RoundReference, over_selection: float = 1.0
) -> tuple[str, ...]:
    """Return the sorted names of those who take part: a function of its arguments, so that a repeated run draws alike."""
    size = min(len(live), math.ceil(cohort_size(participation, len(live)) * over_selection - 1e-9))
    if size == len(live):
        return live
    order = permutation(derive_seed(run_seed, "", round_reference=reference, purpose="participation", index=0), len(live))
    return tuple(sorted(live[int(index)] for index in order[:size]))


@dataclass(frozen=True)
class OpenRound:
    """Give this cohort its assignments."""

    round: RoundReference
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class DropMember:
    """Expect nothing more from this member in this attempt."""

    client_id: str
    reason: str


@dataclass(frozen=True)
class CloseRound:
    """Train on what is left, average these members' updates, evaluate, checkpoint; then say `closed`."""

    round: RoundReference
    submitted: tuple[str, ...]


@dataclass(frozen=True)
class AbandonRound:
    """Go back to the last round boundary; then say `closed`."""

    round: RoundReference
    reason: str


@dataclass(frozen=True)
class FinishRun:
    """All rounds are done, or the run ends before them."""


Effect = OpenRound | DropMember | CloseRound | AbandonRound | FinishRun


class RoundMachine:
    """Round state and its transitions. Every method takes the time and returns the effects to carry out, in order."""

    def __init__(self, rules: RoundRules, first_round: int = 0, begun: Mapping[int, int] | None = None) -> None:
        """Start before `first_round`; `begun` has the last attempt that earlier processes began at each round."""
        self.rules = rules
        self._begun = dict(begun or {})
        self.round = self._next_attempt(first_round)
        self.phase = Phase.WAITING
        self.cohort: dict[str, MemberStatus] = {}
        self.opened_at = 0.0
        self.may_open = True
        """Whether rounds may open: not before the first round's inputs are known, and not while the server drains."""
        self.set_apart: frozenset[str] = frozenset()
        """Clients that have no part in rounds to come, as long as the others make a quorum."""
        self.ends_because = ""
        """Why no further round opens, where the run ends before its last one."""
        self._last_seen: dict[str, float] = {}
        self._quorum_since: float | None = None
        self._opened_before = False
        self._abandoned = False

    @property
    def live(self) -> tuple[str, ...]:
        """Names of live clients, sorted."""
        return tuple(sorted(self._last_seen))

    @property
    def eligible(self) -> tuple[str, ...]:
        """Names of those that a round may take in, sorted: all live ones if the others alone are too few, or no round could ever end the setting apart."""
        others = tuple(name for name in self.live if name not in self.set_apart)
        return others if cohort_size(self.rules.participation, len(others)) >= self.rules.min_updates else self.live

    def is_live(self, client_id: str) -> bool:
        """Whether a client sent something within the liveness window, as far as the machine has been told."""
        return client_id in self._last_seen

    def members(self, status: MemberStatus) -> tuple[str, ...]:
        """Names of cohort members with this status, sorted."""
        return tuple(sorted(name for name, s in self.cohort.items() if s is status))

    def heard(self, client_id: str, at: float) -> None:
        """Note when a live client was last heard of; the next tick looks at it."""
        if at > self._last_seen.get(client_id, at):
            self._last_seen[client_id] = at

    def seen(self, client_id: str, now: float) -> list[Effect]:
        """Any message of a client is a sign of life."""
        self._last_seen[client_id] = now
        return self.tick(now)

    def departed(self, client_id: str, now: float, reason: str) -> list[Effect]:
        """A client left or went silent."""
        self._last_seen.pop(client_id, None)
        return self.drop(client_id, now, reason)

    def drop(self, client_id: str, now: float, reason: str) -> list[Effect]:
        """Exclude a member from this attempt; what it submitted before stays."""
        return [*self._exclude(client_id, reason), *self.tick(now)]

    def submitted(self, client_id: str, now: float) -> list[Effect]:
        """A member's update was accepted."""
        self.cohort[client_id] = MemberStatus.SUBMITTED
        return self.seen(client_id, now)

    def expect(self, client_id: str, now: float) -> None:
        """A client that was live when an earlier process ended counts as heard of now; a run that had begun goes on with those who were there."""
        self._last_seen[client_id] = now
        self._opened_before = bool(self._begun)

    def reopen(self, reference: RoundReference, cohort: Mapping[str, MemberStatus], now: float) -> None:
        """Go on with an attempt that an earlier process opened; its members count as heard of now, and its deadline starts anew."""
        self.round, self.phase, self.opened_at = reference, Phase.TRAINING, now
        self._begun[reference.round_index] = max(reference.attempt, self._begun.get(reference.round_index, 0))
        self.cohort = dict(cohort)
        for name in self.members(MemberStatus.TRAINING):
            self._last_seen[name] = now

    def repeat_close(self, submitted: tuple[str, ...]) -> list[Effect]:
        """Repeat the recorded decision that the reopened attempt ends with these members' updates."""
        self.phase = Phase.CLOSING
        dropped: list[Effect] = [DropMember(n, "missed the round deadline") for n in self.members(MemberStatus.TRAINING)]
        self.cohort |= {name: MemberStatus.DROPPED for name, s in self.cohort.items() if s is MemberStatus.TRAINING}
        return [*dropped, CloseRound(self.round, submitted)]

    @property
    def end_reason(self) -> str:
        """Why a finished run is."""
        return self.ends_because or f"all {self.rules.num_rounds} rounds are done"

    def closed(self, now: float) -> list[Effect]:
        """The effect CloseRound or AbandonRound was carried out."""
        repeated = self._abandoned and self.rules.without_quorum is WithoutQuorum.REPEAT
        self.round = self._next_attempt(self.round.round_index + (0 if repeated else 1))
        self._abandoned = False
        self.cohort = {}
        self.phase = Phase.WAITING
        return self.tick(now)

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: departures, deadlines, openings."""
        effects: list[Effect] = []
        for name in [n for n, seen in self._last_seen.items() if now - seen > self.rules.liveness_seconds]:
            del self._last_seen[name]
            effects += self._exclude(name, "went silent")
        if self.phase is Phase.WAITING:
            effects += self._open_if_due(now)
        elif self.phase is Phase.TRAINING:
            effects += self._close_if_due(now)
        return effects

    def _exclude(self, client_id: str, reason: str) -> list[Effect]:
        if self.phase is not Phase.TRAINING or self.cohort.get(client_id) is not MemberStatus.TRAINING:
            return []
        self.cohort[client_id] = MemberStatus.DROPPED
        return [DropMember(client_id, reason)]

    def _next_attempt(self, round_index: int) -> RoundReference:
        return RoundReference(round_index, self._begun.get(round_index, -1) + 1)

    def _open_if_due(self, now: float) -> list[Effect]:
        if self.round.round_index >= self.rules.num_rounds or self.ends_because:
            self.phase = Phase.FINISHED
            return [FinishRun()]
        if not self.may_open:
            return []
        if cohort_size(self.rules.participation, len(self._last_seen)) < self.rules.min_updates:
            self._quorum_since = None
            return []
        if self._quorum_since is None:
            self._quorum_since = now
        complete = len(self._last_seen) >= self.rules.num_clients
        if not (complete or self._opened_before or now - self._quorum_since >= self.rules.cohort_wait_seconds):
            return []
        self._opened_before = True
        self.phase = Phase.TRAINING
        drawn = draw_cohort(
            self.eligible,
            self.rules.participation,
            run_seed=self.rules.run_seed,
            reference=self.round,
            over_selection=self.rules.over_selection,
        )
        self.cohort = dict.fromkeys(drawn, MemberStatus.TRAINING)
        self.opened_at = now
        self._begun[self.round.round_index] = self.round.attempt
        return [OpenRound(self.round, drawn)]

    def _close_if_due(self, now: float) -> list[Effect]:
        training, submitted = self.members(MemberStatus.TRAINING), self.members(MemberStatus.SUBMITTED)
        late = now - self.opened_at >= self.rules.round_deadline_seconds
        wanted = max(self.rules.min_updates, wanted_updates(len(self.cohort), self.rules.over_selection))
        enough = len(submitted) >= wanted and self.rules.over_selection > 1
        if len(submitted) >= self.rules.min_updates and (late or enough or not training):
            self.phase = Phase.CLOSING
            reason = "others were faster" if enough and not late else "missed the round deadline"
            dropped: list[Effect] = [DropMember(name, reason) for name in training]
            self.cohort |= dict.fromkeys(training, MemberStatus.DROPPED)
            return [*dropped, CloseRound(self.round, submitted)]
        out_of_reach = len(training) + len(submitted) < self.rules.min_updates
        if late or out_of_reach:
            self.phase = Phase.CLOSING
            self._abandoned = True
            why = "too few clients are left" if out_of_reach else "the deadline passed"
            return [AbandonRound(self.round, f"{why}: {len(submitted)} of at least {self.rules.min_updates} updates came")]
        return []
