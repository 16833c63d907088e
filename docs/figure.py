"""Draws `docs/networks.svg`: the paper's networks for three devices, one above the other.

python docs/figure.py
"""

from __future__ import annotations

import re
from pathlib import Path

from proxylessnas import zoo
from proxylessnas.report.draw import FONT, draw

DEVICES = {"gpu": "GPU", "cpu": "CPU", "mobile": "mobile phone"}


def figure() -> str:
    """The drawings of the zoo with a title each; of the legends the last one's is enough."""
    parts, y, width = [], 0.0, 0.0
    for name, device in DEVICES.items():
        svg = draw(zoo.load(f"proxyless_{name}"))
        svg = svg.replace("mobile network", f"specialised for a {device}", 1)
        svg = svg.replace(">mobile network<", f">specialised for a {device}<")
        w, h = map(float, re.findall(r"viewBox='0 0 ([\d.]+) ([\d.]+)'", svg)[0])
        last = name == list(DEVICES)[-1]
        height = h if last else h - 66  # without the legend
        inner = re.sub(
            r"viewBox='[^']*' width='[^']*' height='[^']*'",
            f"x='0' y='{y:g}' viewBox='0 0 {w:g} {height:g}' width='{w:g}' height='{height:g}'",
            svg,
            count=1,
        )
        parts.append(inner)
        y, width = y + height, max(width, w)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {y:g}' {FONT}>"
        f"<rect width='100%' height='100%' fill='#ffffff'/>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("networks.svg").write_text(figure())
