"""Names of suites: the packaged ones, groups of them, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from harness.errors import InputError, unknown_name
from harness.files import packaged
from harness.suites.declaration import SuiteKind, read_yaml, validation_text
from harness.types import Record

OUTPUTS = "outputs"
"""Name of the suite whose prompts are those of the recorded outputs; no YAML declares it."""

GROUPS_FILE = "groups.yaml"
OTHERS = ("gate", "groups")
"""Packaged YAML files that declare no suite."""


class Group(Record):
    """Several suites under one name.

    Attributes:
        limit: about how many examples of each are taken, evenly over its subsets; all where it is
            None.
        judges: which judges the protocol asks for, in words.
    """

    title: str
    suites: tuple[str, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    judges: str | None = None


def known_suites() -> dict[str, Path]:
    """Return the packaged suites by name."""
    return {
        path.stem: path for path in sorted(packaged().glob("*.yaml")) if path.stem not in OTHERS
    }


def known_groups() -> dict[str, Group]:
    """Return the packaged groups by name.

    Raises:
        InputError: the file of groups is broken.
    """
    path = packaged(GROUPS_FILE)
    try:
        return {name: Group.model_validate(given) for name, given in read_yaml(path).items()}
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error


def resolve_names(names: Sequence[str]) -> dict[Path, int | None]:
    """Return the YAML files that ``names`` stand for, each with the most examples taken of it.

    A name is a group, a suite, or a path to YAML. ``outputs`` stands for no file and is passed
    over. A suite that is named beside a group that limits it is taken whole.

    Raises:
        InputError: unknown name (the known ones are listed).
    """
    known, groups = known_suites(), known_groups()
    found: dict[Path, int | None] = {}
    for name in names:
        if name == OUTPUTS:
            continue
        if name in groups:
            _add(found, {known[n]: groups[name].limit for n in groups[name].suites})
        elif name in known:
            _add(found, {known[name]: None})
        elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
            _add(found, {Path(name): None})
        else:
            raise unknown_name("suite", name, [*known, *groups, OUTPUTS])
    return found


def _add(found: dict[Path, int | None], more: Mapping[Path, int | None]) -> None:
    for path, limit in more.items():
        before = found.get(path, limit)
        found[path] = None if None in (before, limit) else max(before, limit)  # type: ignore[type-var]


def declared_name(path: Path) -> str:
    """Return the name that a YAML file declares; nothing else of it is looked at.

    Raises:
        InputError: unreadable file.
    """
    return str(read_yaml(path).get("name"))


def suite_kind(path: Path) -> SuiteKind:
    """Return what kind of suite a YAML file declares.

    Raises:
        InputError: unreadable file, or a kind that is not known.
    """
    given = read_yaml(path).get("kind", SuiteKind.PROMPTS)
    if given not in list(SuiteKind):
        raise InputError(f"{path}: kind: expected {' or '.join(SuiteKind)} (given: {given!r})")
    return SuiteKind(given)
