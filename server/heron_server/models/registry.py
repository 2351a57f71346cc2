"""Model families by name, their options, and how one is built from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from heron_common.assignment import DataSpecification
from heron_common.errors import ConfigurationError
from heron_server.models.cnn import CnnOptions, build_cnn
from heron_server.models.resnet import ResnetOptions, build_resnet
from heron_server.models.split_model import SplitModel

_FAMILIES: dict[str, tuple[type[BaseModel], Callable[[Any, DataSpecification, str], SplitModel]]] = {
    "cnn": (CnnOptions, build_cnn),
    "resnet": (ResnetOptions, build_resnet),
}


def build_model(family: str, options: Mapping[str, Any], data: DataSpecification, seed: int) -> SplitModel:
    """Build a split model; the same arguments give the same weights.

    Raises:
        ConfigurationError: unknown family or option, or options that do not fit the data; the message lists what exists.

    """
    if family not in _FAMILIES:
        raise ConfigurationError(f"unknown model {family!r}: choose one of {', '.join(_FAMILIES)}")
    options_type, build = _FAMILIES[family]
    try:
        parsed = options_type.model_validate(dict(options))
    except ValidationError as exc:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in exc.errors())
        raise ConfigurationError(f"model options of {family!r}: {mistakes}; options are {', '.join(options_type.model_fields)}") from exc
    name = f"{family}:{json.dumps(parsed.model_dump(), sort_keys=True)}:{list(data.input_shape)}:{data.num_classes}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build(parsed, data, name)
        except (ValueError, RuntimeError) as exc:
            raise ConfigurationError(f"model {family!r} cannot be built with these options: {exc}") from exc


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
