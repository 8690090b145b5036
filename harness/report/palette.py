"""One colour and one marker for each checkpoint, the same in every figure and table.

Colours are those of Okabe and Ito (2008), "Color Universal Design", without black, which is
invisible on a dark page; a neutral grey stands in. Markers differ before colours repeat, so that
ten checkpoints can be told apart without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8A8F98",
    "#F0E442",
)

# Each marker: matplotlib's code, and its outline in a box from -6 to 6. Upward and downward
# triangles are left out: they mean "better" and "worse".
MARKERS = (
    ("o", "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z"),
    ("s", "M-4.4-4.4H4.4V4.4H-4.4Z"),
    ("D", "M0-6L6 0L0 6L-6 0Z"),
    ("P", "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z"),
    (">", "M-4.5-5.5L5.5 0L-4.5 5.5Z"),
    ("X", "M-5-2.5L-2.5-5L0-2.5L2.5-5L5-2.5L2.5 0L5 2.5L2.5 5L0 2.5L-2.5 5L-5 2.5L-2.5 0Z"),
    ("<", "M4.5-5.5L-5.5 0L4.5 5.5Z"),
    ("p", "M0-5.6L5.3-1.7L3.3 4.5H-3.3L-5.3-1.7Z"),
    ("*", "M0-6L1.8-1.9L5.7-1.9L2.7 1L3.6 5L0 2.8L-3.6 5L-2.7 1L-5.7-1.9L-1.8-1.9Z"),
    ("h", "M0-5.6L4.9-2.8V2.8L0 5.6L-4.9 2.8V-2.8Z"),
)


@dataclass(frozen=True)
class Style:
    """How a checkpoint is drawn: colour, matplotlib marker, and the marker's SVG outline."""

    colour: str
    marker: str
    outline: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return the style of each checkpoint, by its place in the run."""
    found = {}
    for place, name in enumerate(names):
        marker, outline = MARKERS[place % len(MARKERS)]
        found[name] = Style(COLOURS[place % len(COLOURS)], marker, outline)
    return found
