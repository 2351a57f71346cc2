"""The section of what a run's cut gives away, from the figures that `heron leakage --run-dir` kept."""

from __future__ import annotations

from typing import Any

from heron_cli.leakage_figures.words import defence_in_words, introduction_sentences, is_of_text, verdict, worst_first
from heron_cli.report_page import markup
from heron_cli.report_page.figures import decimal, percent


def leakage_section(document: dict[str, Any]) -> str:
    """Return the section: who was attacked with what, every guess and attack, and what that says."""
    (cut,) = document["cuts"]
    rows = [
        [name, "guess" if kind == "guesses" else "attack", *_cells(score)]
        for kind in ("guesses", "attacks")
        for name, score in worst_first(cut[kind])
    ]
    scores = ["tokens recovered"] if is_of_text(cut) else ["mean squared error", "PSNR, dB", "SSIM"]
    words = (*introduction_sentences(document), *verdict(cut))
    return markup.section(
        "leakage",
        "What the cut gives away",
        *(markup.paragraph(sentence) for sentence in words),
        markup.table(
            f"Attacks on {cut['numbers_per_sample']:,} numbers a sample, {defence_in_words(document)}",
            ["reconstruction", "kind", *scores],
            rows=rows,
            numbers_from=2,
        ),
    )


def _cells(score: Any) -> list[str]:
    if not isinstance(score, dict):
        return [percent(score)]
    return [decimal(score["mse"]), decimal(score["psnr"]), decimal(score["ssim"])]
