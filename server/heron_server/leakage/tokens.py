"""Attacks on the activations of text: how many of its tokens come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from heron_common.specification.data_specification import PADDING
from heron_server.leakage.decoder_network import DecoderNetwork, TrainingSettings, fit
from heron_server.leakage.defence import Defence
from heron_server.leakage.ridge import RidgeDecoder, best_ridge
from heron_server.leakage.rows import AttackRows
from heron_server.leakage.token_search import search
from heron_server.models.split_model import SplitModel

FREQUENT, FREQUENT_HERE = "most frequent token", "most frequent token at its place"
RIDGE, NETWORK, WHITE_BOX = "ridge decoder", "decoder network", "white-box"

MOST_NUMBERS = 1 << 24
"""Activations of the attacker's own texts, all together: 64 MiB, and twice that as float64."""

PLACES = TrainingSettings(steps=1000, batch=256)
"""A place of a text is a small row, and there are many."""

_CANDIDATES = 5
"""Of each decoder, that the white-box attack tries at a place."""

_ARRIVED, _HELD = 1 << 30, (1 << 30) + 1
_TEXTS_AT_ONCE = 16
_PLACES_AT_ONCE = 256


@dataclass(frozen=True)
class TokenLeakage:
    """What one cut of a model of text gives away.

    Attributes:
        cut, activations, own_rows: as of `Leakage`.
        guesses: share of tokens that a guess gets right that sees no activations.
        attacks: the same of each attack: its token recovery rate.
        reconstructions: token ids of the strongest, [attacked, T].

    """

    cut: str
    activations: tuple[int, ...]
    _: KW_ONLY
    own_rows: int
    guesses: dict[str, float]
    attacks: dict[str, float]
    reconstructions: torch.Tensor

    @property
    def strongest(self) -> str:
        """The attack with the highest rate."""
        return max(self.attacks, key=lambda name: self.attacks[name])

    @property
    def recovered(self) -> float:
        """The token recovery rate of the strongest attack."""
        return self.attacks[self.strongest]


@dataclass(frozen=True)
class _Places:
    """All places of some texts that hold a token: activations [n, D] and tokens [n]."""

    z: torch.Tensor
    tokens: torch.Tensor


def measure_tokens(
    model: SplitModel, rows: AttackRows, *, cut: str, defence: Defence, progress: Callable[[str], None] = lambda words: None
) -> TokenLeakage:
    """Attack the activations of one cut, place by place; the front is put into evaluation mode. The server knows where texts end."""
    front = _front(model, defence)
    sample = front(rows.attacked[:1])
    rows = rows.limited(sample.numel(), MOST_NUMBERS)
    arrived, mask = defence.sent(_activations(front, rows.attacked), _ARRIVED), rows.attacked >= 0
    candidates = _candidates(model, front, rows, arrived=arrived, defence=defence, progress=progress)
    progress(WHITE_BOX)
    found = {name: some[:, :, 0] for name, some in candidates.items()}
    start = found[NETWORK]
    found[WHITE_BOX] = search(front, arrived, start=start, candidates=torch.cat(list(candidates.values()), 2), mask=mask)
    attacks = {name: _rate(guess, rows.attacked) for name, guess in found.items()}
    strongest = max(attacks, key=lambda name: attacks[name])
    return TokenLeakage(
        cut,
        tuple(sample.shape[1:]),
        own_rows=rows.num_known,
        guesses={name: _rate(guess, rows.attacked) for name, guess in _guesses(rows).items()},
        attacks=attacks,
        reconstructions=found[strongest].masked_fill(~mask, PADDING),
    )


def _front(model: SplitModel, defence: Defence) -> Callable[[torch.Tensor], torch.Tensor]:
    module = model.front.eval()

    def front(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return defence.clipped(module(x))

    return front


def _activations(front: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([front(piece) for piece in torch.split(x, _TEXTS_AT_ONCE)])


def _rate(guess: torch.Tensor, x: torch.Tensor) -> float:
    mask = x >= 0
    return float((guess == x)[mask].double().mean())


def _guesses(rows: AttackRows) -> dict[str, torch.Tensor]:
    """Return the most frequent token of the attacker's texts, and that at each place; where none of them is so long, the former."""
    common = rows.own[rows.own >= 0].mode().values
    columns = [column[column >= 0] for column in rows.own.T]
    here = torch.stack([column.mode().values if len(column) else common for column in columns])
    return {FREQUENT: common.expand_as(rows.attacked), FREQUENT_HERE: here.expand_as(rows.attacked)}


def _candidates(
    model: SplitModel,
    front: Callable[[torch.Tensor], torch.Tensor],
    rows: AttackRows,
    *,
    arrived: torch.Tensor,
    defence: Defence,
    progress: Callable[[str], None],
) -> dict[str, torch.Tensor]:
    """Return of each decoder its likeliest tokens at each place, best first, [n, T, candidates]."""
    z = _activations(front, rows.own)
    own = _places(z, rows.own)
    held = _places(defence.sent(_activations(front, rows.held), _HELD), rows.held)
    progress(RIDGE)
    ridge = _ridge(own, held, token_table(model.front, model.num_tokens))
    progress(NETWORK)
    network = _network(z, rows.own, held=held, defence=defence)
    flat = arrived.flatten(0, 1)
    return {name: _in_pieces(decode, flat).reshape(*arrived.shape[:2], -1) for name, decode in ((RIDGE, ridge), (NETWORK, network))}


def _places(z: torch.Tensor, x: torch.Tensor) -> _Places:
    return _Places(z[x >= 0].flatten(1), x[x >= 0])


def _in_pieces(decode: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([decode(piece.flatten(1)) for piece in torch.split(z, _PLACES_AT_ONCE)])


def token_table(front: nn.Module, num_tokens: int) -> torch.Tensor | None:
    """Return a front's vectors of tokens, [num_tokens, E]: the first table that has one for each; None if it has no such table."""
    tables = (module.weight for module in front.modules() if isinstance(module, nn.Embedding) and module.num_embeddings >= num_tokens)
    found = next(tables, None)
    return None if found is None else found.detach()[:num_tokens].float()


def _ridge(own: _Places, held: _Places, table: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Decode to the front's own vectors of tokens, so that tokens are found that the attacker's texts never had; without a table to one number for each."""
    known: torch.Tensor = torch.unique(own.tokens)
    vectors = table if table is not None else _numbered(known)
    spread = max(float(vectors.std()), 1e-12)
    decoder: RidgeDecoder = best_ridge(own.z, vectors[own.tokens] / spread, held_z=held.z, held_x=_rows_of(vectors, held.tokens) / spread)
    names = torch.arange(len(vectors)) if table is not None else known
    targets = (vectors if table is not None else vectors[known]) / spread
    lengths = targets.square().sum(1)

    def decode(z: torch.Tensor) -> torch.Tensor:
        guess = decoder(z)
        return names[(2 * guess @ targets.T - lengths).topk(min(_CANDIDATES, len(names)), 1).indices]

    return decode


def _numbered(known: torch.Tensor) -> torch.Tensor:
    vectors = torch.zeros(int(known[-1]) + 1, len(known))
    vectors[known, torch.arange(len(known))] = 1
    return vectors


def _rows_of(vectors: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the vectors of tokens; zeros for those beyond the last."""
    inside = tokens < len(vectors)
    return vectors[tokens.where(inside, torch.zeros_like(tokens))] * inside[:, None]


def _network(z: torch.Tensor, x: torch.Tensor, *, held: _Places, defence: Defence) -> Callable[[torch.Tensor], torch.Tensor]:
    """Decode to the tokens that the attacker's texts have."""
    own = _places(z, x)
    known, classes = torch.unique(own.tokens, return_inverse=True)
    seen = torch.isin(held.tokens, known)
    # Where no held-out token was ever seen, the loss on the attacker's own has to do.
    looked = _Places(held.z[seen], held.tokens[seen]) if bool(seen.any()) else own
    centre, spread = own.z.mean(0), max(float(own.z.std()), 1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DecoderNetwork(own.z.shape[1], len(known))
    fit(
        network,
        lambda draw: (_places(defence.sent(z, draw), x).z - centre) / spread,
        classes,
        held=((looked.z - centre) / spread, torch.searchsorted(known, looked.tokens)),
        loss=nn.functional.cross_entropy,
        redraws=defence.is_random,
        settings=PLACES,
    )
    return lambda rows: known[network((rows - centre) / spread).topk(min(_CANDIDATES, len(known)), 1).indices]
