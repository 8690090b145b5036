"""Placing the labels of a scatter plot so that they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GAP = 6.0
"""Distance, in points, from a marker's centre to its label's nearest edge."""

WIDTH = 0.58
"""Mean width of a character as a share of the font size."""

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Directions a label may lie in, the preferred first: right, left, above, below, corners."""


@dataclass(frozen=True)
class Box:
    """An axis-aligned rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Return the area."""
        return (self.right - self.left) * (self.top - self.bottom)


def place(
    anchors: Sequence[tuple[float, float]],
    texts: Sequence[str],
    obstacles: Iterable[Box],
    frame: Box,
    size: float,
) -> list[tuple[float, float]]:
    """Return the centre of each label, in points, one after the other.

    Each takes the side on which it covers the least: obstacles, earlier labels, and whatever lies
    outside ``frame``. Among equals the preferred side wins, so the layout is deterministic.
    """
    taken = list(obstacles)
    centres = []
    for anchor, text in zip(anchors, texts, strict=True):
        options = [_label(anchor, text, side, size) for side in SIDES]
        best = min(options, key=lambda box: _cost(box, taken, frame))
        taken.append(best)
        centres.append(((best.left + best.right) / 2, (best.bottom + best.top) / 2))
    return centres


def _label(anchor: tuple[float, float], text: str, side: tuple[int, int], size: float) -> Box:
    half_width, half_height = len(text) * size * WIDTH / 2, size * 0.65
    x = anchor[0] + side[0] * (half_width + GAP)
    y = anchor[1] + side[1] * (half_height + GAP)
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    outside = box.area - box.overlap(frame)
    return sum(box.overlap(other) for other in taken) + 4 * outside
