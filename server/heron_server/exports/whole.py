"""A split model as one module again, what it is called with, and random samples with the outputs that any form of it must give."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from heron_common.errors import ConfigurationError, ParityError
from heron_common.specification.data_specification import PADDING, Task
from heron_server.models.split_model import SplitModel, predict
from heron_server.models.token_input import TokenInput
from heron_server.models.transformer.transformer_families import longest_sequence
from heron_server.models.user.user_module import whole_state

TOLERANCE = 1e-4
"""Of outputs, relative to the largest: merged adapters, fused operations and another library's kernels differ by rounding."""

_ROWS = 4


class InTurn(nn.Module):
    """x -> outputs; the whole of a family that has no other: weights are named front.* and back.*."""

    def __init__(self, front: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.back = back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.back(self.front(x))
        return outputs


class TokensInTurn(nn.Module):
    """input_ids and attention_mask [B, T], padded on the right, as transformers has them -> logits [B, T, V] or outputs [B, num_classes]."""

    def __init__(self, front: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.back = back

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask > 0
        outputs: torch.Tensor = _dense(self.back(self.front(torch.where(mask, input_ids, PADDING)), mask))
        return outputs


class UsersOwn(nn.Module):
    """input_ids and attention_mask [B, T] as `TokensInTurn` takes them, for a user's own module of tokens, whose tensors it shares."""

    def __init__(self, module: nn.Module, token_input: TokenInput) -> None:
        super().__init__()
        self.module = module
        self._token_input = token_input

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._token_input.call(self.module, torch.where(attention_mask > 0, input_ids, PADDING))
        return outputs


@dataclass(frozen=True)
class Whole:
    """A whole model.

    Attributes:
        module: with the original's names; for models of transformers it is theirs, adapters and all.
        traceable: gives outputs alone for `inputs` by position, and shares its tensors with `module`.
        inputs: names of what it takes.
        shapes: of one sample, by input, None where a size may vary: sequences may be shorter or longer than those trained on.
        longest: most tokens of a sequence, None if nothing limits them.

    """

    module: nn.Module
    traceable: nn.Module
    _: KW_ONLY
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    longest: int | None = None


@dataclass(frozen=True)
class Samples:
    """Random inputs of a whole model, the outputs of the split one, and which of them count: behind the end of a sequence none does."""

    inputs: tuple[torch.Tensor, ...]
    expected: torch.Tensor
    counted: torch.Tensor | None


def whole_of(split: SplitModel, merges_adapters: bool) -> Whole:
    """Return the whole of a trained split model; adapters are merged in place, so what `split` shall say must be asked before.

    Raises:
        ConfigurationError: adapters of this kind cannot be merged.

    """
    if split.token_input is not None:
        assert split.whole is not None
        split.whole.load_state_dict(whole_state(split), strict=False)
        own = UsersOwn(split.whole.eval(), split.token_input).eval()
        return Whole(split.whole, own, inputs=("input_ids", "attention_mask"), shapes=(split.input_shape, split.input_shape))
    if split.tokens:
        module: Any = split.whole
        if merges_adapters and has_adapters(split):
            module = _merged(module)
        traceable = TokensInTurn(split.front, split.back)
        config = split.whole.config  # type: ignore[union-attr]
        return Whole(
            module.eval(),
            traceable.eval(),
            inputs=("input_ids", "attention_mask"),
            shapes=((None,), (None,)),
            longest=longest_sequence(config),
        )
    if split.whole is None:
        module = InTurn(split.front, split.back)
    else:
        # The back of a user's module trains on copies of its tensors.
        module = split.whole
        module.load_state_dict(whole_state(split), strict=False)
    return Whole(module.eval(), module, inputs=("x",), shapes=(split.input_shape,))


def has_named_outputs(whole: Whole) -> bool:
    """Whether the module gives an object that has logits, as those of transformers do."""
    return isinstance(whole.traceable, TokensInTurn)


def has_adapters(split: SplitModel) -> bool:
    """Whether the model is of transformers and wrapped by peft."""
    return split.tokens and hasattr(split.whole, "merge_and_unload")


def random_samples(split: SplitModel) -> Samples:
    """Return a few samples, some of them shorter than the longest, and what front and back make of them."""
    x, _ = split.random_batch(_ROWS, np.random.Generator(np.random.Philox(key=1)))
    samples = torch.from_numpy(x)
    mask = split.mask(samples)
    if split.token_input is not None:
        pad_token: int | None = split.token_input.pad_token
    elif mask is not None:
        pad_token = getattr(split.whole.config, "pad_token_id", None)  # type: ignore[union-attr]
        # A classifier of transformers looks for padding by its number, so none of the tokens may have it.
        samples = (
            torch.where(mask & (samples == pad_token), (samples + 1) % split.num_tokens, samples) if pad_token is not None else samples
        )
    split.front.eval()
    split.back.eval()
    with torch.no_grad():
        expected = _dense(predict(split.back, split.front(samples), mask))
    if mask is None:
        return Samples((samples,), expected, None)
    filled = torch.where(mask, samples, pad_token if isinstance(pad_token, int) else 0)
    return Samples((filled, mask.long()), expected, mask if split.task is Task.NEXT_TOKEN else None)


def check_difference(samples: Samples, found: torch.Tensor, what: str) -> float:
    """Return the largest difference of outputs, relative to the largest output.

    Raises:
        ParityError: the outputs have another form, or differ by more than rounding.

    """
    expected = samples.expected
    if found.shape != expected.shape:
        raise ParityError(
            f"{what} gives outputs of shape {list(found.shape)}, the run's model {list(expected.shape)}: it is not kept; report this"
        )
    if samples.counted is not None:
        expected, found = expected[samples.counted], found[samples.counted]
    error = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-3)
    if not error <= TOLERANCE:
        raise ParityError(
            f"{what} differs from the run's model by {error:.1e} of the largest output, where {TOLERANCE:g} is allowed: it is not kept; use another --format"
        )
    return error


def _dense(outputs: Any) -> torch.Tensor:
    """Return logits where a back gives hidden vectors and the unembedding, of which they are the product."""
    dense: torch.Tensor = outputs[0] @ outputs[1].t() if isinstance(outputs, tuple) else outputs
    return dense


def _merged(wrapped: Any) -> Any:
    try:
        return wrapped.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError) as exc:
        reason = str(exc).strip().splitlines()[0][:200]
        raise ConfigurationError(f"these adapters cannot be merged into their layers ({reason}): give --keep-adapters") from exc
