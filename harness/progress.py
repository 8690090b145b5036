"""Progress bars on stderr: counts and time left; silent where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(total: int, text: str, unit: str) -> Any:
    """Return a progress bar, a context manager with ``update(n)``."""
    return tqdm(total=total, desc=text, unit=unit, disable=None, mininterval=0.5)


def over(items: Sequence[T], text: str, unit: str) -> Iterator[T]:
    """Yield ``items`` under a bar that appears when they take more than two seconds."""
    yield from tqdm(items, desc=text, unit=unit, disable=None, leave=False, delay=2)
