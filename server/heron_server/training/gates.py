"""Gates against poisoned uploads: what a client sends is compared with what the others send, and a client that keeps failing is set apart.

Everything is decided by counts and figures of uploads, never by the clock or by arrival, so that the same uploads after the same state get the same verdicts.

Of each client the figures of its latest accepted uploads are kept. A client's level is a quantile of those, the reference is the median of the levels of
all clients that have enough of them: less than half of the clients, each with as many uploads as it likes, cannot move it beyond what honest ones send.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

from heron_common.options import option

WINDOW = 32
"""Figures that are kept of a client: enough for a quantile, and few enough that a model which learns is compared with what it was lately."""

MIN_UPLOADS = 8
"""Accepted uploads from which on a client counts for the reference, and its losses are judged: who holds labels that nobody else has must get a hearing."""

MIN_CLIENTS = 3
"""Of two clients nobody can say which of them is the poisoned one."""

_UPPER_QUANTILE = 0.9
"""Of losses and gradients, which have long tails; the median of norms, which have none."""

_MAX_DOUBLINGS = 10


class GateReason(StrEnum):
    """Why an upload was not trained on."""

    ACTIVATION_NORM = "activation_norm"
    SERVER_LOSS = "server_loss"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class GateSettings:
    """What is an outlier; the reference is the median of the clients' levels."""

    norm_factor: float = field(
        default=10.0,
        metadata=option(
            "activations so many times larger or smaller than the median of the clients' are refused; clients that average their fronts "
            "differ by less than 2; 0 for never",
            at_least=0,
        ),
    )
    loss_factor: float = field(
        default=2.0,
        metadata=option(
            "an upload is refused on which the server's loss is so many times the median of the clients' (or half of what it was at first, if that is "
            "more); honest clients with two classes each stay below it; 0 for never",
            at_least=0,
        ),
    )
    _: KW_ONLY
    gradient_factor: float = field(
        default=10.0,
        metadata=option("a server step's gradient is shortened to so many times the median of the clients'; 0 for never", at_least=0),
    )
    gate_warmup_uploads: int = field(
        default=64,
        metadata=option(
            "nothing is refused or shortened before so many uploads of at least three clients were trained on",
            at_least=1,
        ),
    )
    quarantine_after: int = field(
        default=5,
        metadata=option(
            "strikes at which a client is set apart: a refused upload is one more, an accepted one less; 0 for never", at_least=0
        ),
    )
    quarantine_rounds: int = field(
        default=10,
        metadata=option("rounds that a client is set apart, twice as many each time again; --release-clients hears it at once", at_least=1),
    )


NO_GATES = GateSettings(norm_factor=0, loss_factor=0, gradient_factor=0, gate_warmup_uploads=0, quarantine_after=0, quarantine_rounds=0)
"""Nothing is an outlier."""


@dataclass(frozen=True)
class Verdict:
    """Whether an upload may be trained on; the reason if not, with what was measured and what the limit was; whether its client is set apart now."""

    reason: StrEnum | None = None
    measured: float = 0.0
    _: KW_ONLY
    limit: float = 0.0
    quarantines: bool = False

    @property
    def accepted(self) -> bool:
        """Whether it may be trained on."""
        return self.reason is None


ACCEPTED = Verdict()


@dataclass
class _Client:
    """What is known of one client."""

    norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _: KW_ONLY
    gradients: list[float] = field(default_factory=list)
    accepted: int = 0
    strikes: int = 0
    quarantines: int = 0
    released_at: int = 0
    """The round from which on it is heard again; 0 if it was never set apart."""
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def is_established(self) -> bool:
        return self.accepted >= MIN_UPLOADS


class Gate:
    """Judges uploads one after the other, in the order in which they are trained on. Not thread-safe: the trainer's thread calls it.

    Ask `judge_norm` before the server's step, `judge_loss` before the step moves anything, then `limit_gradient`; each refusal is final, and an upload that
    passed all is noted by `accept`.
    """

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._clients: dict[str, _Client] = {}
        self._accepted = 0
        self._start_loss = 0.0
        self._refused_in_round: Counter[str] = Counter()

    def judge_norm(self, client_id: str, round_index: int, activation_norm: float) -> Verdict:
        """Judge an upload by the root mean square of its base activations, and by whether its client is set apart in this round."""
        if self.is_quarantined(client_id, round_index):
            self._of(client_id).refused[GateReason.QUARANTINED] += 1
            self._refused_in_round[client_id] += 1
            return Verdict(GateReason.QUARANTINED)
        factor, reference = self._settings.norm_factor, self._reference("norms")
        if not factor or reference is None:
            return ACCEPTED
        if activation_norm > factor * reference:
            return self.refuse(
                client_id, round_index, reason=GateReason.ACTIVATION_NORM, measured=activation_norm, limit=factor * reference
            )
        if activation_norm * factor < reference:
            return self.refuse(
                client_id, round_index, reason=GateReason.ACTIVATION_NORM, measured=activation_norm, limit=reference / factor
            )
        return ACCEPTED

    def judge_loss(self, client_id: str, round_index: int, server_loss: float) -> Verdict:
        """Judge an upload by the mean of the server's losses on it.

        The limit is loss_factor times the reference, or half of what the losses were at first if that is more: once most samples are easy, a hard
        one is a large multiple of them. A client is judged once it had a hearing of MIN_UPLOADS.
        """
        factor, reference = self._settings.loss_factor, self._reference("losses")
        if not factor or reference is None or not self._of(client_id).is_established:
            return ACCEPTED
        limit = factor * max(reference, self._start_loss / 2)
        if server_loss > limit:
            return self.refuse(client_id, round_index, reason=GateReason.SERVER_LOSS, measured=server_loss, limit=limit)
        return ACCEPTED

    def limit_gradient(self) -> float:
        """Return the length to which the gradient of the next server step is shortened; infinity where there is no limit."""
        factor, reference = self._settings.gradient_factor, self._reference("gradients")
        return factor * reference if factor and reference else math.inf

    def accept(self, client_id: str, activation_norm: float, *, server_loss: float, gradient_norm: float) -> None:
        """Note an upload that passed, and was trained on; its gradient as it was before it was shortened, so that limits can grow again."""
        client = self._of(client_id)
        for figures, figure in ((client.norms, activation_norm), (client.losses, server_loss), (client.gradients, gradient_norm)):
            figures.append(figure)
            del figures[:-WINDOW]
        client.accepted += 1
        client.strikes = max(0, client.strikes - 1)
        self._accepted += 1
        if not self._start_loss and self._is_warm:
            self._start_loss = self._reference("losses") or 0.0

    def is_quarantined(self, client_id: str, round_index: int) -> bool:
        """Whether a client is set apart in this round."""
        client = self._clients.get(client_id)
        return client is not None and round_index < client.released_at

    def quarantined(self, round_index: int) -> tuple[str, ...]:
        """Return the names of the clients that are set apart in this round, sorted."""
        return tuple(sorted(name for name in self._clients if self.is_quarantined(name, round_index)))

    def release(self, client_id: str) -> None:
        """Hear a client again at once, and forget what it was set apart for: an operator says so."""
        client = self._of(client_id)
        client.released_at, client.strikes, client.quarantines = 0, 0, 0

    def refused_in_round(self, client_id: str) -> int:
        """Return how many of a client's uploads were refused since `round_closed`: they do not count where its weights are averaged."""
        return self._refused_in_round[client_id]

    @property
    def num_refused_in_round(self) -> int:
        """How many clients that is true of."""
        return len(self._refused_in_round)

    def round_closed(self) -> None:
        """A round was averaged."""
        self._refused_in_round.clear()

    def refusals(self) -> dict[str, dict[str, int]]:
        """Return how many uploads of each client were refused, by reason; clients without any are left out."""
        return {
            name: {str(reason): count for reason, count in sorted(client.refused.items())}
            for name, client in sorted(self._clients.items())
            if client.refused
        }

    def state(self) -> dict[str, Any]:
        """Return everything that decides as plain JSON values; `restore` takes it back, exactly."""
        clients = {name: {**vars(client), "refused": dict(client.refused)} for name, client in sorted(self._clients.items())}
        copied = {name: {key: list(v) if isinstance(v, list) else v for key, v in row.items()} for name, row in clients.items()}
        in_round = dict(sorted(self._refused_in_round.items()))
        return {"accepted": self._accepted, "start_loss": self._start_loss, "refused_in_round": in_round, "clients": copied}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self._accepted, self._start_loss = int(state["accepted"]), float(state["start_loss"])
        self._refused_in_round = Counter(state["refused_in_round"])
        self._clients = {name: _restored(row) for name, row in state["clients"].items()}

    @property
    def _is_warm(self) -> bool:
        established = sum(client.is_established for client in self._clients.values())
        return self._accepted >= self._settings.gate_warmup_uploads and established >= MIN_CLIENTS

    def _reference(self, figures: str) -> float | None:
        """Return the median of the established clients' levels; None before the gates are warm."""
        if not self._is_warm:
            return None
        quantile = 0.5 if figures == "norms" else _UPPER_QUANTILE
        return median(_quantile(getattr(client, figures), quantile) for client in self._clients.values() if client.is_established)

    def refuse(self, client_id: str, round_index: int, *, reason: StrEnum, measured: float, limit: float) -> Verdict:
        """Refuse an upload, by a gate or because its step was not taken: a strike more."""
        client, settings = self._of(client_id), self._settings
        client.refused[reason] += 1
        self._refused_in_round[client_id] += 1
        client.strikes += 1
        quarantines = bool(settings.quarantine_after) and client.strikes >= settings.quarantine_after
        if quarantines:
            # The rest of this round counts as none of them.
            rounds = settings.quarantine_rounds << min(client.quarantines, _MAX_DOUBLINGS)
            client.released_at = round_index + 1 + rounds
            client.strikes = 0
            client.quarantines += 1
        return Verdict(reason, measured, limit=limit, quarantines=quarantines)

    def _of(self, client_id: str) -> _Client:
        return self._clients.setdefault(client_id, _Client())


def _restored(row: dict[str, Any]) -> _Client:
    copied: dict[str, Any] = {key: list(value) if isinstance(value, list) else value for key, value in row.items()}
    return _Client(**copied | {"refused": Counter(row["refused"])})


def _quantile(figures: list[float], share: float) -> float:
    """Return the figure below which a share of them lies, one of them itself: no arithmetic that could round otherwise elsewhere."""
    return sorted(figures)[min(len(figures) - 1, int(share * len(figures)))]
