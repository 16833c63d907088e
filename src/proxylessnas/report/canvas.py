"""SVG elements on a canvas that grows with them; the drawing follows the reader's theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

INK, PALE, LINE, PLAIN = "#24292f", "#6b7480", "#c3cad2", "#dfe3e8"
PAPER, ON_BLOCK = "#ffffff", "#1d2127"  # behind everything; words on a block, light in any theme
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
MARGIN, TITLE_Y = 24.0, 34.0  # pixels
SHARES = {"start": 1.0, "middle": 0.5, "end": 0.0}  # of a text's width right of its anchor
# What is dark on light turns where the reader's screen is dark; blocks stay light.
DARK = {INK: "#e6e9ed", PALE: "#a0a9b5", LINE: "#343b44", PAPER: "#1d2126"}
THEME = (
    "<style>@media screen and (prefers-color-scheme: dark) {"
    + "".join(
        f" [{of}='{light}'] {{{of}: {dark}}}"
        for light, dark in DARK.items()
        for of in ("fill", "stroke")
    )
    + " }</style>"
)


class Canvas:
    """SVG elements, and the size they need; a title stands at the top."""

    def __init__(self, title: str) -> None:
        self.elements: list[str] = []
        self.width = self.height = 0.0
        self.text(MARGIN, TITLE_Y, title, size=15, anchor="start", weight=600)

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, tip: str = "", choice: str = ""
    ) -> None:
        title = f"<title>{_safe(tip)}</title>" if tip else ""
        of = f" data-choice='{_safe(choice)}'" if choice else ""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='{min(3, w / 4):g}' "
            f"fill='{fill}' stroke='{INK}' stroke-opacity='.28' stroke-width='.8'"
            f"{of}>{title}</rect>"
        )
        self.grow(x + w, y + h)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = LINE) -> None:
        self.elements.append(
            f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{colour}' "
            "stroke-width='1.4'/>"
        )
        self.grow(max(x1, x2), max(y1, y2))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 11,
        colour: str = INK,
        anchor: str = "middle",
        weight: int = 400,
        turned: bool = False,
    ) -> None:
        """Around or from (x, y), the base line; turned: upwards."""
        turn = f" transform='rotate(-90 {x:g} {y:g})'" if turned else ""
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' fill='{colour}' "
            f"text-anchor='{anchor}' font-weight='{weight}'{turn}>{_safe(words)}</text>"
        )
        if not turned:
            self.grow(x + SHARES[anchor] * len(words) * size * 0.56, y + size * 0.3)

    def grow(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def legend(self, y: float, entries: Sequence[tuple[str, str]], note: str) -> None:
        x = MARGIN
        for colour, words in entries:
            self.rect(x, y - 10, 13, 13, colour)
            self.text(x + 19, y, words, colour=PALE, anchor="start")
            x += 38 + 6.2 * len(words)
        self.text(MARGIN, y + 22, note, colour=PALE, anchor="start")

    def svg(self, title: str) -> str:
        w, h = self.width + 24, self.height + 20
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {w:g} {h:g}' width='{w:g}' "
            f"height='{h:g}' role='img' {FONT}><title>{_safe(title)}</title>"
            f"{THEME}<rect width='100%' height='100%' fill='{PAPER}'/>"
            f"{''.join(self.elements)}</svg>\n"
        )


def _safe(words: str) -> str:
    """Escaped, and without the characters that XML cannot hold."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words))
