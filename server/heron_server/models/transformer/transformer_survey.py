"""Every place between the blocks of a transformer, built from its configuration on tensors without values: neither weights nor memory are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from heron_common.specification.data_specification import DataSpecification
from heron_server.models.split_model import SplitModel
from heron_server.models.transformer.pretrained import PREFIX, Pretrained, load_configuration, model_without_weights, read_as_configured
from heron_server.models.transformer.transformer import adapted, check_length, parse_options, split_at
from heron_server.models.transformer.transformer_families import family_of


def block_places(
    model: str, options: Mapping[str, Any], data: DataSpecification
) -> tuple[tuple[str, ...], tuple[str, ...], Callable[[str], SplitModel]]:
    """Return the numbers of blocks that devices can have, those that `head_blocks` rules out, and what makes front and head of one.

    The latter is to be called in one FakeTensorMode only. All that it returns shares the tensors of one model: a split model is good until the next.

    Raises:
        ConfigurationError: the model or an option is not one that works; the message says what would.

    """
    chosen = parse_options(model, options, data)
    reference = model.removeprefix(PREFIX)
    config = load_configuration(reference, data)
    with read_as_configured(reference):
        family = family_of(config)
        check_length(config, data, reference)
        numbers = range(config.num_hidden_layers)
    places = tuple(str(number) for number in numbers if chosen.head_blocks <= len(numbers) - number)
    made: list[Pretrained] = []

    def client_side(place: str) -> SplitModel:
        if not made:
            with torch.device("meta"):
                loaded = Pretrained(model_without_weights(reference, config, data).eval(), config, None)
                whole = adapted(loaded, chosen, seed=0)
            _give_up_values(whole)
            made.append(loaded)
        with warnings.catch_warnings():
            # torch warns of copies of tensors without values.
            warnings.simplefilter("ignore", UserWarning)
            return split_at(made[0], family, chosen=chosen, data=data, cut=int(place), model=model)

    return places, tuple(str(number) for number in numbers[len(places) :]), client_side


def _give_up_values(model: nn.Module) -> None:
    """Put tensors of the present mode in the place of those of the device meta, which would not compute with any others; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}

    def remade(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in made:
            empty = torch.empty(value.shape, dtype=value.dtype)
            made[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
        return made[id(value)]

    for module in model.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            tensors.update({name: remade(value) for name, value in tensors.items() if value is not None})
