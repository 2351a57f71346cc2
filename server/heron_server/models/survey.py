"""Every place where a model can be cut, and what a client would hold there; for choosing, nothing is compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.probes import Probes
from heron_server.models.registry import build_model, parse_family_options
from heron_server.models.split_model import SplitModel
from heron_server.models.transformer.pretrained import PREFIX as HUB_PREFIX
from heron_server.models.transformer.transformer_survey import block_places
from heron_server.models.user.user_code import PREFIX
from heron_server.models.user.user_module import UserModel


@dataclass(frozen=True)
class Refused:
    """A reason that speaks against places, how many, and one of them."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class Survey:
    """The places of a model.

    Attributes:
        places: in the order of the computation; of a transformer the number of blocks in front.
        refused: why not elsewhere.
        kept_whole: submodules that cannot be traced, with the reason: there is no place inside them.
        client_side: place -> a model whose front and head are those of a cut there; its back is of no account. To be called in one FakeTensorMode, place
            after place: the next call may change what the last one returned.

    """

    places: tuple[str, ...]
    refused: tuple[Refused, ...]
    _: KW_ONLY
    kept_whole: Mapping[str, str]
    client_side: Callable[[str], SplitModel]


def survey(family: str, options: Mapping[str, Any], *, data: DataSpecification, probes: Probes | None = None) -> Survey:
    """Find the places of a model of these options; a user's own model is tried on `probes`.

    Raises:
        ConfigurationError: there is no such model, it cannot be traced, or its family's places have no names.

    """
    if family.startswith(PREFIX):
        model = UserModel(family, options, data=data, probes=probes)
        refusals = model.cutter.refusals
        counts = Counter(refusal.obstacle for refusal in refusals.values())
        examples = {refusal.obstacle: name for name, refusal in reversed(refusals.items())}
        refused = tuple(Refused(obstacle.value, count, examples[obstacle]) for obstacle, count in counts.most_common())
        return Survey(
            model.cutter.places,
            refused,
            kept_whole=model.cutter.kept_whole,
            client_side=lambda place: model.client_side(place, nn.Identity()),
        )
    if family.startswith(HUB_PREFIX):
        places, too_deep, client_side = block_places(family, options, data)
        why = (Refused("fewer blocks behind than head_blocks asks for", len(too_deep), too_deep[0]),) if too_deep else ()
        return Survey(places, why, kept_whole={}, client_side=client_side)
    parsed = parse_family_options(family, options)
    if not parsed.places:
        raise ConfigurationError(f"model {family!r} has no named places to cut: its options say where, see `heron-server --help`")
    chosen = {key: value for key, value in options.items() if key != "front_blocks"}
    return Survey(parsed.places, (), kept_whole={}, client_side=lambda place: build_model(family, chosen, data=data, seed=0, cut=place))
