"""Charts as inline SVG that follows the page's theme: no script, no network, the same in print.

Colours are classes of `report.css` (`s0` to `s7`), so that light and dark are the page's matter.
Everything written is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520.0, 260.0  # pixels at which charts are drawn; the page scales them
LEFT, RIGHT, TOP, BOTTOM = 72.0, 14.0, 14.0, 48.0
COLOURS = 8
LONGEST = 300  # points of a line: more are not seen

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point. words: shown on hovering. label: written beside it. size: radius in pixels."""

    x: float
    y: float
    words: str = ""
    label: str = ""
    size: float = 4.0
    spread: float = 0.0  # of y, drawn as a bar of one deviation to each side


class Axes:
    """From values to pixels, with ticks at round numbers."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, square: bool = False) -> None:
        self.x, self.y = _range(xs), _range(ys)
        if square:
            self.x = self.y = _range([*xs, *ys])

    def px(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_title: str, y_title: str) -> str:
        """Grid, ticks and titles."""
        parts = []
        for value in ticks(*self.x):
            x = self.px(value)
            parts.append(
                f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'/>"
                f"<text class='tick' x='{x:.1f}' y='{HEIGHT - BOTTOM + 15}' "
                f"text-anchor='middle'>{value:g}</text>"
            )
        for value in ticks(*self.y):
            y = self.py(value)
            parts.append(
                f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
                f"<text class='tick' x='{LEFT - 6}' y='{y + 3.5:.1f}' "
                f"text-anchor='end'>{value:g}</text>"
            )
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(
            f"<text class='axis' x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 8}' "
            f"text-anchor='middle'>{escape(x_title)}</text>"
            f"<text class='axis' x='13' y='{middle}' text-anchor='middle' "
            f"transform='rotate(-90 13 {middle})'>{escape(y_title)}</text>"
        )
        return "".join(parts)


def lines(
    series: Mapping[str, Points], x_title: str, y_title: str, *, level: float | None = None
) -> str:
    """Curves by name. level: a dashed horizontal line, such as a limit."""
    shown = {name: _thinned(points) for name, points in series.items() if len(points)}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    axes = Axes(xs, [*ys, level] if level is not None else ys)
    body = axes.frame(x_title, y_title)
    for k, points in enumerate(shown.values()):
        path = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in points)
        body += f"<polyline class='line s{k % COLOURS}' points='{path}'/>"
    if level is not None:
        y = axes.py(level)
        body += f"<line class='level' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
    return _figure(body, list(shown), f"{y_title} by {x_title}")


def scatter(
    groups: Mapping[str, Sequence[Mark]],
    x_title: str,
    y_title: str,
    *,
    diagonal: bool = False,
    front: bool = False,
    uprights: Mapping[str, float] | None = None,
) -> str:
    """Marks by group. diagonal: y = x. front: a line along the marks that nothing beats, where
    less x and more y are better. uprights: dashed vertical lines by name, such as a limit."""
    groups = {name: marks for name, marks in groups.items() if marks}
    marks = [mark for group in groups.values() for mark in group]
    if not marks:
        return ""
    uprights = uprights or {}
    xs = [mark.x for mark in marks] + list(uprights.values())
    ys = [mark.y + side * mark.spread for mark in marks for side in (-1, 1)]
    axes = Axes(xs, ys, square=diagonal)
    body = axes.frame(x_title, y_title)
    if diagonal:
        (low, high) = axes.x
        body += _line(axes, (low, low), (high, high), "level")
    for name, x in uprights.items():
        body += _line(axes, (x, axes.y[0]), (x, axes.y[1]), "level")
        place = f"{axes.px(x) - 4:.1f} {TOP + 4}"
        body += (
            f"<text class='tick' text-anchor='end' transform='translate({place}) rotate(-90)'>"
            f"{escape(name)}</text>"
        )
    if front:
        path = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in pareto(marks))
        body += f"<polyline class='front' points='{path}'/>"
    for k, group in enumerate(groups.values()):
        body += "".join(_mark(axes, mark, k) for mark in group)
    body += _labels(axes, [mark for mark in marks if mark.label])
    return _figure(body, list(groups), f"{y_title} against {x_title}")


def pareto(marks: Sequence[Mark]) -> list[tuple[float, float]]:
    """The marks that no other beats: none has less x and as much y, or more y and as little x."""
    best, front = -math.inf, []
    for mark in sorted(marks, key=lambda m: (m.x, -m.y)):
        if mark.y > best:
            best = mark.y
            front.append((mark.x, mark.y))
    return front


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values, and never empty."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.25 * high else low - margin), high + margin


def _thinned(points: Points) -> Points:
    stride = -(-len(points) // LONGEST)
    return points if stride == 1 else [*points[::stride], points[-1]]


def _line(axes: Axes, a: tuple[float, float], b: tuple[float, float], name: str) -> str:
    return (
        f"<line class='{name}' x1='{axes.px(a[0]):.1f}' y1='{axes.py(a[1]):.1f}' "
        f"x2='{axes.px(b[0]):.1f}' y2='{axes.py(b[1]):.1f}'/>"
    )


def _mark(axes: Axes, mark: Mark, k: int) -> str:
    x, y = axes.px(mark.x), axes.py(mark.y)
    parts = ""
    if mark.spread:
        ends = [(mark.x, mark.y - mark.spread), (mark.x, mark.y + mark.spread)]
        parts += _line(axes, ends[0], ends[1], f"spread s{k % COLOURS}")
    parts += (
        f"<circle class='mark s{k % COLOURS}' cx='{x:.1f}' cy='{y:.1f}' r='{mark.size:g}'>"
        f"<title>{escape(mark.words)}</title></circle>"
    )
    return parts


def _labels(axes: Axes, marks: Sequence[Mark]) -> str:
    """Beside their marks, each where the ones before leave room: above, below, further away."""
    placed: list[tuple[float, float, float]] = []  # left, right, base line
    parts = ""
    for mark in marks:
        x, y, wide = axes.px(mark.x), axes.py(mark.y), 6.0 * len(mark.label)
        anchor, left = ("end", x - 8 - wide) if x > 0.7 * WIDTH else ("start", x + 8)
        free = [
            y + dy
            for dy in (-6.0, 15.0, -19.0, 28.0)
            if not any(a < left + wide and left < b and abs(y + dy - c) < 12 for a, b, c in placed)
        ]
        base = free[0] if free else y - 6
        placed.append((left, left + wide, base))
        parts += (
            f"<text class='label' x='{left + wide if anchor == 'end' else left:.1f}' "
            f"y='{base:.1f}' text-anchor='{anchor}'>{escape(mark.label)}</text>"
        )
    return parts


def _figure(body: str, names: Sequence[str], title: str) -> str:
    """The SVG, and a legend where there are several names."""
    svg = (
        f"<svg class='chart' viewBox='0 0 {WIDTH:g} {HEIGHT:g}' role='img' "
        f"aria-label='{escape(title, quote=True)}'>{body}</svg>"
    )
    if len(names) < 2:
        return svg
    entries = "".join(
        f"<span><i class='s{k % COLOURS}'></i>{escape(name)}</span>" for k, name in enumerate(names)
    )
    return f"{svg}<div class='legend'>{entries}</div>"
