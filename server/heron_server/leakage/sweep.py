"""One cut after another: which there are, who has which rows, and what each gives away; and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from heron_common.data.check import check_source
from heron_common.data.sources import DataSource
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_common.terminal.spelling import did_you_mean
from heron_server.leakage.defence import Defence
from heron_server.leakage.meter import Leakage, measure
from heron_server.leakage.rows import AttackRows, draw_rows
from heron_server.leakage.tokens import TokenLeakage, measure_tokens
from heron_server.models.probes import Probes, probes_for
from heron_server.models.registry import FAMILIES, build_model, parse_family_options
from heron_server.models.split_model import SplitModel
from heron_server.models.survey import survey
from heron_server.models.user.user_code import PREFIX

Found = Leakage | TokenLeakage

ITS_OPTIONS = "the model's own cut"
"""What the cut of a family is called whose options say where it is."""

ATTACKED, OWN = 64, 1000
ATTACKED_TEXTS, OWN_TEXTS = 8, 400
"""A text has as many activations as many images."""


@dataclasses.dataclass(frozen=True)
class Assault:
    """An attack before it is aimed at a cut.

    Attributes:
        source: what all rows come from.
        defence: what stands between front and attacker.
        attacked, own: how many rows are attacked, and how many the attacker has at most; None for as many as suit the data.

    """

    source: DataSource
    defence: Defence
    _: dataclasses.KW_ONLY
    attacked: int | None = None
    own: int | None = None

    def rows(self, model: SplitModel, data: DataSpecification) -> AttackRows:
        """Draw the rows, which are the same for every cut of a model.

        Raises:
            DataError: they are not what the model expects, or too few.

        """
        attacked, own = (ATTACKED_TEXTS, OWN_TEXTS) if model.tokens else (ATTACKED, OWN)
        reader = check_source(self.source, model.completed(data), model.tokenizer)
        return draw_rows(reader, attacked=self.attacked or attacked, own=self.own or own)


def measure_cut(model: SplitModel, data: DataSpecification, assault: Assault, *, cut: str, progress: Callable[[str], None]) -> Found:
    """Attack one cut.

    Raises:
        DataError: see `Assault.rows`.

    """
    rows = assault.rows(model, data)
    if model.tokens:
        return measure_tokens(model, rows, cut=cut, defence=assault.defence, progress=progress)
    return measure(model, data, rows, cut=cut, defence=assault.defence, progress=progress)


def measure_places(
    family: str,
    options: Mapping[str, Any],
    *,
    data: DataSpecification,
    places: Sequence[str],
    assault: Assault,
    seed: int,
    progress: Callable[[str], None],
) -> Iterator[Found]:
    """Attack each of these places of a model with its first weights; all that there are where none is named.

    Raises:
        ConfigurationError: there is no such model or place, or it cannot be built.
        DataError: see `Assault.rows`.

    """
    probes = probes_for(assault.source, data, family=family, options=options) if family.startswith(PREFIX) else None
    chosen = _places(family, options, data=data, wanted=places, probes=probes)
    named = {key: value for key, value in options.items() if key != "front_blocks"} if chosen != [None] else options
    for number, place in enumerate(chosen, 1):
        cut = place or ITS_OPTIONS
        model = build_model(family, named, data=data, seed=seed, cut=place, probes=probes)
        begin = f"{cut}, {number} of {len(chosen)}" if len(chosen) > 1 else cut
        yield measure_cut(model, data, assault, cut=cut, progress=lambda words, begin=begin: progress(f"{begin}: {words}"))  # type: ignore[misc]


def _places(
    family: str, options: Mapping[str, Any], *, data: DataSpecification, wanted: Sequence[str], probes: Probes | None
) -> Sequence[str | None]:
    if family in FAMILIES and not wanted and not parse_family_options(family, options).places:
        return [None]
    known = survey(family, options, data=data, probes=probes).places
    for place in wanted:
        if place not in known:
            near = did_you_mean(place, known) or f": choose one of {', '.join(known)}"
            raise ConfigurationError(f"model {family!r} cannot be cut at {place!r}{near}")
    return wanted or known


def as_json(found: Found) -> dict[str, Any]:
    """Return figures as JSON values: scores by name, tokens as the share that came back."""
    common: dict[str, Any] = {
        "cut": found.cut,
        "activations": list(found.activations),
        "numbers_per_sample": math.prod(found.activations),
        "attacker_rows": found.own_rows,
        "strongest": found.strongest,
        "recovered": found.recovered,
    }
    if isinstance(found, TokenLeakage):
        return {**common, "guesses": dict(found.guesses), "attacks": dict(found.attacks)}
    return {
        **common,
        "guesses": {name: dataclasses.asdict(score) for name, score in found.guesses.items()},
        "attacks": {name: dataclasses.asdict(score) for name, score in found.attacks.items()},
        "distance_correlation": found.distance_correlation,
        "fisher_information_leakage": found.fisher,
    }


def num_attacked(found: Found) -> int:
    """Return how many samples were attacked."""
    reconstructions: torch.Tensor = found.reconstructions
    return len(reconstructions)
