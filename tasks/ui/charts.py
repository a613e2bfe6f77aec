"""Curves of a training as one SVG: loss, learning rate, speed, one below the other over the same steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT, MARGIN, GAP = 720, 200, 64, 36
"""Of one panel, in pixels: margins at the sides, the gap with its title above."""
TEXT = 'font-family="sans-serif" font-size="12" fill="#555"'
LINE, DOT = "#1864ab", "#d9480f"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the steps."""

    title: str
    line: dict[int, float]
    dots: dict[int, float] = field(default_factory=dict)
    """Values of single steps, such as validation losses."""
    numbers: str = ".2f"
    """Format of the axis' two numbers."""


def curves(panels: list[Panel]) -> str:
    """The panels as SVG. Each has at least one step in its line."""
    first = min(min(panel.line) for panel in panels)
    last = max(*(max(panel.line) for panel in panels), first + 1)
    height = len(panels) * (HEIGHT + GAP) + GAP
    drawn = "".join(_drawn(panel, GAP + number * (HEIGHT + GAP), first, last) for number, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<rect width="100%" height="100%" fill="white"/>{drawn}'
        f'<text x="{MARGIN}" y="{height - GAP // 2}" {TEXT}>step {first}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{height - GAP // 2}" text-anchor="end" {TEXT}>step {last}</text></svg>')


def shown(line: dict[int, float]) -> list[int]:
    """The steps to draw, in order: all, or in a long training the lowest and the highest of each pixel's steps."""
    steps = sorted(line)
    share = -(-len(steps) // WIDTH)
    if share <= 2:
        return steps
    parts = (steps[start:start + share] for start in range(0, len(steps), share))
    ends = ((min(part, key=line.__getitem__), max(part, key=line.__getitem__)) for part in parts)
    return sorted({steps[0], steps[-1], *(step for pair in ends for step in pair)})


def _drawn(panel: Panel, top: int, first: int, last: int) -> str:
    values = [*panel.line.values(), *panel.dots.values()]
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (step - first) / (last - first)
        return round(x, 1), round(top + HEIGHT * (high - value) / span, 1)

    line = " ".join(f"{x},{y}" for x, y in (place(step, panel.line[step]) for step in shown(panel.line)))
    dots = "".join('<circle cx="{}" cy="{}" r="4" fill="{}"/>'.format(*place(step, value), DOT)
                   for step, value in panel.dots.items())
    bottom = top + HEIGHT
    return (
        f'<path d="M{MARGIN} {top}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#aaa"/>'
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5"/>{dots}'
        f'<text x="{MARGIN}" y="{top - 8}" {TEXT}>{escape(panel.title)}</text>'
        f'<text x="{MARGIN - 6}" y="{top + 10}" text-anchor="end" {TEXT}>{high:{panel.numbers}}</text>'
        f'<text x="{MARGIN - 6}" y="{bottom}" text-anchor="end" {TEXT}>{low:{panel.numbers}}</text>')
