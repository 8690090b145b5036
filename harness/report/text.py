"""Numbers, names and lists as a reader sees them; the full precision stays beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from harness.types import SHARE, Estimate

NBSP = "\u00a0"
MINUS = "\u2212"
NO_DATA = "no data"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Shown:
    """An estimate in words: value with unit, interval in brackets, how many observations."""

    value: str
    interval: str
    counts: str

    @property
    def line(self) -> str:
        """Value and interval on one line."""
        return f"{self.value} {self.interval}".strip()


def clean(text: str) -> str:
    """Return ``text`` with one kind of line end and without control characters."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def joined(parts: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def counted(number: int, noun: str) -> str:
    """Return ``1 prompt`` or ``2 prompts``."""
    return f"{number:,}{NBSP}{noun}{'' if number == 1 else 's'}"


def number(value: float, places: int, *, signed: bool = False) -> str:
    """Return ``value`` with a true minus sign; zero has no sign."""
    rounded = round(value, places) + 0.0
    sign = "+" if signed and rounded != 0 else ""
    return f"{rounded:{sign}.{places}f}".replace("-", MINUS)


def places_for(value: float, low: float | None, high: float | None) -> int:
    """Return the digits after the point, 0 to 4, that an interval's width justifies.

    The width is shown with two significant digits; without a width, the value with three.
    """
    width = 0.0 if low is None or high is None else high - low
    scale = width * 10 if width > 0 else abs(value)
    return min(4, max(0, 2 - math.floor(math.log10(scale)))) if scale > 0 else 0


def counts_of(estimate: Estimate) -> str:
    """Return the observations behind an estimate, the prompts if fewer, and what is missing."""
    parts = [f"n{NBSP}={NBSP}{estimate.n}"]
    if estimate.clusters != estimate.n:
        parts.append(counted(estimate.clusters, "prompt"))
    if estimate.missing:
        parts.append(f"{estimate.missing}{NBSP}missing")
    return ", ".join(parts)


def _suffix(unit: str, difference: bool) -> str:
    if unit != SHARE:
        return ""
    return f"{NBSP}pp" if difference else f"{NBSP}%"


def shown(
    estimate: Estimate | None, unit: str, *, difference: bool = False, null: float | None = None
) -> Shown:
    """Return an estimate as text: shares in percent, their differences in percentage points.

    Args:
        null: value that the reader compares bounds with, 0 for a difference: a bound that is not
            equal to it is shown with enough digits, of four at most, not to look so.
    """
    if estimate is None:
        return Shown(NO_DATA, "", "not computed")
    if estimate.value is None:
        return Shown(NO_DATA, "", counts_of(estimate))
    factor = 100.0 if unit == SHARE else 1.0
    value = estimate.value * factor
    low = None if estimate.low is None else estimate.low * factor
    high = None if estimate.high is None else estimate.high * factor
    places = places_for(value, low, high)
    exact = max(places, 1) if unit == SHARE else places
    text = number(value, exact, signed=difference) + _suffix(unit, difference)
    null = 0.0 if difference else null
    if null is not None:
        places = _telling(
            places, [bound for bound in (low, high) if bound is not None], null * factor
        )
    return Shown(text, _interval(low, high, places, signed=difference), counts_of(estimate))


def _telling(places: int, bounds: Sequence[float], null: float) -> int:
    """Return the digits at which no bound looks like the null that it is not."""
    while places < 4 and any(b != null and round(b, places) == round(null, places) for b in bounds):
        places += 1
    return places


def _interval(low: float | None, high: float | None, places: int, *, signed: bool) -> str:
    if low is None or high is None:
        return "[no interval]"
    return f"[{number(low, places, signed=signed)},{NBSP}{number(high, places, signed=signed)}]"


def short(name: str, width: int) -> str:
    """Return ``name`` in at most ``width`` characters: its head and its tail."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}\u2026{name[head + 1 - width :]}"


def short_names(names: Sequence[str], width: int = 20) -> dict[str, str]:
    """Return a short label for each name.

    Where a name is too long, all are cut to the part in which they differ; labels that are still
    equal carry their place.
    """
    cores = list(names)
    if any(len(name) > width for name in names) and len(names) > 1:
        cores = _differing(names)
    labels = [short(core, width) for core in cores]
    return {
        name: label if labels.count(label) == 1 else f"{place}: {short(core, width - 4)}"
        for place, (name, core, label) in enumerate(zip(names, cores, labels, strict=True), 1)
    }


def _differing(names: Sequence[str]) -> list[str]:
    """Return the names without the parts, between separators, that all share at either end."""
    parts = [re.split(r"(?<=[-_.+])", name) for name in names]
    head = _shared(parts)
    tail = _shared([row[head:][::-1] for row in parts])
    cut = ["".join(row[head : len(row) - tail]).strip("-_.+") for row in parts]
    return [core or name for core, name in zip(cut, names, strict=True)]


def _shared(rows: Sequence[Sequence[str]]) -> int:
    """Return how many leading parts all rows have in common."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
