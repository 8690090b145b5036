"""p values laid out: each as it is, and within its family."""

from __future__ import annotations

from harness.report.text import NBSP, counted, number
from harness.types import Corrected

ALPHA = 0.05
"""Level at which an adjusted p value is called significant."""


def p_text(p_value: float | None) -> str:
    """Return a p value with three decimals; the smallest as ``< 0.001``."""
    if p_value is None:
        return "none"
    return f"<{NBSP}0.001" if p_value < 0.001 else number(p_value, 3)


def p_pair(corrected: Corrected | None) -> str:
    """Return ``p 0.012, Holm 0.084 (7 tests)``; empty where nothing was tested."""
    if corrected is None or corrected.p_value is None:
        return ""
    p, holm = p_text(corrected.p_value), p_text(corrected.adjusted)
    return f"p{NBSP}{p}, Holm{NBSP}{holm} ({counted(corrected.family, 'test')})"


def rejected(corrected: Corrected | None) -> bool | None:
    """Return whether a test by itself finds a difference; None where nothing was tested."""
    if corrected is None or corrected.p_value is None:
        return None
    return corrected.p_value < ALPHA


def significant(corrected: Corrected) -> bool:
    """Return whether a difference stands after the correction for its family."""
    return corrected.adjusted is not None and corrected.adjusted < ALPHA


def p_data(corrected: Corrected | None) -> dict[str, str]:
    """Return the HTML data attributes of a test, in full precision."""
    if corrected is None:
        return {}
    found = {"p": corrected.p_value, "holm": corrected.adjusted}
    return {key: "" if p is None else repr(p) for key, p in found.items()}
