"""Small line charts as inline SVG: readable in black and white, no library, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

W, H = 680.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 12.0, 12.0, 38.0
INKS = ("#0b4f9c", "#c2410c", "#4d7c0f", "#6b7280")
DASHES = ("", "", "6 3", "2 3")


@dataclass(frozen=True)
class Line:
    """One series; dots: drawn as points (samples), else as a line; steps: a value stands until the next."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    steps: bool = False


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between low and high, at most about `most`."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: list[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1.0, high + 1.0
    return low - pad * (high - low), high + pad * (high - low)


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]] = ()) -> str:
    """An SVG element; "" where there is nothing to draw. marks: (x, text) as vertical lines."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    x0, x1 = _range([x for line in lines for x in line.x] + [m[0] for m in marks], 0.0)
    y0, y1 = _range([y for line in lines for y in line.y], 0.06)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (W - LEFT - RIGHT)

    def py(y: float) -> float:
        return H - BOTTOM - (y - y0) / (y1 - y0) * (H - TOP - BOTTOM)

    out = [f'<svg viewBox="0 0 {W:g} {H:g}" role="img" aria-label="{escape(title, quote=True)}">']
    for y in ticks(y0, y1, 5):
        out.append(f'<path class="g" d="M{LEFT:g} {py(y):.1f}H{W - RIGHT:g}"/>')
        out.append(f'<text class="y" x="{LEFT - 6:g}" y="{py(y) + 3.5:.1f}">{y:g}</text>')
    for x in ticks(x0, x1, 8):
        out.append(f'<path class="g" d="M{px(x):.1f} {TOP:g}V{H - BOTTOM:g}"/>')
        out.append(f'<text class="x" x="{px(x):.1f}" y="{H - BOTTOM + 13:g}">{x:g}</text>')
    for k, (x, text) in enumerate(marks):
        out.append(f'<path class="m" d="M{px(x):.1f} {TOP:g}V{H - BOTTOM:g}"/>')
        out.append(f'<text class="t" x="{px(x) + 4:.1f}" y="{TOP + 10 + 12 * k:g}">{escape(text)}</text>')
    for k, line in enumerate(lines):
        out.append(_drawn(line, px, py, INKS[k % len(INKS)], DASHES[k % len(DASHES)]))
    out.append(f'<text class="x" x="{(LEFT + W - RIGHT) / 2:g}" y="{H - 8:g}">{escape(x_label)}</text>')
    out.append(f'<text class="x" transform="translate(12 {(TOP + H - BOTTOM) / 2:g}) rotate(-90)">{escape(y_label)}</text></svg>')
    keys = "".join(
        f'<span><i style="border-top:3px {"dotted" if line.dots else "dashed" if DASHES[k % 4] else "solid"} {INKS[k % 4]}"></i>'
        f"{escape(line.name)}</span>"
        for k, line in enumerate(lines)
    )
    return f'<figure><figcaption>{escape(title)} <span class="key">{keys}</span></figcaption>{"".join(out)}</figure>'


def _drawn(line: Line, px, py, ink: str, dash: str) -> str:  # type: ignore[no-untyped-def]
    if line.dots:
        dots = "".join(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2"/>' for x, y in zip(line.x, line.y, strict=True))
        return f'<g fill="{ink}" fill-opacity=".55">{dots}</g>'
    points = []
    for k, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        if line.steps and k:
            points.append(f"{px(x):.1f} {py(line.y[k - 1]):.1f}")
        points.append(f"{px(x):.1f} {py(y):.1f}")
    return f'<path fill="none" stroke="{ink}" stroke-width="1.6" stroke-dasharray="{dash}" d="M{" L".join(points)}"/>'
