"""Verdicts that were given before, by the hash of everything that decided them."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from harness.judges.llm.questions import Reading

log = logging.getLogger(__name__)


class VerdictCache:
    """A file of readings, one a line, that only grows; other processes may add to it.

    Only verdicts are kept: what failed is asked again. Lines that cannot be read, such as the one
    in which a writer was killed, count as not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _known(self) -> dict[str, Reading]:
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        readings = [_parsed(line) for line in lines]
        if broken := readings.count(None):
            log.warning("%s: %d unreadable lines are passed over", self.path.name, broken)
        return {reading.key: reading for reading in readings if reading is not None}

    def get(self, key: str) -> Reading | None:
        """Return the reading of a question that was answered before."""
        return self._known.get(key)

    def add(self, reading: Reading) -> None:
        """Keep a reading at once, if it holds a verdict."""
        if reading.verdict is None:
            return
        self._known[reading.key] = reading
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            stream.write(_line_break(self.path) + reading.model_dump_json().encode() + b"\n")


def _parsed(line: bytes) -> Reading | None:
    try:
        reading = Reading.model_validate_json(line)
    except ValidationError:
        return None
    return reading if reading.verdict is not None else None


def _line_break(path: Path) -> bytes:
    """Return what ends a torn last line, so that the next record stands on its own."""
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            return b""
        stream.seek(-1, 2)
        return b"" if stream.read(1) == b"\n" else b"\n"
