"""The curves of a run: pytest tests/tasks/ui/test_charts.py"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from tasks.ui.charts import GAP, HEIGHT, MARGIN, WIDTH, Panel, curves, shown

SVG = "{http://www.w3.org/2000/svg}"


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The lines of each panel, in pixels."""
    lines = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in lines]  # type: ignore[misc]


def test_a_line_goes_from_edge_to_edge_and_from_high_to_low() -> None:
    (line,) = points(curves([Panel(title="loss", line={1: 4.0, 2: 3.0, 3: 2.0})]))
    assert line == [(MARGIN, GAP), (WIDTH / 2, GAP + HEIGHT / 2), (WIDTH - MARGIN, GAP + HEIGHT)]


def test_panels_share_their_steps() -> None:
    loss, rate = points(curves([Panel(title="loss", line={5: 4.0, 9: 3.0}), Panel(title="rate", line={7: 1e-4})]))
    assert loss[0][0] == MARGIN and loss[1][0] == WIDTH - MARGIN
    assert rate[0][0] == WIDTH / 2


@pytest.mark.parametrize("values", [{1: 2.5}, {1: 0.0}, {3: -1.0, 4: -1.0}])
def test_a_single_value_is_a_picture_too(values: dict[int, float]) -> None:
    (line,) = points(curves([Panel(title="loss", line=values)]))
    assert len(line) == len(values)


def test_dots_and_titles_are_drawn_and_escaped() -> None:
    svg = ElementTree.fromstring(curves([Panel(title="a < b", line={1: 1.0, 2: 2.0}, dots={2: 1.5})]))
    assert [circle.attrib["cy"] for circle in svg.iter(f"{SVG}circle")] == [str(GAP + HEIGHT / 2)]
    assert "a < b" in [text.text for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize(("steps", "points"), [(10, 10), (2 * WIDTH, 2 * WIDTH), (100_000, 2 * WIDTH)])
def test_a_long_training_is_drawn_with_its_ends_and_its_spikes(steps: int, points: int) -> None:
    line = {step: 1.0 + step % 7 / 10 for step in range(1, steps + 1)}
    line[steps // 2] = 99.0
    drawn = shown(line)
    assert len(drawn) <= points + 2 and drawn == sorted(drawn)
    assert {1, steps // 2, steps} <= set(drawn)
