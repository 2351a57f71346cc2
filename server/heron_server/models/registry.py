"""Model families by name, their options, and how one is built from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_common.terminal.spelling import did_you_mean
from heron_server.models.families.cnn import CnnOptions, build_cnn
from heron_server.models.families.family_options import FamilyOptions
from heron_server.models.families.resnet import ResnetOptions, build_resnet
from heron_server.models.probes import Probes
from heron_server.models.split_model import SplitModel
from heron_server.models.transformer.pretrained import PREFIX as HUB_PREFIX
from heron_server.models.transformer.transformer import build_transformer
from heron_server.models.user.given_module import PREFIX as OBJECT_PREFIX
from heron_server.models.user.user_code import PREFIX
from heron_server.models.user.user_module import UserModel

FAMILIES: dict[str, tuple[type[FamilyOptions], Callable[[Any, DataSpecification, str], SplitModel]]] = {
    "cnn": (CnnOptions, build_cnn),
    "resnet": (ResnetOptions, build_resnet),
}
"""Of each family its options, and what builds it from them, a data specification and a name that says what was built."""

OUTSIDE = (PREFIX, OBJECT_PREFIX, HUB_PREFIX)
"""How names of models begin that are no family: a user's own module, by the name of what builds it or handed over as an object; a transformer."""


def check_family(name: str) -> None:
    """Refuse a name that is none of a family and does not begin like one from outside.

    Raises:
        ConfigurationError: it does not.

    """
    if name not in FAMILIES and not name.startswith(OUTSIDE):
        near = did_you_mean(name, FAMILIES)
        raise ConfigurationError(
            f"unknown model {name!r}{near or ':'} choose one of {', '.join(FAMILIES)}, python:MODULE:CALLABLE, or hf:FOLDER_OR_NAME"
        )


def build_model(
    family: str,
    options: Mapping[str, Any],
    *,
    data: DataSpecification,
    seed: int,
    cut: str | None = None,
    probes: Probes | None = None,
    module: nn.Module | None = None,
) -> SplitModel:
    """Build a split model; the same arguments give the same weights. `cut` names the place to cut, in families whose places have names.

    `probes` are what a user's own module is tried on, made-up samples by default; its weights do not depend on them.
    `module` is the one that `family` names where it was handed over as an object; it stays as it is.

    Raises:
        ConfigurationError: unknown family, option or place, or options that do not fit the data; the message lists what exists.

    """
    if data.tokens and not family.startswith(OUTSIDE):
        raise ConfigurationError(
            f"model {family!r} reads numbers, but the data specification {data.name!r} is of text: "
            "use --model hf:FOLDER_OR_NAME, or python:MODULE:CALLABLE for a module of your own"
        )
    if family.startswith(OUTSIDE):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if family.startswith(HUB_PREFIX):
                return build_transformer(family, options, data=data, seed=seed, cut=cut)
            return UserModel(family, options, data=data, probes=probes, module=module).split(cut)
    parsed = parse_family_options(family, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if cut is not None:
                parsed = parsed.cut_at(cut)
            name = f"{family}:{json.dumps(parsed.model_dump(), sort_keys=True)}:{list(data.input_shape)}:{data.num_classes}"
            return FAMILIES[family][1](parsed, data, name)
        except (ValueError, RuntimeError) as exc:
            raise ConfigurationError(f"model {family!r} cannot be built with these options: {exc}") from exc


def parse_family_options(family: str, options: Mapping[str, Any]) -> FamilyOptions:
    """Read the options of a family by its own rules.

    Raises:
        ConfigurationError: unknown family or option, or a wrong value; all mistakes at once.

    """
    check_family(family)
    options_type, _ = FAMILIES[family]
    try:
        return options_type.model_validate(dict(options))
    except ValidationError as exc:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in exc.errors())
        raise ConfigurationError(f"model options of {family!r}: {mistakes}; options are {', '.join(options_type.model_fields)}") from exc


def parse_model_options(text: str) -> dict[str, Any]:
    """Read `front_widths=4,2 hidden=128` into a mapping; a value with a comma becomes a list.

    Raises:
        ConfigurationError: a word is not KEY=VALUE.

    """
    options: dict[str, Any] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"model options are written KEY=VALUE, separated by spaces, not {word!r}")
        options[key] = [part for part in value.split(",") if part] if "," in value or key.endswith(("widths", "strides")) else value
    return options
