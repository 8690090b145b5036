"""How far a judge was found to agree with people, kept for the reports of later runs."""

from __future__ import annotations

from pathlib import Path

from harness.files import cache_root, read_json, write_atomic
from harness.types import Estimate, Record

FOLDER = "judges"
"""Folder of the cache with what ``tbpo judge check`` measured, a file a judge's identity."""


class Checked(Record):
    """How far a judge was found to agree with people.

    Attributes:
        identity: the judge's, prompts included: a changed judge has to be measured again.
        measured_on: the data, in words.
    """

    identity: str
    agreement: Estimate
    measured_on: str


def _place(identity: str) -> Path:
    return cache_root() / FOLDER / f"{identity}.json"


def read_check(identity: str) -> Checked | None:
    """Return what was measured of a judge; None where nothing was."""
    path = _place(identity)
    return Checked.model_validate(read_json(path)) if path.is_file() else None


def keep_check(checked: Checked) -> None:
    """Keep what was measured of a judge in place of what was measured before."""
    write_atomic(_place(checked.identity), checked.model_dump_json(indent=1) + "\n")
