"""Draws `docs/figures/networks.svg`: a search on the left, networks of three devices on the right.

python docs/figures/networks.py

The search is the one of `docs/notebooks/photos.ipynb`, as its run directory tells
(`search.json`): of every block the probability of each width, kernels added up. The networks are
the paper's, from the zoo.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from proxylessnas import zoo
from proxylessnas.report.canvas import FONT, INK, LINE, PALE, PAPER, THEME, Canvas
from proxylessnas.report.draw import KERNELS, draw

HERE = Path(__file__).parent
DEVICES = {"gpu": "GPU", "cpu": "CPU", "mobile": "mobile phone"}
CELL = 25.0  # pixels of a candidate
LEFT = 128.0  # where the candidates begin


def figure() -> str:
    """Both halves side by side, in one SVG."""
    search, (wide, high) = _placed(_search(), 0, 0)
    parts, y, width = [search], 0.0, 0.0
    for name, device in DEVICES.items():
        svg = draw(zoo.load(f"proxyless_{name}"))
        svg = svg.replace("mobile network", f"specialised for a {device}", 1)
        svg = svg.replace(">mobile network<", f">specialised for a {device}<")
        cut = 0 if name == list(DEVICES)[-1] else 66  # the legend of the last one is enough
        inner, size = _placed(svg, wide, y, cut)
        parts.append(inner)
        y, width = y + size[1], max(width, size[0])
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {wide + width:g} {max(y, high):g}' "
        f"{FONT}>{THEME}<rect width='100%' height='100%' fill='{PAPER}'/>{''.join(parts)}</svg>\n"
    )


def _placed(svg: str, x: float, y: float, cut: float = 0) -> tuple[str, tuple[float, float]]:
    """A drawing as a part of another one, and its size. cut: pixels left out at the bottom."""
    w, h = map(float, re.findall(r"viewBox='0 0 ([\d.]+) ([\d.]+)'", svg)[0])
    h -= cut
    place = f"x='{x:g}' y='{y:g}' viewBox='0 0 {w:g} {h:g}' width='{w:g}' height='{h:g}'"
    svg = re.sub(r"viewBox='[^']*' width='[^']*' height='[^']*'", place, svg, count=1)
    return svg.replace(THEME, ""), (w, h)


def _search() -> str:
    facts = json.loads((HERE / "search.json").read_text())
    canvas = Canvas("the search: how wide is each block?")
    y = 84.0
    for moment in facts["moments"]:
        last = moment is facts["moments"][-1]
        canvas.text(LEFT, y - 10, f"step {moment['step']}", anchor="start", weight=600, size=13)
        for j, words in enumerate(facts["rows"]):
            canvas.text(LEFT - 10, y + CELL * j + 16, words, anchor="end", colour=PALE, size=12)
            for k, row in enumerate(moment["probabilities"]):
                place = (LEFT + CELL * k, y + CELL * j, CELL - 2, CELL - 2)
                canvas.rect(*place, "transparent")
                canvas.elements.append(
                    f"<rect x='{place[0]:g}' y='{place[1]:g}' width='{CELL - 2:g}' "
                    f"height='{CELL - 2:g}' rx='3' fill='{KERNELS[7]}' fill-opacity='{row[j]:g}'/>"
                )
                if last and facts["chosen"][k] == j:
                    middle = (place[0] + CELL / 2 - 1, place[1] + CELL / 2 + 4)
                    canvas.text(*middle, "✓", colour=INK, size=13)
        y += 7 * CELL + 48
    _latency(canvas, facts, y - 14)
    return canvas.svg("the search")


def _latency(canvas: Canvas, facts: dict[str, object], top: float) -> None:
    """The expected latency by step, and the limit."""
    points, limit = facts["expected"], facts["limit_ms"]
    assert isinstance(points, list) and isinstance(limit, float)
    wide, high, bottom = 15 * CELL - 2, 90.0, top + 90.0
    largest, last = max(v for _, v in points), points[-1][0]

    def at(step: float, value: float) -> tuple[float, float]:
        return LEFT + wide * step / last, bottom - high * (value - 0.9 * limit) / (
            largest - 0.9 * limit
        )

    path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
    canvas.line(LEFT, bottom, LEFT + wide, bottom)
    canvas.line(LEFT, at(0, limit)[1], LEFT + wide, at(0, limit)[1], LINE)
    canvas.elements.append(
        f"<polyline points='{path}' fill='none' stroke='{KERNELS[7]}' stroke-width='2'/>"
    )
    canvas.text(LEFT - 10, at(0, limit)[1] + 4, "limit", anchor="end", colour=PALE, size=12)
    canvas.text(LEFT + wide, top, "expected latency", anchor="end", colour=PALE, size=12)
    canvas.text(LEFT + wide / 2, bottom + 20, "step of the search", colour=PALE, size=12)


if __name__ == "__main__":
    (HERE / "networks.svg").write_text(figure())
