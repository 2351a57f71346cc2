"""White-box attack on text: at each place the token whose activations, behind the same front, are nearest to those that arrived."""

from __future__ import annotations

from collections.abc import Callable

import torch

_SWEEPS = 2
"""A front that looks ahead sees in the first sweep guesses where in the second it sees what was found."""

_EXACT = 1e-9
"""Share of a place's squared length by which it may differ and still be taken as found."""

_TEXTS_AT_ONCE = 64


def search(
    front: Callable[[torch.Tensor], torch.Tensor],
    arrived: torch.Tensor,
    *,
    start: torch.Tensor,
    candidates: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return tokens [n, T]: from first guesses `start` place by place, left to right, of `candidates` [n, T, k] the one with the nearest activations there.

    Behind a front that never looks ahead each place follows from those before it, so a right beginning leads to a right text. Of `arrived` [n, T, ...]
    the places that `mask` [n, T] leaves out hold no token.
    """
    found = start.masked_fill(~mask, -1)
    for _ in range(_SWEEPS):
        before = found.clone()
        for place in range(found.shape[1]):
            away = _distances(front, found, arrived, place)
            open_rows = (mask[:, place] & (away > _EXACT)).nonzero().flatten()
            # No rows would be split into one piece of none.
            for rows in torch.split(open_rows, max(1, _TEXTS_AT_ONCE // candidates.shape[2])) if len(open_rows) else ():
                found[rows, place] = _nearest(front, found[rows], arrived[rows], place=place, candidates=candidates[rows, place])
        if bool((found == before).all()):
            break
    return found


def _distances(front: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, arrived: torch.Tensor, place: int) -> torch.Tensor:
    """Return |front(x) - arrived|^2 / |arrived|^2 at a place, [n]."""
    wanted = arrived[:, place].flatten(1)
    here = torch.cat([front(piece)[:, place] for piece in torch.split(x, _TEXTS_AT_ONCE)]).flatten(1)
    return (here - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=1e-12)


def _nearest(
    front: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, arrived: torch.Tensor, *, place: int, candidates: torch.Tensor
) -> torch.Tensor:
    """Return the best token of [n, k] candidates and the one that stands there, [n]."""
    tried = torch.cat([x[:, place, None], candidates], 1)
    count = tried.shape[1]
    texts = x.repeat_interleave(count, 0)
    texts[:, place] = tried.flatten()
    away = _distances(front, texts, arrived.repeat_interleave(count, 0), place).reshape(-1, count)
    best: torch.Tensor = tried.gather(1, away.argmin(1, keepdim=True)).flatten()
    return best
