"""Draws a figure for each idea of `docs/concepts.md`, by the same functions that the search uses.

python docs/figures/concepts.py
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.gradients import eq4
from proxylessnas.core.objective import Constraint
from proxylessnas.report.canvas import INK, LINE, MARGIN, ON_BLOCK, PALE, PLAIN, Canvas
from proxylessnas.report.draw import KERNELS

HERE = Path(__file__).parent
NAMES = ("3×3", "5×5", "7×7", "zero")
COLOURS = (KERNELS[3], KERNELS[5], KERNELS[7], PLAIN)
P = (0.40, 0.30, 0.20, 0.10)
ACCENT, WIDTH = KERNELS[7], 836.0


# --- parts of several figures ---


def box(canvas: Canvas, x: float, y: float, words: str, fill: str, wide: float = 74) -> None:
    """A candidate; (x, y) is its middle."""
    canvas.rect(x - wide / 2, y - 14, wide, 28, fill)
    canvas.text(x, y + 4, words, colour=ON_BLOCK)


def bars(
    canvas: Canvas,
    x: float,
    base: float,
    values: Sequence[float],
    colours: Sequence[str],
    *,
    scale: float,
    form: str = ".2f",
) -> None:
    """A bar a value, upwards from `base` where it is positive, with its figure at the end."""
    canvas.line(x - 8, base, x + 46 * len(values) - 4, base)
    for k, value in enumerate(values):
        height = abs(value) * scale
        top = base - height if value >= 0 else base
        canvas.rect(x + 46 * k, top, 32, max(height, 0.5), colours[k])
        end = top - 6 if value >= 0 else base + height + 14
        canvas.text(x + 46 * k + 16, end, format(value, form), size=10, colour=PALE)


class Plot:
    """Axes at a place of a canvas; values to pixels."""

    def __init__(
        self,
        canvas: Canvas,
        place: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
        titles: tuple[str, str],
    ) -> None:
        """place: left, top, width, height. x, y: ranges."""
        self.canvas, self.place, self.x, self.y = canvas, place, x, y
        left, top, wide, high = place
        canvas.line(left, top, left, top + high)
        canvas.line(left, top + high, left + wide, top + high)
        canvas.text(left + wide / 2, top + high + 20, titles[0], colour=PALE)
        canvas.text(left - 10, top + high / 2, titles[1], colour=PALE, turned=True)

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, wide, high = self.place
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * wide, top + high - up * high

    def dot(self, x: float, y: float, fill: str, size: float = 5) -> None:
        px, py = self.at(x, y)
        self.canvas.rect(round(px - size / 2, 1), round(py - size / 2, 1), size, size, fill)

    def curve(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        style = f"fill='none' stroke='{colour}' stroke-width='2'"
        self.canvas.elements.append(f"<polyline points='{path}' {style}/>")

    def dashes(self, a: tuple[float, float], b: tuple[float, float], colour: str) -> None:
        for k in range(0, 40, 2):
            ends = [
                tuple(u + (v - u) * s / 40 for u, v in zip(a, b, strict=True)) for s in (k, k + 1)
            ]
            self.canvas.line(*self.at(*ends[0]), *self.at(*ends[1]), colour)


# --- the figures ---


def gates() -> str:
    """A choice in two steps: one candidate runs in each."""
    canvas = Canvas("Binary gates: a step runs one candidate, drawn from p")
    for step, (left, active) in enumerate(((MARGIN, 1), (MARGIN + 380, 0)), start=1):
        middle = 158
        canvas.text(left, 66, f"step {step}", anchor="start", weight=600)
        canvas.text(left + 4, middle + 4, "x", size=14)
        canvas.text(left + 336, middle + 4, "y", size=14)
        for k, (name, p) in enumerate(zip(NAMES, P, strict=True)):
            y, runs = 92 + 44.0 * k, k == active
            colour = INK if runs else LINE
            canvas.line(left + 14, middle, left + 70, y, colour)
            box(canvas, left + 108, y, name, COLOURS[k] if runs else "transparent")
            if not runs:
                canvas.text(left + 108, y + 4, name, colour=PALE)
            canvas.line(left + 146, y, left + 196, y, colour)
            canvas.rect(left + 196, y - 12, 46, 24, ACCENT if runs else "transparent")
            words = f"g = {int(runs)}"
            canvas.text(left + 219, y + 4, words, colour=ON_BLOCK if runs else PALE)
            canvas.line(left + 242, y, left + 326, middle, colour)
            canvas.text(left + 171, y - 6, f"p = {p:.1f}", size=10, colour=PALE)
    note = "Memory and time are those of one path, however many candidates there are."
    canvas.text(MARGIN, 268, note, anchor="start", colour=PALE)
    canvas.grow(WIDTH, 0)
    return canvas.svg("Binary gates")


def equation_4() -> str:
    """p, the gradient of the gates, and what equation 4 makes of them."""
    slopes = (-0.6, 0.9, 0.2, -0.1)
    row = torch.tensor([P], dtype=torch.float64)
    gradient = eq4(row, torch.tensor([slopes], dtype=torch.float64))[0].tolist()
    canvas = Canvas("Equation 4: from the gates' gradient to α's")
    columns = (
        ("p = softmax(α)", P, 130.0, ".2f", 236.0),
        ("∂L/∂g: the loss by each gate", slopes, 62.0, "+.1f", 176.0),
        ("∂L/∂α = p · (∂L/∂g − mean)", gradient, 200.0, "+.2f", 176.0),
    )
    for k, (title, values, scale, form, base) in enumerate(columns):
        x = MARGIN + 10 + 284 * k
        canvas.text(x - 8, 66, title, anchor="start", weight=600)
        bars(canvas, x, base, values, COLOURS, scale=scale, form=form)
        for j, name in enumerate(NAMES):
            canvas.text(x + 46 * j + 16, 262, name, size=10, colour=PALE)
        if k == 1:
            mean = sum(p * s for p, s in zip(P, slopes, strict=True))
            y = base - mean * scale
            canvas.line(x - 8, y, x + 180, y, ACCENT)
            canvas.text(x + 184, y - 4, "mean under p", size=10, colour=PALE, anchor="start")
    note = "A path better than the mean has a negative gradient: descent makes it more probable. "
    canvas.text(MARGIN, 292, note + "A row sums to zero.", anchor="start", colour=PALE)
    canvas.grow(WIDTH, 0)
    return canvas.svg("Equation 4")


def two_paths() -> str:
    """A pair is drawn, moved, and rescaled; the others keep their probabilities."""
    alpha = torch.tensor(P, dtype=torch.float64).log()
    pair = [0, 2]
    q = alpha[pair].softmax(0)
    stepped = alpha.clone()
    stepped[pair] -= 4.0 * eq4(q[None], torch.tensor([[0.5, -0.6]], dtype=torch.float64))[0]
    # As `TwoPath.restore_unsampled`: the pair's share of the sum is what it was.
    rescaled = stepped.clone()
    rescaled[pair] -= stepped[pair].logsumexp(0) - alpha[pair].logsumexp(0)
    canvas = Canvas("Two paths: the update concerns a pair, and leaves the others alone")
    rows = (
        ("1  a pair is drawn: 3×3 and 7×7", alpha),
        ("2  equation 4 on the pair alone", stepped),
        ("3  rescaled: the others as before", rescaled),
    )
    for k, (title, values) in enumerate(rows):
        x = MARGIN + 10 + 284 * k
        canvas.text(x - 8, 66, title, anchor="start", weight=600)
        colours = [c if j in pair else "transparent" for j, c in enumerate(COLOURS)]
        bars(canvas, x, 226, values.softmax(0).tolist(), colours, scale=220)
        for j, name in enumerate(NAMES):
            canvas.text(x + 46 * j + 16, 246, name, size=10, colour=PALE)
            y = 226 - P[j] * 220
            if j not in pair:
                canvas.line(x + 46 * j - 4, y, x + 46 * j + 36, y, ACCENT)
    note = "Bars are probabilities; lines mark what the candidates outside the pair had before."
    canvas.text(MARGIN, 276, note, anchor="start", colour=PALE)
    canvas.grow(WIDTH, 0)
    return canvas.svg("Two paths")


def constraint() -> str:
    """A search of sixty choices with known losses, by the objective itself."""
    torch.manual_seed(3)
    limit, shape = 30.0, (60, 4)
    cost = torch.rand(shape, dtype=torch.float64)
    # Slower candidates are better, some more than others.
    loss = -(0.02 + 0.08 * torch.rand(60, 1, dtype=torch.float64)) * cost.sqrt()
    costs = Costs.one("latency", cost, limit=limit)
    alpha = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer, objective = torch.optim.Adam([alpha], 0.1), Constraint([limit], rate=0.02)
    expected, multipliers = [], []
    for _ in range(600):
        p = alpha.softmax(1)
        value = objective((p * loss).sum(), costs.expected(p))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        objective.observe(costs.of(alpha.argmax(1).tolist()))
        expected.append(float(costs.expected(p.detach())[0]))
        multipliers.append(objective.multipliers[0])
    canvas = Canvas("The limit: the multiplier grows until the latency just keeps it")
    steps = (0.0, float(len(expected)))
    left = Plot(canvas, (64, 66, 300, 170), steps, (25, 50), ("step", "expected latency, ms"))
    left.curve(list(enumerate(expected)), KERNELS[3])
    left.dashes((0, limit), (steps[1], limit), ACCENT)
    canvas.text(
        left.at(steps[1], 0)[0], left.at(0, limit)[1] + 14, "limit", anchor="end", colour=PALE
    )
    top = 1.15 * max(multipliers)
    right = Plot(canvas, (456, 66, 300, 170), steps, (0, top), ("step", "multiplier λ"))
    right.curve(list(enumerate(multipliers)), KERNELS[5])
    note = "α descends on L + λ·(E/T − 1); λ ascends while the most probable network is too slow."
    canvas.text(MARGIN, 284, note, anchor="start", colour=PALE)
    canvas.grow(WIDTH, 0)
    return canvas.svg("The limit and its multiplier")


def decoding() -> str:
    """All 256 networks of four choices: the most probable one, and the one within the limit."""
    torch.manual_seed(6)
    log_p = torch.randn(4, 4, dtype=torch.float64).mul(1.2).log_softmax(1)
    cost = 1 + 2 * torch.rand(4, 4, dtype=torch.float64) + 0.9 * log_p.exp()
    limit = 8.3
    costs = Costs.one("latency", cost, limit=limit)
    points = {
        n: (costs.of(n)[0], math.fsum(float(log_p[m, j]) for m, j in enumerate(n)))
        for n in itertools.product(range(4), repeat=4)
    }
    best = max(points, key=lambda n: points[n][1])
    within = next(decode(log_p, torch.ones(4, 4, dtype=torch.bool), costs))
    canvas = Canvas("Decoding: the most probable network within the limit, exactly")
    xs, ys = zip(*points.values(), strict=True)
    plot = Plot(
        canvas,
        (64, 60, 620, 230),
        (min(xs) - 0.2, max(xs) + 0.2),
        (min(ys) - 0.5, max(ys) + 0.9),
        ("latency, ms", "log probability"),
    )
    for point in points.values():
        plot.dot(*point, KERNELS[3] if point[0] <= limit else LINE)
    plot.dashes((limit, plot.y[0]), (limit, plot.y[1]), ACCENT)
    x, y = plot.at(limit, plot.y[1])
    canvas.text(x + 6, y + 10, "limit", anchor="start", colour=PALE)
    for network, words, fill in (
        (best, "most probable, and too slow", PALE),
        (within, "derived", ACCENT),
    ):
        plot.dot(*points[network], fill, 11)
        x, y = plot.at(*points[network])
        anchor, dx = ("end", -10) if network == within else ("start", 10)
        canvas.text(x + dx, y - 6, words, anchor=anchor, weight=600)
    note = (
        "Each mark is a network of four choices. An integer programme finds it among 7²¹ as well."
    )
    canvas.text(MARGIN, 340, note, anchor="start", colour=PALE)
    canvas.grow(WIDTH, 0)
    return canvas.svg("Decoding within the limit")


def cost_model() -> str:
    """Measured networks against the bare sum of their blocks, and against the corrected one."""
    networks = json.loads((HERE / "measured.json").read_text())["networks"]
    canvas = Canvas("The cost model: the sum of blocks, corrected by whole networks")
    top = 1.08 * max(n["measured"] for n in networks)
    for k, (name, title) in enumerate(
        (("blocks", "sum of the blocks alone"), ("predicted", "corrected: what the search sees"))
    ):
        titles = ("predicted, ms", "measured, ms")
        plot = Plot(canvas, (64 + 372 * k, 84, 280, 220), (0, top), (0, top), titles)
        canvas.text(64 + 372 * k, 68, title, anchor="start", weight=600)
        plot.dashes((0, 0), (top, top), PALE)
        errors = [abs(n[name] / n["measured"] - 1) for n in networks if n["role"] == "validation"]
        for n in networks:
            fitted = n["role"] != "validation"
            plot.dot(n[name], n["measured"], PLAIN if fitted else KERNELS[7], 7)
        words = f"mean error {100 * sum(errors) / len(errors):.1f} %"
        canvas.text(64 + 372 * k + 270, 290, words, anchor="end", colour=PALE)
    note = "Red: networks that the correction was not fitted to; the errors are theirs. On the "
    canvas.text(MARGIN, 352, note + "diagonal a prediction is right.", anchor="start", colour=PALE)
    canvas.grow(WIDTH, 0)
    return canvas.svg("The cost model")


FIGURES = {
    "gates": gates,
    "equation-4": equation_4,
    "two-paths": two_paths,
    "constraint": constraint,
    "decoding": decoding,
    "cost-model": cost_model,
}

if __name__ == "__main__":
    for name, make in FIGURES.items():
        (HERE / f"{name}.svg").write_text(make())
