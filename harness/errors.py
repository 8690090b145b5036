"""Exceptions whose message says what was given, what was expected and what to do.

Every error a user can cause derives from :class:`TbpoError`; the command line prints its text
and exits with :attr:`TbpoError.exit_code`. Anything else that escapes is a defect.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class TbpoError(Exception):
    """An error with a message meant for the user."""

    exit_code = 2


class InputError(TbpoError):
    """A file, option or name given by the user cannot be used."""


class DataError(InputError):
    """A record of a data file is wrong; the message leads with ``file:line``."""

    def __init__(self, path: Path | str, line: int | None, problem: str) -> None:
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{where}: {problem}")


class CheckpointError(InputError):
    """A checkpoint cannot be loaded, or is not what it claims to be."""


class RunFolderError(InputError):
    """A run folder is unreadable, incomplete or belongs to another run."""


class EngineError(TbpoError):
    """The inference engine could not start, or answered for another checkpoint."""

    exit_code = 4


class EngineDiedError(EngineError):
    """The engine stopped working while it answered; started again, it may go on."""


class TrainingError(TbpoError):
    """Training stopped: its data or its loss cannot be used."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not registered: lists the known ones, nearest first."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) or "none"
    return InputError(f"unknown {kind} '{name}'.{hint} Known: {listed}.")
