"""Transformers cut between blocks: front = embeddings and first blocks, back = the other blocks and the model's own last layers."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification, Task
from heron_server.models.base import BaseStorage, round_to_storage
from heron_server.models.split_model import SplitModel, predict, sample_losses_of
from heron_server.models.transformer.adapters import Adapter, add_adapter
from heron_server.models.transformer.pretrained import PREFIX, Pretrained, load_pretrained, read_as_configured, set_frozen
from heron_server.models.transformer.transformer_families import (
    Blocks,
    Classifier,
    Embedding,
    Family,
    PooledClassifier,
    family_of,
    longest_sequence,
    part,
)

log = logging.getLogger(__name__)

CUT_TOLERANCE = 1e-4
"""Of the whole model's outputs, relative to the largest: the same operations in the same order differ by rounding at most."""


class Weights(StrEnum):
    """PRETRAINED: as the folder or hub has them. RANDOM: drawn anew, for tests of shapes and for training from scratch."""

    PRETRAINED = "pretrained"
    RANDOM = "random"


class BackTraining(StrEnum):
    """What the server trains of its blocks: their adapters, or all of them."""

    ADAPTER = "adapter"
    FULL = "full"


class TransformerOptions(BaseModel):
    """Options of models that transformers knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Weights = Field(Weights.PRETRAINED, description="pretrained or random")
    adapter: Adapter = Field(Adapter.LORA, description="lora, ia3, vera, or none to train the front's blocks whole")
    rank: int = Field(8, ge=1, description="rank of lora and vera")
    alpha: int = Field(16, ge=1, description="lora's product is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        (), description="layers that get an adapter, by name, like c_attn or q_proj,v_proj; peft's choice by default"
    )
    head_blocks: int = Field(0, ge=0, description="copies of the server's first blocks in the auxiliary head, before its last layers")
    back: BackTraining = Field(BackTraining.ADAPTER, description="what the server trains of its blocks: adapter or full")
    base: BaseStorage = Field(BaseStorage.FLOAT32, description="how devices store frozen weights: float32, bfloat16 or int8")


class Front(nn.Module):
    """x [B, T] -> z [B, T, D]."""

    def __init__(self, embedding: Embedding, blocks: Blocks, num_tokens: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = blocks
        self.num_tokens = num_tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.blocks(self.embedding(x), x >= 0)
        return z


class Tail(nn.Module):
    """z [B, T, D] and mask [B, T] -> what the loss takes: hidden and unembedding for next tokens, outputs [B, num_classes] otherwise."""

    def __init__(self, blocks: Blocks | None, norm: nn.Module | None, last: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.last = last

    def forward(self, z: torch.Tensor, mask: torch.Tensor) -> Any:
        hidden = z if self.blocks is None else self.blocks(z, mask)
        if self.norm is not None:
            hidden = self.norm(hidden)
        if isinstance(self.last, nn.Embedding | nn.Linear):
            return hidden, self.last.weight
        return self.last(hidden, mask)


def build_transformer(model: str, options: Mapping[str, Any], *, data: DataSpecification, seed: int, cut: str | None) -> SplitModel:
    """Build a model of transformers, cut behind `cut` blocks; the caller seeds torch's global generator.

    Raises:
        ConfigurationError: the model, an option or the cut is not one that works; the message says what would.

    """
    chosen = parse_options(model, options, data)
    reference = model.removeprefix(PREFIX)
    loaded = load_pretrained(reference, data, chosen.weights is Weights.RANDOM)
    with read_as_configured(reference):
        family = family_of(loaded.config)
        check_length(loaded.config, data, reference)
        front_blocks = _cut_place(cut, loaded.config.num_hidden_layers, chosen.head_blocks)
        whole = adapted(loaded, chosen, seed)
        split = split_at(loaded, family, chosen=chosen, data=data, cut=front_blocks, model=model)
        rounding = _round(split, chosen.base)
        split = dataclasses.replace(split, whole=whole, base_error=rounding)
        _check_cut(split, loaded.model, data)
    return split


def adapted(loaded: Pretrained, chosen: TransformerOptions, seed: int) -> Any:
    """Put the adapters that were chosen into a model, and return it as peft wraps it."""
    if chosen.adapter is Adapter.NONE:
        return loaded.model
    # peft puts its layers into the model itself.
    return add_adapter(loaded.model, chosen.adapter, rank=chosen.rank, alpha=chosen.alpha, targets=chosen.targets, seed=seed)


def parse_options(model: str, options: Mapping[str, Any], data: DataSpecification) -> TransformerOptions:
    """Read the options of a model of these data.

    Raises:
        ConfigurationError: an option is unknown or wrong, or the data are no text.

    """
    if not data.tokens:
        raise ConfigurationError(
            f"model {model!r} reads text, but the data specification {data.name!r} has samples of numbers: "
            "use --data-spec text:LENGTH:next-token, text:LENGTH:CLASS,CLASS or text:LENGTH:regression:K"
        )
    values = dict(options)
    if isinstance(values.get("targets"), str):
        values["targets"] = [values["targets"]]
    try:
        return TransformerOptions.model_validate(values)
    except ValidationError as exc:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in exc.errors())
        raise ConfigurationError(f"model options: {mistakes}; options are {', '.join(TransformerOptions.model_fields)}") from exc


def check_length(config: Any, data: DataSpecification, reference: str) -> None:
    """Refuse sequences that are longer than a model of this configuration reads; raises ConfigurationError."""
    (length,) = data.input_shape
    most = longest_sequence(config)
    if most is not None and length > most:
        fitting = ",".join(str(shorter) for shorter in data.lengths if shorter <= most) or str(most)
        raise ConfigurationError(
            f"{reference!r} reads at most {most} tokens, but the data specification asks for {length}: use a shorter length, like text:{fitting}:..."
        )


def _cut_place(cut: str | None, num_blocks: int, head_blocks: int) -> int:
    text = cut if cut is not None else str(max(1, num_blocks // 4))
    places = f"a number of blocks from 0 to {num_blocks - 1}"
    if not text.isdecimal() or int(text) >= num_blocks:
        raise ConfigurationError(
            f"--cut of this model is {places}, not {text!r}: what stands behind it is the server's, and must not be empty"
        )
    if head_blocks > num_blocks - int(text):
        raise ConfigurationError(f"head_blocks {head_blocks} are more than the {num_blocks - int(text)} blocks behind the cut: use fewer")
    return int(text)


def split_at(
    loaded: Pretrained, family: Family, *, chosen: TransformerOptions, data: DataSpecification, cut: int, model: str
) -> SplitModel:
    """Return the three parts of a model that has its adapters; they share its tensors, and what requires a gradient of these is set anew."""
    whole = loaded.model
    base = getattr(whole, family.base)
    blocks = list(part(base, family.blocks))
    pad_token = loaded.config.pad_token_id if isinstance(loaded.config.pad_token_id, int) else 0
    norm = part(base, family.norm) if family.norm else None
    front = Front(Embedding(base, family, pad_token), Blocks(blocks[:cut], base, family), loaded.config.vocab_size)
    asks_tokens = data.task is Task.NEXT_TOKEN
    back_last: nn.Module = whole.get_output_embeddings() if asks_tokens else Classifier(whole, family)
    back = Tail(Blocks(blocks[cut:], base, family), norm, back_last)
    width = loaded.config.hidden_size
    head_last: nn.Module = back_last if asks_tokens else PooledClassifier(width, data.num_classes)
    copied = (
        Blocks([copy.deepcopy(block) for block in blocks[cut : cut + chosen.head_blocks]], base, family) if chosen.head_blocks else None
    )
    head = Tail(copied, copy.deepcopy(norm), head_last)
    _freeze(front, head, back=back, chosen=chosen)
    name = f"{model}:{json.dumps(chosen.model_dump(mode='json'), sort_keys=True)}:{cut}:{data.task.value}:{list(data.input_shape)}:{data.num_classes}"
    return SplitModel(
        # Programs hold no weights, but their shapes are the configuration's.
        f"{name}:{loaded.config.to_json_string(use_diff=False)}",
        front,
        auxiliary_head=head,
        back=back.eval(),
        sample_losses=sample_losses_of(data.task),
        input_shape=data.input_shape,
        num_classes=loaded.config.vocab_size if asks_tokens else data.num_classes,
        task=data.task,
        tokens=True,
        base_storage=chosen.base,
        tokenizer=loaded.tokenizer,
        lengths=data.lengths,
    )


def _round(split: SplitModel, storage: BaseStorage) -> float:
    """Round the frozen weights to what devices store and return how far that moves activations at the cut, relative to the largest; told in log and summary."""
    if storage is BaseStorage.FLOAT32:
        return 0.0
    front = split.front
    tokens = np.random.Generator(np.random.Philox(key=0)).integers(0, split.num_tokens, (2, *split.input_shape))
    x = torch.from_numpy(tokens)
    with torch.no_grad():
        before = front(x)
        round_to_storage((front, split.auxiliary_head), storage)
        error = float((front(x) - before).abs().max() / before.abs().max())
    log.info("frozen weights rounded", extra={"storage": storage.value, "activation_error": error})
    return error


def _freeze(front: Front, head: Tail, *, back: Tail, chosen: TransformerOptions) -> None:
    """Freeze what is not trained: embeddings always, the unembedding too, which may be the same tensor; blocks but for their adapters, if they have any."""
    adapted = chosen.adapter is not Adapter.NONE
    marks = ("lora_", "ia3_", "vera_lambda")

    def in_block(name: str) -> bool:
        return any(mark in name for mark in marks) if adapted else True

    def trained(name: str, whole_blocks: bool) -> bool:
        if name.startswith("blocks."):
            return in_block(name) or whole_blocks
        return not name.startswith("embedding.")

    unembedding = {id(p) for tail in (head, back) if isinstance(tail.last, nn.Embedding | nn.Linear) for p in tail.last.parameters()}
    for module, whole_blocks in ((front, False), (head, False), (back, chosen.back is BackTraining.FULL)):
        set_frozen(module, lambda name, whole_blocks=whole_blocks: trained(name, whole_blocks))  # type: ignore[misc]
        for parameter in module.parameters():
            if id(parameter) in unembedding:
                parameter.requires_grad_(False)


def _check_cut(split: SplitModel, whole: Any, data: DataSpecification) -> None:
    """Compare front and back with the whole model on random sequences, some of them padded.

    Raises:
        ConfigurationError: they differ.

    """
    x, _ = split.random_batch(3, np.random.Generator(np.random.Philox(key=0)))
    samples = torch.from_numpy(x)
    mask = samples >= 0
    pad_token = whole.config.pad_token_id if isinstance(whole.config.pad_token_id, int) else 0
    # A classifier of transformers looks for padding by its number, so none of the tokens may have it.
    samples = torch.where(mask & (samples == pad_token), (samples + 1) % split.num_tokens, samples)
    with torch.no_grad():
        expected = whole(input_ids=torch.where(mask, samples, pad_token), attention_mask=mask.long()).logits
        outputs = predict(split.back, split.front(samples), mask)
    if data.task is Task.NEXT_TOKEN:
        outputs, expected = (outputs[0] @ outputs[1].t())[mask], expected[mask]
    error = float((outputs - expected).abs().max()) / max(float(expected.abs().max()), 1e-3)
    if not error <= CUT_TOLERANCE:
        raise ConfigurationError(
            f"the cut model differs from the whole one by {error:.1e} of its largest output (limit {CUT_TOLERANCE:g}): its blocks are called in a way unknown here"
        )
