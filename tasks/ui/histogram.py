"""The lengths of examples as a picture: SVG in a data: address, which Prefect's UI shows as an image.

In:   a Pack     Out: the image artifact `data-lengths`
"""

from __future__ import annotations

import base64

from prefect.artifacts import create_image_artifact

from infra.records import Pack
from tasks.ui.charts import TEXT, WIDTH
from tasks.ui.progress import if_it_can

HEIGHT, MARGIN = 300, 44
COLOURS = {"train": "#1864ab", "validation": "#d9480f"}


def show_lengths(pack: Pack) -> None:
    """Put the histogram on the run's Artifacts page; packs of an earlier release have none."""
    if pack.lengths:
        picture = base64.b64encode(bars(pack).encode()).decode()
        if_it_can(lambda: create_image_artifact(
            image_url=f"data:image/svg+xml;base64,{picture}", key="data-lengths",
            description="Tokens per example before cutting: training rows blue, held-out rows orange, as shares; "
                        f"dashed: chunk_size, {pack.chunk_tokens} tokens"))


def bars(pack: Pack) -> str:
    """The histogram as SVG: a bar's height is the share of its split's examples."""
    shares = {split: [count / max(1, sum(counts)) for count in counts] for split, counts in pack.lengths.items()}
    highest = max(max(part, default=0) for part in shares.values()) or 1
    count = max(len(part) for part in shares.values())
    step, bottom = (WIDTH - 2 * MARGIN) / count, HEIGHT - MARGIN
    drawn = [
        _bar(MARGIN + step * (i + place / 2), step / 2, (bottom - MARGIN) * share / highest, COLOURS[split])
        for place, split in enumerate(COLOURS) for i, share in enumerate(shares.get(split, ()))]
    end = count * pack.bin_tokens
    limit = MARGIN + (WIDTH - 2 * MARGIN) * pack.chunk_tokens / end
    if limit < WIDTH - MARGIN:
        drawn.append(f'<path d="M{limit:.1f} {MARGIN}V{bottom}" stroke="#868e96" stroke-dasharray="4"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(drawn)}'
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#aaa"/>'
        f'<text x="4" y="{MARGIN + 4}" {TEXT}>{highest:.0%}</text>'
        f'<text x="4" y="{bottom}" {TEXT}>0</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 14}" {TEXT}>0 tokens</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 14}" text-anchor="end" {TEXT}>{end} tokens</text></svg>')


def _bar(x: float, width: float, height: float, colour: str) -> str:
    y = HEIGHT - MARGIN - height
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
