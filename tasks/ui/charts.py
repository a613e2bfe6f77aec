"""Pictures of a run as data: addresses, which Prefect's UI shows: curves of a training, lengths of its examples.

matplotlib takes about a second to import, so a flow loads it when it first draws; ranks never do.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.records import Pack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 7.2, 2.2
"""Of one panel, in inches of 72 SVG points."""
LINE_POINTS, DOTS = 240, 50
"""Most points of a line and most dots that are drawn; together they keep three panels below 60 KB."""
COLOURS = {"train": "#1864ab", "validation": "#d9480f"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the steps."""

    title: str
    unit: str
    line: dict[int, float]
    dots: dict[int, float] = field(default_factory=dict)
    """Values of single steps: validation losses."""


def curves(panels: list[Panel]) -> Figure:
    """The panels, one below the other over the same steps. Each has at least one step in its line."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(HEIGHT * len(panels))
    shared = None
    for number, panel in enumerate(panels, start=1):
        axes = shared = figure.add_subplot(len(panels), 1, number, sharex=shared, xlabel="step", ylabel=panel.unit)
        axes.set_title(panel.title, loc="left")
        steps = thinned(panel.line, LINE_POINTS)
        axes.plot(steps, [panel.line[step] for step in steps], color=COLOURS["train"], linewidth=1, label="train",
                  marker="o" if len(steps) == 1 else "")
        if panel.dots:
            steps = thinned(panel.dots, DOTS)
            axes.plot(steps, [panel.dots[step] for step in steps], "o-", color=COLOURS["validation"],
                      label="validation")
            axes.legend(loc="upper right")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.label_outer()  # the steps stand once, below the last panel
    return figure


def bars(pack: Pack) -> Figure:
    """A histogram of the examples' lengths: a bar's height is the share of its split's examples."""
    from matplotlib.ticker import PercentFormatter

    figure = _figure(1.5 * HEIGHT)
    axes = figure.add_subplot(xlabel="tokens per example, before cutting", ylabel="share of examples")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    width = pack.bin_tokens / 2
    for place, (split, colour) in enumerate(COLOURS.items()):
        counts = pack.lengths.get(split, [])
        shares = [count / max(1, sum(counts)) for count in counts]
        axes.bar([(2 * i + place) * width for i in range(len(counts))], shares, width, align="edge", color=colour,
                 label=split)
    if pack.chunk_tokens < pack.bin_tokens * max(map(len, pack.lengths.values())):
        axes.axvline(pack.chunk_tokens, color="#868e96", linestyle="--", label=f"chunk_size, {pack.chunk_tokens}")
    axes.legend(loc="upper right")
    return figure


def picture_of(figure: Figure) -> str:
    """The figure as SVG in a data: address; the same figure has the same bytes."""
    from matplotlib import rc_context

    written = io.BytesIO()
    # Text stays text in the browser's own sans-serif; ids come from the salt, not from chance.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "anneal", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(written.getvalue()).decode()}"


def thinned(line: dict[int, float], points: int) -> list[int]:
    """The steps to draw, in order: all, or in a long training the lowest and the highest of each part's steps."""
    steps = sorted(line)
    if len(steps) <= points:
        return steps
    share = -(-2 * len(steps) // points)
    parts = (steps[start:start + share] for start in range(0, len(steps), share))
    ends = ((min(part, key=line.__getitem__), max(part, key=line.__getitem__)) for part in parts)
    return sorted({steps[0], steps[-1], *(step for pair in ends for step in pair)})


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")
