"""The loss over blocks of the vocabulary equals the one over whole logits, gradients included, however the blocks fall."""

from __future__ import annotations

import pytest
import torch

from heron_common.specification.data_specification import IGNORED
from heron_server.models import vocabulary_loss
from heron_server.models.vocabulary_loss import most_likely, next_token_losses, token_losses


@pytest.fixture(params=[1, 7, 32, 33, 1000])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(vocabulary_loss, "BLOCK_ROWS", request.param)
    return int(request.param)


def tensors(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(11, 5, generator=generator, dtype=torch.float64)
    unembedding = torch.randn(33, 5, generator=generator, dtype=torch.float64)
    return hidden, unembedding, torch.randint(0, 33, (11,), generator=generator)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_losses_and_gradients_equal_those_of_whole_logits(block_rows: int, scale: float) -> None:
    hidden, unembedding, targets = tensors(scale)
    weights = torch.linspace(-1, 2, 11, dtype=torch.float64)
    found, expected = [], []
    for losses_of, kept in (
        (token_losses, found),
        (lambda h, w, t: torch.nn.functional.cross_entropy(h @ w.t(), t, reduction="none"), expected),
    ):
        h, w = hidden.clone().requires_grad_(), unembedding.clone().requires_grad_()
        losses = losses_of(h, w, targets)
        (losses * weights).sum().backward()
        kept += [losses.detach(), h.grad, w.grad]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_without_gradients_the_same_losses_come_out(block_rows: int) -> None:
    hidden, unembedding, targets = tensors()
    with torch.no_grad():
        assert torch.allclose(token_losses(hidden, unembedding, targets), token_losses(hidden.requires_grad_(), unembedding, targets))


def test_a_sequences_loss_is_the_mean_over_what_is_asked_for(block_rows: int) -> None:
    hidden, unembedding, _ = tensors()
    hidden = hidden[:10].reshape(2, 5, 5)
    labels = torch.tensor([[3, IGNORED, 4, IGNORED, IGNORED], [IGNORED] * 5])
    losses = next_token_losses((hidden, unembedding), labels)
    by_token = torch.nn.functional.cross_entropy(hidden[0, [0, 2]] @ unembedding.t(), torch.tensor([3, 4]))
    assert losses[0].item() == pytest.approx(by_token.item()) and losses[1].item() == 0.0


def test_the_most_likely_token_is_the_largest_logits(block_rows: int) -> None:
    hidden, unembedding, _ = tensors()
    hidden = hidden[:10].reshape(2, 5, 5)
    assert torch.equal(most_likely((hidden, unembedding)), (hidden @ unembedding.t()).argmax(-1))
