"""What the attacks on each cut came to, in sentences and tables of 96 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

from heron_common.terminal.foreign_text import printable

NEARLY_ALL = 0.95
"""Share from which on the activations are the samples, to this attacker."""

ATTACKER = "The attacker knows the front and the defence, and has other samples of the same source, as a server has that knows public data like its clients'."

LIMITS = (
    "An attack shows what can be had, not what cannot: another one may get more. It was given a single upload of each sample. Labels are uploaded "
    "too, as they are."
)

LINE_WIDTH = 96

_NAME_WIDTH = 30


def introduction_sentences(document: dict[str, Any]) -> tuple[str, str]:
    """Return what was attacked, behind what, and by whom."""
    return (
        f"{document['model']} on {document['data']}, {document['weights']}; activations as {document['wire_dtype']}, {defence_in_words(document)}.",
        f"{document['attacked_rows']} samples are attacked. {ATTACKER}",
    )


def introduction(document: dict[str, Any]) -> list[str]:
    """Return the same as lines."""
    return [line for sentence in introduction_sentences(document) for line in textwrap.wrap(printable(sentence), LINE_WIDTH)]


def limits() -> list[str]:
    """Return what the figures do not say."""
    return textwrap.wrap(LIMITS, LINE_WIDTH)


def defence_in_words(document: dict[str, Any]) -> str:
    """Return what stands between front and wire."""
    if document["clip"] is None:
        return "no other defence"
    clipped = f"rows clipped to a root mean square of {document['clip']:g}"
    return f"{clipped}, noise of {document['noise']:g} of that" if document["noise"] else clipped


def paragraphs(cut: dict[str, Any]) -> list[str]:
    """Return the figures of one cut, a line for each guess and attack, and what they say."""
    shape = "x".join(map(str, cut["activations"]))
    own = f"the attacker has {cut['attacker_rows']:,} samples of its own"
    title = f"{printable(cut['cut'])}: {shape}, {cut['numbers_per_sample']:,} numbers a sample; {own}"
    return ["", title, *_table(cut), *(line for sentence in verdict(cut) for line in _wrapped(sentence))]


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, LINE_WIDTH, initial_indent="  ", subsequent_indent="  ")


def _table(cut: dict[str, Any]) -> Iterator[str]:
    is_text = is_of_text(cut)
    yield f"  {'':{_NAME_WIDTH}}" + ("tokens recovered" if is_text else "       MSE    PSNR    SSIM")
    for kind in ("guesses", "attacks"):
        for name, score in worst_first(cut[kind]):
            yield f"  {name:{_NAME_WIDTH}}" + (f"{score:16.1%}" if is_text else _scores(score))


def _scores(score: dict[str, Any]) -> str:
    similarity = "–" if score["ssim"] is None else f"{score['ssim']:.3f}"
    return f"{score['mse']:10.5f}{score['psnr']:8.1f}{similarity:>8}"


def worst_first(scores: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return scores by name in an order that does not depend on where they were kept."""
    return sorted(scores.items(), key=lambda pair: (-pair[1]["mse"] if isinstance(pair[1], dict) else pair[1], pair[0]))


def is_of_text(cut: dict[str, Any]) -> bool:
    """Whether scores are shares of tokens."""
    return not any(isinstance(score, dict) for score in cut["guesses"].values())


def verdict(cut: dict[str, Any]) -> Iterator[str]:
    """Yield what the figures of one cut say, a sentence at a time."""
    practically = " To it, activations are practically the samples." if cut["recovered"] >= NEARLY_ALL else ""
    if is_of_text(cut):
        yield f"The strongest attack, the {cut['strongest']}, gives back {cut['recovered']:.0%} of the tokens.{practically}"
        return
    yield f"The strongest attack, the {cut['strongest']}, removes {cut['recovered']:.0%} of the mean sample's error.{practically}"
    yield f"Distance correlation of samples and activations: {cut['distance_correlation']:.2f}"
    fisher = cut["fisher_information_leakage"]
    if fisher is not None:
        bound = math.inf if fisher == 0 else 1 / fisher
        yield f"Fisher information leakage {fisher:.3g}: no unbiased attacker has an MSE below {bound:.2g}; those above are biased, and may have."
