"""The pictures of a run: pytest tests/tasks/ui/test_charts.py"""

from __future__ import annotations

import base64
import dataclasses
import random
from xml.etree import ElementTree

import pytest

from tasks.ui.charts import LINE_POINTS, Panel, bars, curves, picture_of, thinned
from tests.support.past import Past

DATA_URI = "data:image/svg+xml;base64,"


def panel(line: dict[int, float], dots: dict[int, float] | None = None, title: str = "Loss") -> Panel:
    return Panel(title=title, unit="nats per token", line=line, dots=dots or {})


def texts(picture: str) -> list[str]:
    svg = ElementTree.fromstring(base64.b64decode(picture.removeprefix(DATA_URI)))
    return [text.text or "" for text in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_a_line_has_the_value_of_each_step() -> None:
    (axes,) = curves([panel({1: 4.0, 3: 2.0, 2: 3.0})]).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 4.0], [2, 3.0], [3, 2.0]]]  # type: ignore[union-attr]


def test_panels_share_their_steps() -> None:
    loss, rate = curves([panel({5: 4.0, 9: 3.0}), panel({7: 1e-4})]).axes
    assert loss.get_xlim() == rate.get_xlim()
    assert loss.get_xlim()[0] < 5 and loss.get_xlim()[1] > 9
    assert [axes.get_xlabel() for axes in (loss, rate)] == ["", "step"]


@pytest.mark.parametrize("values", [{1: 2.5}, {1: 0.0}, {3: -1.0, 4: -1.0}])
def test_a_single_value_is_a_picture_too(values: dict[int, float]) -> None:
    figure = curves([panel(values)])
    assert picture_of(figure).startswith(DATA_URI)
    assert (figure.axes[0].lines[0].get_marker() == "o") is (len(values) == 1), "a line of one point is not seen"


def test_validation_titles_and_axes_are_named_and_escaped() -> None:
    figure = curves([panel({1: 1.0, 2: 2.0}, {2: 1.5}, title="a < b")])
    assert figure.axes[0].lines[1].get_xydata().tolist() == [[2, 1.5]]  # type: ignore[union-attr]
    assert {"a < b", "nats per token", "step", "train", "validation"} <= set(texts(picture_of(figure)))


@pytest.mark.parametrize(("steps", "points"), [
    (10, 10), (LINE_POINTS, LINE_POINTS), (LINE_POINTS + 1, LINE_POINTS), (100_000, LINE_POINTS)])
def test_a_long_training_is_drawn_with_its_ends_and_its_spikes(steps: int, points: int) -> None:
    line = {step: 1.0 + step % 7 / 10 for step in range(1, steps + 1)}
    line[steps // 2] = 99.0
    drawn = thinned(line, LINE_POINTS)
    assert len(drawn) <= points + 2 and drawn == sorted(drawn)
    assert {1, steps // 2, steps} <= set(drawn)


@pytest.mark.parametrize("steps", [1_000, 10_000])
def test_a_picture_takes_at_most_60_kb_and_the_same_bytes_each_time(steps: int) -> None:
    chance = random.Random(0)
    lines: list[dict[int, float]] = [{step: chance.random() for step in range(1, steps + 1)} for _ in range(3)]
    panels = [panel(line, dict.fromkeys(range(0, steps, 5), 0.5) if line is lines[0] else {}) for line in lines]
    picture = picture_of(curves(panels))
    assert 40_000 < len(picture) <= 60_000
    assert picture == picture_of(curves(panels))


@pytest.mark.parametrize(("chunk", "lines"), [(64, 1), (300, 0)])
def test_the_lengths_are_a_picture_with_a_line_where_rows_end(past: Past, chunk: int, lines: int) -> None:
    lengths = {"train": [0, 3, 1], "validation": [2, 0, 0]}
    figure = bars(dataclasses.replace(past.pack, chunk_tokens=chunk, lengths=lengths, bin_tokens=100))
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights == [0, 0.75, 0.25, 1, 0, 0]
    assert [bar.get_x() for bar in axes.patches] == [0, 100, 200, 50, 150, 250]  # type: ignore[attr-defined]
    assert len(axes.lines) == lines
    assert {"train", "validation", "tokens per example, before cutting"} <= set(texts(picture_of(figure)))
