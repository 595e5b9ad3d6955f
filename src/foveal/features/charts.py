"""Line charts as SVG text: no picture files, no scripts, and small enough for a page that is written often."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 26
_MOST_POINTS = 240  # a series is thinned to so many, keeping the extremes
_SMALLEST = 1e-30  # on a logarithmic axis
_COLOURS = ("#2563a8", "#c2571a", "#3c8d5a", "#8a4fa3", "#a33b4a")


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    unit: str = "",
    log: bool = False,
    band: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> str:
    """Draw series of (step, value) over a common axis of steps.

    Args:
        series: name -> points, ascending in step; values that are not finite leave a gap.
        title: above the chart.
        unit: behind it.
        log: values on a logarithmic axis; those below 1e-30 are left out.
        band: (low, high) range shaded as normal.
        marks: steps with a vertical line.

    Returns:
        An `<svg>` element, or "" where there is no point to draw.
    """
    kept = {
        name: [(x, y) for x, y in points if y is not None and math.isfinite(y) and (y > _SMALLEST or not log)]
        for name, points in series.items()
    }
    kept = {name: thinned(points) for name, points in kept.items() if points}
    if not kept:
        return ""
    steps = [x for points in kept.values() for x, _ in points]
    values = [y for points in kept.values() for _, y in points]
    axis = _Axis(min(steps), max(steps), *_range(values, log=log), log=log)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
    ]
    if band is not None:
        low, high = (axis.y(min(max(value, axis.low), axis.high)) for value in band)
        parts.append(f'<rect class="band" x="{_LEFT}" y="{high:.1f}" width="{_inner()}" height="{low - high:.1f}"/>')
    parts += axis.grid()
    for mark in marks:
        if axis.first <= mark <= axis.last:
            x = axis.x(mark)
            parts.append(f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
    for colour, (name, points) in zip(_endless(), kept.items(), strict=False):
        path = " ".join(f"{axis.x(x):.1f},{axis.y(y):.1f}" for x, y in points)
        last = points[-1]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" points="{path}"><title>{escape(name)}</title></polyline>'
            f'<circle cx="{axis.x(last[0]):.1f}" cy="{axis.y(last[1]):.1f}" r="2.6" fill="{colour}"/>'
        )
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} <b>{number(points[-1][1])}</b></span>'
        for colour, (name, points) in zip(_endless(), kept.items(), strict=False)
    )
    note = f" <small>{escape(unit)}</small>" if unit else ""
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{''.join(parts)}<div>{legend}</div></figure>"


def thinned(points: Sequence[Point], *, most: int = _MOST_POINTS) -> list[Point]:
    """Return at most `most` points: the lowest and the highest of equal stretches, and the last.

    Example:
        >>> thinned([(0, 1), (1, 9), (2, 0), (3, 4), (4, 4), (5, 6), (6, 5)], most=5)
        [(1, 9), (2, 0), (3, 4), (5, 6), (6, 5)]
    """
    if len(points) <= most:
        return list(points)
    stretches = (most - 1) // 2
    chosen = {len(points) - 1}
    for number_of in range(stretches):
        start, end = (round(edge * (len(points) - 1) / stretches) for edge in (number_of, number_of + 1))
        part = range(start, end)
        chosen |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(chosen)]


def number(value: float) -> str:
    """Return a number in four significant digits, large ones with thin spaces.

    Example:
        >>> number(0.00012345), number(3.14159), number(125000)
        ('0.0001235', '3.142', '125\u2009000')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace(",", "\u2009")
    return f"{value:.4g}"


class _Axis:
    def __init__(self, first: float, last: float, low: float, high: float, *, log: bool) -> None:
        self.first, self.last, self.low, self.high, self.log = first, max(last, first + 1), low, high, log

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / (self.last - self.first) * _inner()

    def y(self, value: float) -> float:
        share = (
            math.log(value / self.low) / math.log(self.high / self.low)
            if self.log
            else (value - self.low) / (self.high - self.low)
        )
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    def grid(self) -> list[str]:
        parts = []
        for value in _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, 4):
            y = self.y(value)
            parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
        for step in _ticks(self.first, self.last, 5):
            parts.append(
                f'<text x="{self.x(step):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{number(round(step, 6))}</text>'
            )
        return parts


def _inner() -> int:
    return _WIDTH - _LEFT - _RIGHT


def _endless() -> list[str]:
    return [*_COLOURS] * 8


def _range(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Return a range that holds the values with some room: those of a spike of few points too."""
    low, high = min(values), max(values)
    if log:
        return (low / 1.15, high * 1.15) if high / low > 1.05 else (low / 2, high * 2)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - (room if low != 0 else 0.0), high + room


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers in a range, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    start, end = math.ceil(low / apart), math.floor(high / apart)
    return [round(n * apart, 12) for n in range(start, end + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1e3 else (1, 3) if high / low > 10 else (1, 1.5, 2, 3, 5, 7)
    return [f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high]
