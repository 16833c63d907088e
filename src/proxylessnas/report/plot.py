"""Predicted against measured latency, as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from proxylessnas.core.supernet import Supernet
from proxylessnas.hardware.cost import Cost, indices_of
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.files import write_atomic

WIDTH, HEIGHT, LEFT, TOP = 520, 540, 64, 48
COLOURS: Mapping[str, str] = {"fit": "#9aa4b2", "canary": "#c9820a", "validation": "#1661b3"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One whole network. spread_ms: robust standard deviation of a visit."""

    predicted_ms: float
    measured_ms: float
    spread_ms: float
    role: str
    macs: int


def points(cost: Cost, supernet: Supernet, table: LatencyTable) -> list[Point]:
    """The table's whole networks of this space: the facts that the plot draws."""
    return [
        Point(
            predicted_ms=cost.of(indices_of(supernet, n.choices)),
            measured_ms=n.measurement.median_ms,
            spread_ms=n.measurement.median_ms * n.measurement.spread_pct / 100,
            role=n.role,
            macs=n.macs,
        )
        for n in table.of_role("fit", "canary", "validation", space=cost.space)
    ]


def plot(cost: Cost, supernet: Supernet, table: LatencyTable, path: str | Path) -> None:
    """Write the scatter of predicted and measured latency; the diagonal is a perfect model."""
    device = f"{table.device.get('runtime')} on {table.device.get('device')}"
    write_atomic(Path(path), svg(points(cost, supernet, table), device).encode())


def svg(shown: Sequence[Point], title: str) -> str:
    """The scatter as SVG text."""
    values = [v for p in shown for v in (p.predicted_ms, p.measured_ms)] or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    side = WIDTH - LEFT - 24

    def x(ms: float) -> float:
        return LEFT + side * (ms - low) / (high - low)

    def y(ms: float) -> float:
        return TOP + side * (high - ms) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for tick in _ticks(low, high):
        parts += [
            f'<path d="M{x(tick):.1f} {TOP}V{TOP + side}M{LEFT} {y(tick):.1f}H{LEFT + side}" '
            'stroke="#e3e7ee"/>',
            f'<text x="{x(tick):.1f}" y="{TOP + side + 16}" text-anchor="middle">{tick:g}</text>',
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>',
        ]
    parts.append(
        f'<path d="M{x(low):.1f} {y(low):.1f}L{x(high):.1f} {y(high):.1f}" '
        'stroke="#667085" stroke-dasharray="4 4"/>'
    )
    for p in shown:
        cx, cy, colour = x(p.predicted_ms), y(p.measured_ms), COLOURS[p.role]
        up, down = y(p.measured_ms + p.spread_ms), y(p.measured_ms - p.spread_ms)
        error = 100 * (p.predicted_ms / p.measured_ms - 1)
        note = (
            f"{p.role}: predicted {p.predicted_ms:.3f} ms, measured {p.measured_ms:.3f} ms "
            f"({error:+.1f} %), {p.macs / 1e6:.1f} M MACs"
        )
        parts += [
            f'<g stroke="{colour}" fill="{colour}"><title>{note}</title>'
            f'<path d="M{cx:.1f} {up:.1f}V{down:.1f}"/>'
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill-opacity="0.7"/></g>'
        ]
    parts += _legend(sorted({p.role for p in shown}), side)
    middle = TOP + side / 2
    parts += [
        f'<text x="{LEFT + side / 2}" y="{HEIGHT - 12}" text-anchor="middle">predicted, ms</text>',
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">'
        "measured, ms</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend(roles: Sequence[str], side: float) -> list[str]:
    parts = []
    for i, role in enumerate(roles):
        y = TOP + 18 + 18 * i
        parts.append(
            f'<circle cx="{LEFT + 14}" cy="{y - 4}" r="4" fill="{COLOURS[role]}"/>'
            f'<text x="{LEFT + 24}" y="{y}">{role}</text>'
        )
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
