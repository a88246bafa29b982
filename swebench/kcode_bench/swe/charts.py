"""Plots as SVG text within a page: no script, colours from the page's styles, and every figure also in words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH, LABELS, NUMBERS = 640, 240, 80
ROW, PLOT, BELOW = 24, 140, 36
MAX_LABEL = 36
MAX_BINS = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a bar chart. `good` is the part of `total` in the colour of success; `text` stands behind the bar."""

    label: str
    good: float
    total: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """One instance's value in a histogram, not negative."""

    value: float
    is_good: bool


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Lying bars, all to the scale of the longest."""
    scale = (WIDTH - LABELS - NUMBERS) / max((row.total for row in rows), default=1)
    parts: list[str] = []
    for number, row in enumerate(rows):
        top, good, whole = number * ROW, row.good * scale, row.total * scale
        label = row.label if len(row.label) <= MAX_LABEL else f"{row.label[: MAX_LABEL - 1]}…"
        parts.append(_text(LABELS - 8, top + 16, label, "end", row.label))
        parts.append(_box(LABELS, top + 4, good, ROW - 8, "good"))
        parts.append(_box(LABELS + good, top + 4, whole - good, ROW - 8, "rest"))
        parts.append(_text(LABELS + whole + 6, top + 16, row.text, "start"))
    return _figure(title, max(len(rows), 1) * ROW, parts or [_text(LABELS, 16, "nothing to show", "start")])


def histogram(title: str, points: Sequence[Point], unit: str) -> str:
    """How many instances lie between the marks, the good ones below. A value on a mark counts to its right."""
    if not points:
        return _figure(title, ROW, [_text(LABELS, 16, "nothing to show", "start")])
    step = nice_step(max(point.value for point in points))
    bins = [[0, 0] for _ in range(floor(max(point.value for point in points) / step) + 1)]
    for point in points:
        bins[floor(point.value / step)][point.is_good] += 1
    width, tall = (WIDTH - 60) / len(bins), (PLOT - 20) / max(map(sum, bins))
    parts: list[str] = []
    for number, (rest, good) in enumerate(bins):
        left = 30 + number * width
        parts.append(_box(left, PLOT - good * tall, width - 2, good * tall, "good"))
        parts.append(_box(left, PLOT - (good + rest) * tall, width - 2, rest * tall, "rest"))
        if good + rest:
            parts.append(_text(left + width / 2, PLOT - (good + rest) * tall - 4, str(good + rest), "middle"))
        parts.append(_text(left, PLOT + 14, mark(number * step), "middle"))
    parts.append(_text(30 + len(bins) * width, PLOT + 14, mark(len(bins) * step), "middle"))
    parts.append(_text(WIDTH / 2, PLOT + 30, unit, "middle"))
    return _figure(title, PLOT + BELOW, parts)


def nice_step(most: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten of which at most MAX_BINS - 1 go into `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** floor(log10(most / MAX_BINS))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if most / (factor * power) < MAX_BINS - 1)


def mark(value: float) -> str:
    """A number in few characters: 1500 is 1.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _figure(title: str, height: float, parts: Sequence[str]) -> str:
    name = html.escape(title)
    head = f'<svg viewBox="0 0 {WIDTH} {ceil(height)}" role="img" aria-label="{name}">'
    return f"<figure><figcaption>{name}</figcaption>{head}{''.join(parts)}</svg></figure>"


def _box(left: float, top: float, width: float, height: float, kind: str) -> str:
    if width <= 0 or height <= 0:
        return ""
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _text(left: float, top: float, text: str, anchor: str, whole: str = "") -> str:
    more = f"<title>{html.escape(whole)}</title>" if whole and whole != text else ""
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{html.escape(text)}{more}</text>'
