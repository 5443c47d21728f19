"""Small drawings as inline SVG: no script, no font, no other file; the page's style sheet gives the colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about so many.

    Examples
    --------
    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((s * power for s in _STEPS), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Plot:
    """Axes to draw on; coordinates are those of the data.

    Parameters
    ----------
    title
        What a reader who can't see it is told.
    x, y
        Ranges (low, high) of the axes.
    labels
        Words beside the axes.
    x_ticks
        Places and words on the x axis; None finds round numbers.
    log_x
        Logarithmic x axis.
    """

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        labels: tuple[str, str] = ("", ""),
        *,
        width: int = WIDTH,
        height: int = HEIGHT,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        log_x: bool = False,
    ) -> None:
        self._title, self._width, self._height = title, width, height
        self._log = log_x
        self._range = (x, y)
        self._parts: list[str] = []
        self._axes(x_ticks or [(v, short(v)) for v in ticks(*x)], labels)

    def line(self, points: Points, kind: str, *, steps: bool = False) -> Plot:
        """Join points; ``steps`` keeps each y until the next x."""
        if points:
            at = [f"{self._x(points[0][0]):.1f} {self._y(points[0][1]):.1f}"]
            for x, y in points[1:]:
                at.append(f"H{self._x(x):.1f}V{self._y(y):.1f}" if steps else f"L{self._x(x):.1f} {self._y(y):.1f}")
            self._parts.append(f'<path class="line {kind}" d="M{"".join(at)}"/>')
        return self

    def dots(self, points: Points, kind: str, radius: float = 3.2) -> Plot:
        """Mark points."""
        marks = (f'<circle cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="{radius}"/>' for x, y in points)
        self._parts.append(f'<g class="dot {kind}">{"".join(marks)}</g>')
        return self

    def spans(self, spans: Sequence[tuple[float, float, float]], kind: str) -> Plot:
        """Draw upright intervals (x, low, high)."""
        for x, low, high in spans:
            self._parts.append(self._stroke(f"span {kind}", x, low, x, high))
        return self

    def bars(self, bars: Sequence[tuple[float, float, float]], kind: str) -> Plot:
        """Draw upright bars (from, to, height) that stand on the axis."""
        base = self._range[1][0]
        for left, right, top in bars:
            x, y = self._x(left), self._y(top)
            size = f'width="{max(self._x(right) - x - 1, 1):.1f}" height="{self._y(base) - y:.1f}"'
            self._parts.append(f'<rect class="bar {kind}" x="{x:.1f}" y="{y:.1f}" {size}/>')
        return self

    def rule(self, kind: str, *, x: float | None = None, y: float | None = None, word: str = "") -> Plot:
        """Draw a line across at one x or y, with a word on it."""
        (x0, x1), (y0, y1) = self._range
        if x is not None:
            self._parts.append(self._stroke(f"rule {kind}", x, y0, x, y1))
            right = self._x(x) > self._width * 0.7
            place, anchor = (-5, "end") if right else (5, "start")
            at = f'x="{self._x(x) + place:.1f}" y="{TOP + 10}" text-anchor="{anchor}"'
            self._parts.append(f'<text class="word {kind}" {at}>{html.escape(word)}</text>')
        if y is not None:
            self._parts.append(self._stroke(f"rule {kind}", x0, y, x1, y))
            at = f'x="{self._width - RIGHT - 2}" y="{self._y(y) - 4:.1f}" text-anchor="end"'
            self._parts.append(f'<text class="word {kind}" {at}>{html.escape(word)}</text>')
        return self

    def __str__(self) -> str:
        name = html.escape(self._title)
        head = f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{name}"><title>{name}</title>'
        return f"{head}{''.join(self._parts)}</svg>"

    def _x(self, value: float) -> float:
        low, high = (self._scaled(v) for v in self._range[0])
        return LEFT + (self._scaled(value) - low) / ((high - low) or 1.0) * (self._width - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._range[1]
        return self._height - BOTTOM - (value - low) / ((high - low) or 1.0) * (self._height - TOP - BOTTOM)

    def _scaled(self, x: float) -> float:
        return math.log(x) if self._log else x

    def _stroke(self, kind: str, x0: float, y0: float, x1: float, y1: float) -> str:
        ends = f'x1="{self._x(x0):.1f}" y1="{self._y(y0):.1f}" x2="{self._x(x1):.1f}" y2="{self._y(y1):.1f}"'
        return f'<line class="{kind}" {ends}/>'

    def _axes(self, x_ticks: Sequence[tuple[float, str]], labels: tuple[str, str]) -> None:
        (x0, x1), (y0, y1) = self._range
        for value in ticks(y0, y1):
            self._parts.append(self._stroke("grid", x0, value, x1, value))
            at = f'x="{LEFT - 6}" y="{self._y(value) + 3.5:.1f}" text-anchor="end"'
            self._parts.append(f'<text class="tick" {at}>{short(value)}</text>')
        floor = self._height - BOTTOM
        for value, word in x_ticks:
            at = f'x="{self._x(value):.1f}" y="{floor + 15}" text-anchor="middle"'
            self._parts.append(f'<text class="tick" {at}>{html.escape(word)}</text>')
        self._parts.append(self._stroke("axis", x0, y0, x1, y0))
        middle = (LEFT + self._width - RIGHT) / 2
        at = f'x="{middle:.0f}" y="{self._height - 8}" text-anchor="middle"'
        self._parts.append(f'<text class="label" {at}>{html.escape(labels[0])}</text>')
        up = (TOP + floor) / 2
        at = f'transform="translate(12 {up:.0f}) rotate(-90)" text-anchor="middle"'
        self._parts.append(f'<text class="label" {at}>{html.escape(labels[1])}</text>')


def short(value: float) -> str:
    """Write a number for an axis.

    Examples
    --------
    >>> short(0.25), short(1500.0), short(-0.1), short(0.0)
    ('0.25', '1,500', '−0.1', '0')
    """
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")
