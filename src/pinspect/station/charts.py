"""Layout of a line chart of rates, which a template draws as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 28
_MOST_LABELS = 8


@dataclass(frozen=True)
class Chart:
    """Positions (px) in a chart.

    Attributes:
        width: Width of the chart.
        height: Height of the chart.
        left: Left end of the axis.
        right: Right end of the axis.
        lines: By name, the parts of a line between gaps; each part is a list of points (x, y).
        ticks: x position and label.
        levels: y position and share.
    """

    width: int
    height: int
    left: int
    right: int
    lines: dict[str, list[list[tuple[float, float]]]]
    ticks: list[tuple[float, str]]
    levels: list[tuple[float, float]]


def line_chart(labels: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> Chart:
    """Lay out shares (0..1) over equally spaced labels; None leaves a gap."""
    xs = _places(len(labels))
    step = max(1, -(-len(labels) // _MOST_LABELS))
    return Chart(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        lines={name: _parts(xs, values) for name, values in series.items()},
        ticks=[(x, label[5:]) for x, label in list(zip(xs, labels, strict=True))[::step]],
        levels=[(_height(share), share) for share in (0, 0.25, 0.5, 0.75, 1)],
    )


def _places(number: int) -> list[float]:
    """Equally spaced x positions; a single label is centered."""
    inner = WIDTH - LEFT - RIGHT
    if number == 1:
        return [LEFT + inner / 2]
    return [round(LEFT + inner * i / (number - 1), 1) for i in range(number)]


def _parts(xs: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    parts: list[list[tuple[float, float]]] = [[]]
    for x, value in zip(xs, values, strict=True):
        if value is None:
            parts.append([])
        else:
            parts[-1].append((x, _height(value)))
    return [part for part in parts if part]


def _height(share: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)
