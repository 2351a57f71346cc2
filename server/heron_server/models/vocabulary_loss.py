"""Next-token loss by blocks of the vocabulary: the logits of a batch, which may be larger than the model, are never whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from heron_common.specification.data_specification import IGNORED

BLOCK_ROWS = 1024
"""Rows of the unembedding at a time: a block of 768 columns is 3.1 MB. Half as many take twice as many operations, for each of which a session keeps 6 kB."""


Outputs = tuple[torch.Tensor, torch.Tensor] | torch.Tensor
"""h [B, T, D] and the unembedding W [V, D], or logits [B, T, V] where a model has no unembedding that could be told apart."""


def next_token_losses(outputs: Outputs, labels: torch.Tensor) -> torch.Tensor:
    """Return each sequence's mean of -log softmax(W h)[label] over its places that are not IGNORED, [B]; zero for a sequence without any.

    Args:
        outputs: see there.
        labels: [B, T] int64.

    """
    counted = labels != IGNORED
    targets = torch.where(counted, labels, 0)
    if isinstance(outputs, torch.Tensor):
        losses = nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").reshape(labels.shape)
    else:
        losses = token_losses(outputs[0].flatten(0, 1), outputs[1], targets.flatten()).reshape(labels.shape)
    weights = counted.to(losses.dtype)
    return (losses * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def token_losses(hidden: torch.Tensor, unembedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return log sum_v exp(W_v h_n) - W_target h_n, [N], for h [N, D]; its gradient is computed by blocks too."""
    if torch.is_grad_enabled() and (hidden.requires_grad or unembedding.requires_grad):
        losses: torch.Tensor = _TokenLosses.apply(hidden, unembedding, targets)  # type: ignore[no-untyped-call]
        return losses
    return _log_sum_exp(hidden, unembedding) - _target_logits(hidden, unembedding, targets)


def most_likely(outputs: Outputs) -> torch.Tensor:
    """Return the token with the largest logit at each place, [B, T]."""
    if isinstance(outputs, torch.Tensor):
        return outputs.argmax(-1)
    hidden, unembedding = outputs
    flat = hidden.flatten(0, 1)
    best, token = flat.new_full((len(flat),), -torch.inf), torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for start in _starts(unembedding):
        value, index = (flat @ unembedding[start : start + BLOCK_ROWS].t()).max(1)
        token = torch.where(value > best, index + start, token)
        best = torch.maximum(value, best)
    return token.reshape(hidden.shape[:-1])


def _starts(unembedding: torch.Tensor) -> range:
    return range(0, len(unembedding), BLOCK_ROWS)


def _block(unembedding: torch.Tensor, start: int, after: torch.Tensor) -> torch.Tensor:
    """Return BLOCK_ROWS rows from `start` on, or what is left, taken once `after` is known.

    A runtime that orders operations by what needs them, as ONNX Runtime does, would else take all blocks first and keep every copy. Nothing exceeds
    infinity, so the rows do not depend on the value of `after`.
    """
    rows = torch.arange(start, min(start + BLOCK_ROWS, len(unembedding)), device=unembedding.device)
    return nn.functional.embedding(rows + (after.flatten()[:1] > torch.inf).to(torch.int64), unembedding)


def _log_sum_exp(hidden: torch.Tensor, unembedding: torch.Tensor) -> torch.Tensor:
    """Return log sum_v exp(W_v h_n), [N]; each block is reduced to a number a row before the next one is taken."""
    parts = [hidden[:, 0]]
    for start in _starts(unembedding):
        parts.append(torch.logsumexp(hidden @ _block(unembedding, start, parts[-1]).t(), 1))
    return torch.logsumexp(torch.stack(parts[1:], 1), 1)


def _log_sum_exp_and_mean(hidden: torch.Tensor, unembedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log sum_v exp(W_v h_n), [N], and sum_v p_nv W_v, [N, D], in one pass: what is summed so far is rescaled by each block."""
    log_sum, mean = torch.full_like(hidden[:, 0], -torch.inf), torch.zeros_like(hidden)
    for start in _starts(unembedding):
        rows = _block(unembedding, start, mean)
        logits = hidden @ rows.t()
        of_block = torch.logsumexp(logits, 1)
        together = torch.logaddexp(log_sum, of_block)
        mean = mean * torch.exp(log_sum - together)[:, None] + torch.exp(logits - together[:, None]) @ rows
        log_sum = together
    return log_sum, mean


def _target_logits(hidden: torch.Tensor, unembedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (hidden * nn.functional.embedding(targets, unembedding)).sum(1)


class _TokenLosses(torch.autograd.Function):
    """d/dh = sum_v p_v W_v - W_target; d/dW_v = sum_n (p_nv - [v = target_n]) h_n."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, unembedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_sum, mean = _log_sum_exp_and_mean(hidden, unembedding)
        ctx.save_for_backward(hidden, unembedding, targets, log_sum, mean)
        return log_sum - _target_logits(hidden, unembedding, targets)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, unembedding, targets, log_sum, mean = ctx.saved_tensors
        for_hidden, for_unembedding = None, None
        if ctx.needs_input_grad[0]:
            for_hidden = (mean - nn.functional.embedding(targets, unembedding)) * gradient[:, None]
        if ctx.needs_input_grad[1]:
            weighted = hidden * gradient[:, None]
            blocks = (unembedding[start : start + BLOCK_ROWS] for start in _starts(unembedding))
            by_block = [torch.exp(hidden @ rows.t() - log_sum[:, None]).t() @ weighted for rows in blocks]
            at_targets = torch.zeros_like(unembedding).scatter_add(0, targets[:, None].expand(-1, hidden.shape[1]), weighted)
            for_unembedding = torch.cat(by_block) - at_targets
        return for_hidden, for_unembedding, None
