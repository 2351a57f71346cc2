"""When a run ends before its last round: a pure rule over the records of its rounds, and the decision that a checkpoint holds.

The decision takes effect once a checkpoint says it, so that a restart follows it instead of taking it again.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heron_common.errors import ConfigurationError
from heron_common.options import option
from heron_common.specification.data_specification import Task
from heron_common.terminal.spelling import did_you_mean
from heron_server.summary import RoundRecord

FIGURES = tuple(declared.name for declared in dataclasses.fields(RoundRecord))
"""Every number that a round's record has."""

_HOLDS: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

_COMPARISON = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*")

_FORM = "FIGURE < <= > or >= NUMBER, like 'test_accuracy>0.97'"

_PATIENT_WITH = (("test_accuracy", max), ("test_loss", min), ("server_loss", min))
"""The first of these that a run has is what it is to become better at, and which of two is better."""


@dataclass(frozen=True)
class EndRules:
    """When a run ends before its last round; never, by default."""

    stop_when: str | None = field(
        default=None,
        metadata=option(
            f"the run ends after the first round of whose figures this holds: {_FORM}; figures are those of a round in summary.json"
        ),
    )
    patience_rounds: int | None = field(
        default=None,
        metadata=option(
            "the run ends after so many rounds in a row without a better test accuracy, or test loss where there is no accuracy, or loss of the server's "
            "steps without --eval-data",
            at_least=1,
        ),
    )


@dataclass(frozen=True)
class Comparison:
    """A figure of a round beside a number."""

    figure: str
    sign: str
    number: float

    def holds(self, record: RoundRecord) -> bool:
        """Whether it holds of a round; never of one without the figure."""
        value = getattr(record, self.figure)
        return value is not None and _HOLDS[self.sign](value, self.number)


def parse_comparison(text: str) -> Comparison:
    """Read `test_accuracy>0.97`.

    Raises:
        ConfigurationError: it has another form, or names no figure of a round.

    """
    found = _COMPARISON.fullmatch(text)
    try:
        number = float(found[3]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number):
        raise ConfigurationError(f"a comparison is written {_FORM}, not {text!r}")
    if found[1] not in FIGURES:
        near = did_you_mean(found[1], FIGURES)
        raise ConfigurationError(f"a round has no figure {found[1]!r}{near or ''}; figures are {', '.join(FIGURES)}")
    return Comparison(found[1], found[2], number)


def check_figures(rules: EndRules, *, task: Task, is_scored: bool, holds_out: bool) -> None:
    """Refuse to wait for a figure that no round of a run will have.

    Raises:
        ConfigurationError: the sentence says what would give it.

    """
    if rules.stop_when is None:
        return
    figure = parse_comparison(rules.stop_when).figure
    kind, _, what = figure.partition("_")
    if kind not in ("test", "federated"):
        return
    if kind == "test" and not is_scored:
        raise ConfigurationError(f"--stop-when waits for {figure}, which only --eval-data gives: give held-out data, or another figure")
    if kind == "federated" and not holds_out:
        raise ConfigurationError(f"--stop-when waits for {figure}, which only --held-out gives: give a share, or another figure")
    if (what == "accuracy" and task is Task.REGRESSION) or (what == "perplexity" and task is not Task.NEXT_TOKEN):
        raise ConfigurationError(f"--stop-when waits for {figure}, which a task of {task.value} has not: use {kind}_loss")


@dataclass(frozen=True)
class EarlyEnd:
    """What is decided of a run's end after `num_rounds` or before; `because` is empty until it is to end early."""

    rules: EndRules
    num_rounds: int
    because: str = ""

    def after_round(self, rounds: Sequence[RoundRecord]) -> EarlyEnd:
        """Return what is decided once the last of these rounds is over; a decision stands."""
        if self.because or not rounds:
            return self
        return dataclasses.replace(self, because=_reason(self.rules, rounds))

    def reason(self, completed: int) -> str | None:
        """Return why a run that has so many rounds behind it is over, None if it is not."""
        return self.because or (f"all {self.num_rounds} rounds are done" if completed >= self.num_rounds else None)

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**vars(self.rules), "because": self.because}

    def restored(self, state: Mapping[str, Any] | None) -> EarlyEnd:
        """Return what a checkpoint says, unless its rules were others: then the run goes on. Checkpoints of earlier versions say nothing."""
        same = state is not None and all(state.get(name) == value for name, value in vars(self.rules).items())
        return dataclasses.replace(self, because=str(state["because"]) if state is not None and same else "")


def _reason(rules: EndRules, rounds: Sequence[RoundRecord]) -> str:
    last = rounds[-1]
    if rules.stop_when is not None:
        comparison = parse_comparison(rules.stop_when)
        if comparison.holds(last):
            value = getattr(last, comparison.figure)
            return f"--stop-when {rules.stop_when.strip()}: {comparison.figure} was {value:.6g} after round {last.round_index + 1}"
    return _out_of_patience(rules.patience_rounds, rounds) if rules.patience_rounds is not None else ""


def _out_of_patience(patience_rounds: int, rounds: Sequence[RoundRecord]) -> str:
    for figure, better in _PATIENT_WITH:
        known = [(place, value) for place, record in enumerate(rounds) if (value := getattr(record, figure)) is not None]
        if not known:
            continue
        finite = [(place, value) for place, value in known if math.isfinite(value)]
        # The first of equals: one that is only as good is not better.
        best = better(value for _, value in finite) if finite else math.nan
        place = next((place for place, value in finite if value == best), known[0][0])
        if len(rounds) - 1 - place < patience_rounds:
            return ""
        words = figure.replace("_", " ")
        return f"--patience-rounds {patience_rounds}: no better {words} than {best:.6g} of round {rounds[place].round_index + 1} came since"
    return ""
