"""What differs between transformer architectures: where their parts are, how a block is called, how a classifier reads a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_server.models.recomputation import Chain

MASKED = -1e9
"""Added to the attention logits of what must not be seen; its exponential is zero in float32."""


@dataclass(frozen=True)
class Family:
    """Where an architecture of transformers keeps its parts.

    Attributes:
        base: attribute of the whole model that holds embeddings and blocks.
        blocks: path of the list of blocks within the base.
        norm: attribute of the last normalisation within the base, empty if blocks end in one of their own.
        embeddings: attributes of the base that turn tokens into vectors.
        causal: whether a place sees only what stands before it.
        rotary: whether blocks are told positions as rotations.

    """

    base: str
    blocks: str
    _: KW_ONLY
    norm: str
    embeddings: tuple[str, ...]
    causal: bool
    rotary: bool


_DECODER = Family("model", "layers", norm="norm", embeddings=("embed_tokens", "rotary_emb"), causal=True, rotary=True)

FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer", "h", norm="ln_f", embeddings=("wte", "wpe"), causal=True, rotary=False),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "bert": Family("bert", "encoder.layer", norm="", embeddings=("embeddings",), causal=False, rotary=False),
    "roberta": Family("roberta", "encoder.layer", norm="", embeddings=("embeddings",), causal=False, rotary=False),
}


def family_of(config: Any) -> Family:
    """Return the family of a configuration.

    Raises:
        ConfigurationError: it is none of those that can be cut.

    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ConfigurationError(
            f"architecture {config.model_type!r} is not one that is cut by blocks ({', '.join(FAMILIES)}): "
            "use one of them, or --model python:MODULE:CALLABLE for a module of your own"
        )
    return family


def is_token(config: Any, token: object) -> bool:
    """Return whether something is one of a configuration's tokens; some have -1 for none."""
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < config.vocab_size


def default_pad_token(config: Any) -> int | None:
    """Return the padding token of a configuration that has none; a model that counts its places from there on cannot do without."""
    return 1 if config.model_type == "roberta" else None


def longest_sequence(config: Any) -> int | None:
    """Return how many tokens a model of this configuration reads at most as blocks are called here, None if nothing limits them."""
    limits = []
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        # Its places are counted from behind the number of the padding token on.
        limits.append(positions - config.pad_token_id - 1 if config.model_type == "roberta" else positions)
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        limits.append(window)
    return min(limits, default=None)


def part(module: nn.Module, path: str) -> Any:
    """Return a submodule by its dotted path."""
    return module.get_submodule(path)


class Embedding(nn.Module):
    """Token ids [B, T], PADDING where a sequence is shorter -> vectors [B, T, D]."""

    def __init__(self, base: nn.Module, family: Family, pad_token: int) -> None:
        super().__init__()
        for name in family.embeddings:
            if name != "rotary_emb":
                self.add_module(name, part(base, name))
        self._family = family
        self._pad_token = pad_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = torch.where(x < 0, self._pad_token, x)
        vectors: torch.Tensor
        if self._family.embeddings == ("embeddings",):
            vectors = self.embeddings(ids)  # type: ignore[operator]
        elif "wpe" in self._family.embeddings:
            vectors = self.wte(ids) + self.wpe(torch.arange(x.shape[1], device=x.device))  # type: ignore[operator]
        else:
            vectors = self.embed_tokens(ids)  # type: ignore[operator]
        return vectors


class Blocks(Chain):
    """Hidden [B, T, D] and the mask of tokens [B, T] -> hidden, through consecutive blocks."""

    def __init__(self, blocks: list[nn.Module], base: nn.Module, family: Family) -> None:
        super().__init__(blocks)
        if family.rotary:
            self.rotary = part(base, "rotary_emb")
        self._family = family

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen = _attention_mask(mask, self._family.causal)
        arguments: dict[str, Any] = {"attention_mask": seen}
        if self._family.rotary:
            positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
            arguments |= {"position_ids": positions, "position_embeddings": self.rotary(hidden, position_ids=positions)}
        for layer in self.layers:
            result = layer(hidden, **arguments)
            hidden = result[0] if isinstance(result, tuple) else result
        return hidden


def _attention_mask(mask: torch.Tensor, causal: bool) -> torch.Tensor:
    """Return what is added to attention logits, [B, 1, T, T], or [B, 1, 1, T] where all may see all: zero, or MASKED."""
    hidden = (~mask).to(torch.float32)[:, None, None, :] * MASKED
    if not causal:
        return hidden
    length = mask.shape[1]
    later = torch.triu(torch.full((length, length), MASKED, device=mask.device), 1)
    # The smaller of the two: twice MASKED would be as good, but the sum of an all-masked row must stay what the whole model has.
    return torch.minimum(hidden, later[None, None])


Classify = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden [B, T, D] behind the last normalisation, mask [B, T]) -> outputs [B, num_classes]."""


class Classifier(nn.Module):
    """The classifier of a whole model: of an encoder on its first vector, of a decoder on the vector of the last token."""

    def __init__(self, whole: Any, family: Family) -> None:
        super().__init__()
        self._last = family.causal
        if family.causal:
            self.score = whole.score
        else:
            pooler = getattr(getattr(whole, family.base), "pooler", None)
            if pooler is not None:
                self.pooler = pooler
            self.classifier = whole.classifier

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor
        if self._last:
            place = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
            outputs = self.score((hidden * place.to(hidden.dtype)[..., None]).sum(1))
        else:
            outputs = self.classifier(self.pooler(hidden) if hasattr(self, "pooler") else hidden)
        return outputs


class PooledClassifier(nn.Module):
    """The mean over tokens, then a linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.to(hidden.dtype)[..., None]
        outputs: torch.Tensor = self.linear((hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0))
        return outputs
