"""Draws small line charts as SVG, side by side: for benchmarks that measure at several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Points = Sequence[tuple[float, float]]
#: Of one chart, in pixels.
WIDTH, HEIGHT, EDGE = 320, 240, 46
COLOURS = ("#00695c", "#c62828", "#6a1b9a")


def plot(path: Path, charts: Mapping[str, Mapping[str, Points]]) -> None:
    """One chart for each title, each with its lines by name; both axes are logarithmic, values of 0 are left out."""
    parts = [_chart(number, title, lines) for number, (title, lines) in enumerate(charts.items())]
    size = f'width="{WIDTH * len(parts)}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    path.write_text("\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"]))


def _chart(number: int, title: str, lines: Mapping[str, Points]) -> str:
    points = [(x, y) for line in lines.values() for x, y in line if x > 0 and y > 0]
    left, right = _ends([x for x, _ in points])
    low, high = _ends([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return EDGE + across * (WIDTH - EDGE - 16), HEIGHT - EDGE - up * (HEIGHT - 2 * EDGE)

    parts = [f'<g transform="translate({WIDTH * number},0)">', f'<text x="{EDGE}" y="18">{escape(title)}</text>']
    for power in range(math.ceil(left), math.floor(right) + 1):
        x, _ = place(10**power, 10**low)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - EDGE + 16}" text-anchor="middle">{10**power:,}</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        _, y = place(10**left, 10**power)
        parts.append(f'<text x="{EDGE - 6}" y="{y + 4:.0f}" text-anchor="end">{10**power:g}</text>')
        parts.append(f'<path d="M{EDGE} {y:.0f}H{WIDTH - 16}" stroke="#ddd"/>')
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        spots = [place(x, y) for x, y in sorted(line) if x > 0 and y > 0]
        if not spots:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        row = list(lines).index(name)
        parts.append(f'<text x="{EDGE + 8}" y="{34 + 13 * row}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</g>"])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around the values, never the same."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
