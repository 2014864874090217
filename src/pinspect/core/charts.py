"""Charts as SVG text: axes, lines, dots, a legend. No script, no style sheet, no font of its own.

Colors are CSS custom properties of the page, such as `var(--blue)`, so a chart follows the page into dark mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

INK, SOFT, RULE, BLUE, RED, GREEN = (f"var(--{name})" for name in ("ink", "soft", "rule", "blue", "red", "green"))


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        low: Value at the left end or at the bottom.
        high: Value at the right end or at the top.
        ticks: Values with their labels.
        label: Title of the axis.
        scale: Monotonic function of the values, such as a logarithm.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()
    label: str = ""
    scale: Callable[[float], float] = float

    def share(self, value: float) -> float:
        """Return the place of a value on the axis: 0 at its low end, 1 at its high end."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / (high - low)


@dataclass
class Chart:
    """A chart that is drawn mark by mark; later marks lie above earlier ones.

    Attributes:
        x: The horizontal axis.
        y: The vertical axis.
        title: Text for readers who cannot see the chart.
        width: px.
        height: px.
    """

    x: Axis
    y: Axis
    title: str
    width: int = 440
    height: int = 320
    _marks: list[str] = field(default_factory=list[str])
    _legend: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    _RIGHT, _TOP, _BOTTOM = 12, 10, 42

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        color: str,
        *,
        width: float = 1.5,
        dash: str = "",
        opacity: float = 1,
        label: str = "",
    ) -> None:
        """Draw a line through points.

        Args:
            xs: Horizontal values.
            ys: Vertical values, as many as `xs`.
            color: CSS color.
            width: px.
            dash: Lengths of dashes and gaps in px, such as `5 2`; empty for a solid line.
            opacity: 0..1.
            label: Name in the legend; empty for none.
        """
        points = " ".join(f"{self._left(x):.1f},{self._top(y):.1f}" for x, y in zip(xs, ys, strict=True))
        style = f'fill="none" stroke="{color}" stroke-width="{width:g}" stroke-opacity="{opacity:g}"'
        style += f' stroke-dasharray="{dash}"' if dash else ""
        self._marks.append(f'<polyline points="{points}" {style} stroke-linejoin="round"/>')
        if label:
            self._legend.append((label, f'<line x1="0" x2="22" y1="0" y2="0" {style}/>'))

    def dots(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        color: str,
        *,
        radii: float | Sequence[float] = 2.5,
        opacity: float = 1,
        hollow: bool = False,
        label: str = "",
    ) -> None:
        """Draw a dot at each point.

        Args:
            xs: Horizontal values.
            ys: Vertical values, as many as `xs`.
            color: CSS color.
            radii: px, one for all dots or one for each.
            opacity: 0..1.
            hollow: Whether a dot is a ring.
            label: Name in the legend; empty for none.
        """
        paint = f'fill="none" stroke="{color}" stroke-width="1.6"' if hollow else f'fill="{color}"'
        paint += f' fill-opacity="{opacity:g}"'
        sizes = [radii] * len(xs) if isinstance(radii, int | float) else radii
        for x, y, radius in zip(xs, ys, sizes, strict=True):
            place = f'cx="{self._left(x):.1f}" cy="{self._top(y):.1f}" r="{radius:.1f}"'
            self._marks.append(f"<circle {place} {paint}/>")
        if label:
            self._legend.append((label, f'<circle cx="11" cy="0" r="4" {paint}/>'))

    def text(self, x: float, y: float, words: str, *, anchor: str = "middle", shift: float = 0) -> None:
        """Write words beside a point.

        Args:
            x: Horizontal value of the point.
            y: Vertical value of the point.
            words: The words.
            anchor: `start`, `middle` or `end`: which end of the words lies at the point.
            shift: px to the right.
        """
        self._marks.append(self._words(self._left(x) + shift, self._top(y) + 4, words, anchor=anchor, color=INK))

    def svg(self, legend: str = "bottom right") -> str:
        """Return the chart as an `<svg>` element that scales with its place.

        Args:
            legend: Place of the legend: `bottom right`, `middle right` or `top right`.
        """
        view = f'viewBox="0 0 {self.width} {self.height}"'
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img" aria-label="{escape(self.title)}">']
        parts += [*self._axes(), *self._marks, *self._legend_marks(legend)]
        return "\n".join([*parts, "</svg>"])

    @property
    def _margin(self) -> float:
        """Return the left margin in px: room for the title of the axis and its longest label."""
        return 30 + 6.5 * max((len(label) for _, label in self.y.ticks), default=0)

    def _left(self, x: float) -> float:
        return self._margin + self.x.share(x) * (self.width - self._margin - self._RIGHT)

    def _top(self, y: float) -> float:
        return self.height - self._BOTTOM - self.y.share(y) * (self.height - self._TOP - self._BOTTOM)

    def _axes(self) -> list[str]:
        left, bottom = self._margin, self.height - self._BOTTOM
        middle = (left + self.width - self._RIGHT) / 2, (bottom + self._TOP) / 2
        parts = [
            (
                f'<path d="M{left:.1f} {self._TOP}V{bottom}H{self.width - self._RIGHT}" fill="none" stroke="{SOFT}" '
                'stroke-width="0.8"/>'
            ),
            self._words(middle[0], self.height - 6, self.x.label, color=INK),
            f'<g transform="translate(13 {middle[1]:.1f}) rotate(-90)">',
            self._words(0, 0, self.y.label, color=INK) + "</g>",
        ]
        for value, label in self.x.ticks:
            x = self._left(value)
            parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="{SOFT}" stroke-width="0.8"/>')
            parts.append(self._words(x, bottom + 16, label))
        for value, label in self.y.ticks:
            y = self._top(value)
            parts.append(f'<path d="M{left:.1f} {y:.1f}h-4" stroke="{SOFT}" stroke-width="0.8"/>')
            parts.append(self._words(left - 7, y + 4, label, anchor="end"))
        return parts

    def _legend_marks(self, place: str) -> list[str]:
        right = self.width - self._RIGHT - 24
        rows = len(self._legend)
        lowest = self.height - self._BOTTOM - 4 - 17 * rows
        start = {"top": self._TOP + 12, "middle": (self._TOP + lowest) / 2}.get(place.split(maxsplit=1)[0], lowest)
        parts: list[str] = []
        for row, (label, mark) in enumerate(self._legend):
            words = self._words(-7, 4, label, anchor="end", color=INK)
            parts.append(f'<g transform="translate({right} {start + 17 * row})">{mark}{words}</g>')
        return parts

    @staticmethod
    def _words(x: float, y: float, words: str, *, anchor: str = "middle", color: str = SOFT) -> str:
        style = f'font-size="11.5" text-anchor="{anchor}" fill="{color}"'
        return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
