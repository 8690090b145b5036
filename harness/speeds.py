"""How fast this machine was, kept in the cache so that the next run can be planned."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from harness.errors import InputError
from harness.files import cache_root, read_json, sha256_json, write_atomic

FILE = "speeds.json"
SHORTEST_S = 1.0
"""Work done faster than this says too little."""


def _key(about: dict[str, Any]) -> str:
    return sha256_json(about)[:16]


def _known() -> dict[str, float]:
    try:
        found = read_json(cache_root() / FILE)
    except InputError:  # absent or damaged: nothing is known
        return {}
    return found if isinstance(found, dict) else {}


def speed(**about: Any) -> float | None:
    """Return units a second as last measured for ``about``; None where nothing was."""
    found = _known().get(_key(about))
    return found if isinstance(found, int | float) and found > 0 else None


def remember_speed(units: float, seconds: float, **about: Any) -> None:
    """Keep how fast something was; a cache that cannot be written is no error."""
    if seconds < SHORTEST_S or units <= 0:
        return
    with contextlib.suppress(OSError):
        known = _known() | {_key(about): round(units / seconds, 3)}
        write_atomic(cache_root() / FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")
