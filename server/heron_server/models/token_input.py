"""How a user's own module takes tokens: ids with padding filled in, and a mask if its forward has an argument for one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from heron_common.data.tokeniser import MAX_TOKENIZER_BYTES
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import PADDING

OPTIONS = {"tokenizer", "vocabulary_size", "pad_token"}
"""Options of a model of tokens that are not its callable's, though a callable may take `vocabulary_size` too."""

_MASK_ARGUMENTS = ("mask", "attention_mask")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a run's samples consist of.

    Attributes:
        size: ids lie in [0, size).
        pad_token: what stands behind the end of a shorter sequence.
        tokenizer: JSON of what makes tokens of text; None if samples are ids already.

    """

    size: int
    pad_token: int
    tokenizer: bytes | None


@dataclass(frozen=True)
class TokenInput:
    """What a user's module is called with.

    Attributes:
        length: tokens of every sequence.
        vocabulary_size: ids lie in [0, vocabulary_size).
        pad_token: stands where a sequence is shorter.
        mask_argument: `mask`, which is true where tokens are, or `attention_mask`, 1 there and 0 elsewhere, as transformers has it; None for a forward
            without either.

    """

    length: int
    vocabulary_size: int
    _: KW_ONLY
    pad_token: int
    mask_argument: str | None

    def mask_of(self, mask: torch.Tensor) -> torch.Tensor:
        """Return a bool mask in the form that the module takes."""
        return mask.to(torch.int64) if self.mask_argument == "attention_mask" else mask

    def call(self, module: nn.Module, x: torch.Tensor) -> Any:
        """Return the module's outputs for x [B, T] with PADDING behind the ends."""
        mask = x >= 0
        ids = torch.where(mask, x, self.pad_token)
        return module(ids) if self.mask_argument is None else module(ids, **{self.mask_argument: self.mask_of(mask)})

    def example(self, rows: int) -> torch.Tensor:
        """Return random sequences, some of them shorter; the least and the largest token are among them."""
        generator = np.random.Generator(np.random.Philox(key=rows))
        x = generator.integers(0, self.vocabulary_size, (rows, self.length), np.int64)
        x[0, 0], x[-1, 0] = 0, self.vocabulary_size - 1
        x[np.arange(self.length) >= generator.integers(max(1, self.length // 2), self.length + 1, rows)[:, None]] = PADDING
        return torch.from_numpy(x)


def vocabulary_of(family: str, options: Mapping[str, Any]) -> Vocabulary:
    """Read what the options say of tokens.

    Raises:
        ConfigurationError: they do not say how many there are, or the tokenizer cannot be used; the sentence says what to add.

    """
    tokenizer = _read_tokenizer(str(options["tokenizer"])) if "tokenizer" in options else None
    counted = _count(tokenizer) if tokenizer is not None else None
    size = _number(options, "vocabulary_size", counted)
    if size is None:
        raise ConfigurationError(
            f"model {family!r} takes tokens, but nothing says how many there are: add tokenizer=FILE (a tokenizer.json) to --model-options, "
            "or vocabulary_size=N where clients' data are token ids"
        )
    if size < 1 or (counted is not None and counted > size):
        raise ConfigurationError(f"vocabulary_size={size} is less than the {counted or 1} tokens that there are: leave it out or raise it")
    pad_token = _number(options, "pad_token", 0)
    assert pad_token is not None
    if not 0 <= pad_token < size:
        raise ConfigurationError(f"pad_token={pad_token} is not one of the {size} tokens: choose one from 0 to {size - 1}")
    return Vocabulary(size, pad_token, tokenizer)


def mask_argument_of(module: nn.Module) -> str | None:
    """Return the name of the argument of forward that takes the mask of tokens, None if it has none."""
    parameters = list(inspect.signature(module.forward).parameters)[1:]
    return next((name for name in _MASK_ARGUMENTS if name in parameters), None)


def _read_tokenizer(path: str) -> bytes:
    try:
        document = Path(path).read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"tokenizer={path} cannot be read ({exc.strerror or exc}): give the path of a tokenizer.json") from exc
    if len(document) > MAX_TOKENIZER_BYTES:
        raise ConfigurationError(
            f"tokenizer={path} has {len(document)} bytes, and a client takes no more than {MAX_TOKENIZER_BYTES}: give a tokenizer.json"
        )
    return document


def _count(document: bytes) -> int:
    from tokenizers import Tokenizer

    try:
        size: int = Tokenizer.from_buffer(document).get_vocab_size(with_added_tokens=True)
    # The library raises plain exceptions.
    except Exception as exc:
        raise ConfigurationError(
            f"tokenizer= names no tokenizer ({exc}): give a tokenizer.json, as the library tokenizers saves it"
        ) from exc
    return size


def _number(options: Mapping[str, Any], name: str, default: int | None) -> int | None:
    if name not in options:
        return default
    try:
        return int(options[name])
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name} was expected to be a whole number, not {options[name]!r}") from None
