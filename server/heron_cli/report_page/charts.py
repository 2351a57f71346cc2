"""Curves by round: an inline SVG that stretches with the page, and its labels as text beside it, so that they keep their size on any screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from heron_cli.report_page import markup
from heron_cli.report_page.figures import Number, round_ticks, ticks

_MOST_ROWS = 60
"""Rows of the table under a chart; of longer runs it shows every n-th round, the first and the last."""


@dataclass(frozen=True)
class Curve:
    """A name and a value for each round; None leaves a gap."""

    name: str
    values: Sequence[Number]


@dataclass(frozen=True)
class Chart:
    """Curves over the same rounds: `show` writes values in the table, `show_tick` on the axis."""

    title: str
    rounds: Sequence[int]
    _: KW_ONLY
    curves: Sequence[Curve]
    show: Callable[[Number], str]
    show_tick: Callable[[Number], str] | None = None
    from_zero: bool = False

    def markup(self) -> str:
        """Return the drawing with its legend and, folded below it, the figures that it shows; nothing if no curve has a value."""
        curves = [curve for curve in self.curves if any(value is not None for value in curve.values)]
        if not curves:
            return ""
        figure = markup.element("figcaption", markup.text(self.title)) + _legend(curves) + self._drawing(curves)
        return markup.element("figure", figure + markup.folded("The figures", self._table(curves)))

    def _drawing(self, curves: Sequence[Curve]) -> str:
        known = [float(value) for curve in curves for value in curve.values if value is not None]
        marks = ticks(min(0.0, *known) if self.from_zero else min(known), max(known), 6)
        low, high = marks[0], marks[-1]
        last = max(self.rounds)

        def across(round_number: float) -> float:
            return 50.0 if last == 1 else 100 * (round_number - 1) / (last - 1)

        def up(value: float) -> float:
            return 100 * (value - low) / (high - low)

        lines = "".join(f'<path class="grid" d="M0 {100 - up(mark):.2f}H100"/>' for mark in marks)
        for index, curve in enumerate(curves):
            points = [None if v is None else (across(r), 100 - up(float(v))) for r, v in zip(self.rounds, curve.values, strict=True)]
            lines += f'<path class="curve curve-{index}" d="{_path(points)}"/>'
        show_tick = self.show_tick or self.show
        left = "".join(markup.element("span", markup.text(show_tick(mark)), style=f"bottom:{up(mark):.2f}%") for mark in marks)
        names = round_ticks(last, 6)
        below = "".join(markup.element("span", str(name), style=f"left:{across(name):.2f}%") for name in names)
        widest = max(len(show_tick(mark)) for mark in marks)
        svg = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>'
        parts = markup.element("div", left, class_="left") + svg + markup.element("div", below, class_="below")
        return markup.element(
            "div", parts + markup.element("div", "round", class_="axis"), class_="plot", style=f"--left:{widest * 0.62 + 0.8:.1f}em"
        )

    def _table(self, curves: Sequence[Curve]) -> str:
        chosen = _spread(len(self.rounds))
        rows = [[str(self.rounds[i]), *(self.show(curve.values[i]) for curve in curves)] for i in chosen]
        note = "" if len(chosen) == len(self.rounds) else f", {len(chosen)} of {len(self.rounds)} rounds"
        return markup.table(f"{self.title}{note}", ["round", *(curve.name for curve in curves)], rows=rows)


def _legend(curves: Sequence[Curve]) -> str:
    keys = "".join(
        markup.element(
            "li",
            f'<svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path class="curve curve-{index}" d="M1 4H27"/></svg>'
            + markup.text(curve.name),
        )
        for index, curve in enumerate(curves)
    )
    return markup.element("ul", keys, class_="legend")


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return the path through points, broken where one is missing; a point alone becomes a dot, a line of no length with round ends."""
    words: list[str] = []
    pen_down = False
    for index, point in enumerate(points):
        if point is None:
            pen_down = False
            continue
        x, y = point
        words.append(f"{'L' if pen_down else 'M'}{x:.2f} {y:.2f}")
        following = points[index + 1] if index + 1 < len(points) else None
        if not pen_down and following is None:
            words.append("h0.01")
        pen_down = True
    return "".join(words)


def _spread(total: int) -> list[int]:
    """Return the indices of the rows that a table shows."""
    if total <= _MOST_ROWS:
        return list(range(total))
    step = -(-total // _MOST_ROWS)
    return sorted({*range(0, total, step), total - 1})


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Return a bar for each (name, value, value as text), the longest as wide as there is room; nothing without rows."""
    if not rows:
        return ""
    longest = max(value for _, value, _ in rows) or 1.0
    items = "".join(
        markup.element(
            "li",
            markup.element("span", markup.text(name), class_="bar-name")
            + markup.element("span", f'<i style="width:{100 * value / longest:.2f}%"></i>', class_="bar-room")
            + markup.element("span", markup.text(shown), class_="bar-value"),
        )
        for name, value, shown in rows
    )
    return markup.element("figure", markup.element("figcaption", markup.text(title)) + markup.element("ul", items, class_="bars"))
