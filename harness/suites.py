"""Suites: a YAML declaration and a JSONL file, loaded and checked before any engine starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from harness.errors import DataError, InputError, unknown_name
from harness.files import json_lines, packaged, sha256_json
from harness.types import (
    Example,
    Message,
    Record,
    Role,
    Sampling,
    StabilityParameters,
    TrainingCard,
    TrainingSource,
)
from harness.types.records import unset


class SuiteKind(StrEnum):
    """What a suite looks at: answers to prompts (the default), or the logs of training."""

    PROMPTS = "prompts"
    TRAINING = "training"


class DataRef(Record):
    """Where a suite's examples are, relative to its YAML, and under which licence.

    The file is JSONL, plain or gzip.
    """

    path: str
    licence: str


class Fields(Record):
    """Which fields of a data row hold what.

    Attributes:
        user: a template for rows without ``messages``: ``{title}`` and the like stand for the
            row's own fields.
        reference, rejected: fields with a good and a worse answer.
        id: field with the example's id, text or a whole number, if not ``id``.
        instructions: field with the verifiable instructions, if not ``instructions``.
        arguments: field with the instructions' arguments, one mapping each, where the field of
            instructions lists ids alone, as IFEval's own data do (``instruction_id_list`` and
            ``kwargs``). An argument that is null is not given.
    """

    user: str | None = None
    reference: str | None = None
    rejected: str | None = None
    # Left out of a dump where unset: suites that do without keep their published hash.
    id: str | None = Field(default=None, exclude_if=unset)
    instructions: str | None = Field(default=None, exclude_if=unset)
    arguments: str | None = Field(default=None, exclude_if=unset)


class SuiteSpec(Record):
    """A suite's declaration.

    Attributes:
        metrics, judges: names registered under ``tbpo.metrics`` and ``tbpo.judges``.
        primary: metric keys that the gate and the summary look at.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    title: str
    description: str
    data: DataRef
    fields: Fields = Fields()
    sampling: Sampling
    metrics: tuple[str, ...] = Field(min_length=1)
    judges: tuple[str, ...] = ()
    primary: tuple[str, ...] = Field(min_length=1)
    citation: str = ""


class Suite(Record):
    """A declaration with its examples and the hash of both."""

    spec: SuiteSpec
    examples: tuple[Example, ...]
    content_sha256: str


class TrainingSuiteSpec(Record):
    """Declaration of a training suite: no prompts, only how the checkpoints' logs are read."""

    kind: Literal[SuiteKind.TRAINING]
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    title: str
    description: str
    parameters: StabilityParameters = StabilityParameters()
    citation: str = ""


class TrainingSuite(Record):
    """A training suite's declaration and its hash."""

    spec: TrainingSuiteSpec
    content_sha256: str

    def card(self, sources: Iterable[TrainingSource]) -> TrainingCard:
        """Return the suite as it is run on ``sources``."""
        return TrainingCard(
            name=self.spec.name,
            version=self.spec.version,
            title=self.spec.title,
            content_sha256=self.content_sha256,
            parameters=self.spec.parameters,
            sources=tuple(sources),
        )


GROUPS: dict[str, tuple[str, ...]] = {
    "mini": ("instruction_following", "hh", "summarization", "diversity", "training_stability")
}
"""Names that stand for several suites."""

OUTPUTS = "outputs"
"""Name of the suite whose prompts are those of the recorded outputs; no YAML declares it."""


def validation_text(error: ValidationError) -> str:
    """Return a validation error as one line: field, problem, given value."""
    parts = []
    for problem in error.errors():
        where = ".".join(str(p) for p in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            parts.append(f"unknown key '{where}'")
        elif problem["type"] == "missing":
            parts.append(f"'{where}' is missing")
        else:
            parts.append(f"{where}: {problem['msg']} (given: {str(problem['input'])[:80]!r})")
    return "; ".join(parts)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML mapping; an InputError says where the file is broken."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a mapping of keys, not {type(value).__name__}")
    return value


def known_suites() -> dict[str, Path]:
    """Return the packaged suites by name."""
    return {path.stem: path for path in sorted(packaged().glob("*.yaml")) if path.stem != "gate"}


def resolve_names(names: Sequence[str]) -> list[Path]:
    """Return the YAML files that ``names`` stand for: groups, suite names, or paths to YAML.

    ``outputs`` stands for no file and is passed over.

    Raises:
        InputError: unknown name (the known ones are listed).
    """
    known = known_suites()
    found: dict[Path, None] = {}
    for name in names:
        if name == OUTPUTS:
            continue
        if name in GROUPS:
            found |= dict.fromkeys(known[n] for n in GROUPS[name])
        elif name in known:
            found[known[name]] = None
        elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
            found[Path(name)] = None
        else:
            raise unknown_name("suite", name, [*known, *GROUPS, OUTPUTS])
    return list(found)


def suite_kind(path: Path) -> SuiteKind:
    """Return what kind of suite a YAML file declares.

    Raises:
        InputError: unreadable file, or a kind that is not known.
    """
    given = read_yaml(path).get("kind", SuiteKind.PROMPTS)
    if given not in list(SuiteKind):
        raise InputError(f"{path}: kind: expected {' or '.join(SuiteKind)} (given: {given!r})")
    return SuiteKind(given)


def _messages(row: dict[str, Any], fields: Fields) -> list[dict[str, Any]]:
    if fields.user is None:
        if "messages" not in row:
            raise KeyError("messages")
        given: list[dict[str, Any]] = row["messages"]
        return given
    return [{"role": Role.USER, "content": fields.user.format_map(row)}]


def _check_roles(messages: Sequence[Message]) -> None:
    roles = [m.role for m in messages if m.role != Role.SYSTEM]
    for place, role in enumerate(roles):
        expected = Role.USER if place % 2 == 0 else Role.ASSISTANT
        if role != expected:
            raise ValueError(f"turn {place + 1} is by '{role}', expected '{expected}'")
    if not roles or roles[-1] != Role.USER:
        raise ValueError("the last turn must be the user's")
    if any(not m.content.strip() for m in messages):
        raise ValueError("a turn is empty")


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"an id is text or a whole number, found {type(value).__name__}")
    return str(value)


def _instructions(row: dict[str, Any], fields: Fields) -> Any:
    names = row[fields.instructions or "instructions"]
    if fields.arguments is None:
        return names
    arguments = row[fields.arguments]
    if not isinstance(names, list) or not isinstance(arguments, list):
        raise ValueError(f"'{fields.instructions}' and '{fields.arguments}' must be lists")
    if len(names) != len(arguments):
        raise ValueError(f"{len(names)} instructions have {len(arguments)} sets of arguments")
    return [
        {"id": name, "kwargs": _given(kwargs)}
        for name, kwargs in zip(names, arguments, strict=True)
    ]


def _given(kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, dict):
        raise ValueError(f"an instruction's arguments must be a mapping, found {kwargs!r}")
    return {key: value for key, value in kwargs.items() if value is not None}


def _example(row: dict[str, Any], fields: Fields) -> Example:
    values: dict[str, Any] = {key: row[key] for key in ("id", "subset", "expected") if key in row}
    if fields.id is not None:
        values["id"] = _id(row[fields.id])
    if fields.instructions or fields.arguments or "instructions" in row:
        values["instructions"] = _instructions(row, fields)
    values["messages"] = _messages(row, fields)
    for target in ("reference", "rejected"):
        source = getattr(fields, target)
        if source is not None:
            values[target] = row[source]
    example = Example.model_validate(values)
    _check_roles(example.messages)
    return example


def _examples(path: Path, fields: Fields) -> tuple[Example, ...]:
    examples: dict[str, Example] = {}
    for number, row in json_lines(path):
        try:
            example = _example(row, fields)
        except KeyError as error:
            raise DataError(path, number, f"field {error} is missing") from error
        except (AttributeError, IndexError) as error:
            problem = f"the template 'fields.user' does not fit: {error}"
            raise DataError(path, number, problem) from error
        except ValidationError as error:
            raise DataError(path, number, validation_text(error)) from error
        except ValueError as error:
            raise DataError(path, number, str(error)) from error
        if example.id in examples:
            raise DataError(path, number, f"example id '{example.id}' occurs twice")
        examples[example.id] = example
    if not examples:
        raise DataError(path, None, "the suite is empty: no example found")
    return tuple(examples.values())


def load_suite(path: Path) -> Suite:
    """Load and check one suite.

    Raises:
        InputError: unknown or wrong key in the YAML, unreadable file.
        DataError: a wrong row (file and line are named), a duplicate id, an empty suite.
    """
    declared = {key: value for key, value in read_yaml(path).items() if key != "kind"}
    try:
        spec = SuiteSpec.model_validate(declared)
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error
    examples = _examples(path.parent / spec.data.path, spec.fields)
    content = [spec.model_dump(mode="json"), [e.model_dump(mode="json") for e in examples]]
    return Suite(spec=spec, examples=examples, content_sha256=sha256_json(content))


def load_training_suite(names: Sequence[str]) -> TrainingSuite | None:
    """Load the training suite among ``names``, which may hold others; None where there is none.

    Raises:
        InputError: unknown suite, unknown or wrong key in the YAML, or two training suites.
    """
    paths = [p for p in resolve_names(names) if suite_kind(p) == SuiteKind.TRAINING]
    if len(paths) > 1:
        listed = ", ".join(map(str, paths))
        raise InputError(f"a run reads training logs in one way; two were given: {listed}")
    return _training_suite(paths[0]) if paths else None


def _training_suite(path: Path) -> TrainingSuite:
    try:
        spec = TrainingSuiteSpec.model_validate(read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error
    return TrainingSuite(spec=spec, content_sha256=sha256_json(spec.model_dump(mode="json")))


def load_suites(names: Sequence[str], limit: int | None = None) -> list[Suite]:
    """Load the suites of prompts among ``names``; ``limit`` keeps the first examples of each.

    Names are groups, suites or paths; training suites among them are left to
    :func:`load_training_suite`, and ``outputs`` to
    :func:`harness.adapters.recorded.recorded_suite`.

    Raises:
        InputError: unknown suite, no suite, or two suites of one name.
    """
    paths = resolve_names(names)
    if not paths and OUTPUTS not in names:
        known = ", ".join([*known_suites(), *GROUPS, OUTPUTS])
        raise InputError(f"no suite given. Known: {known}.")
    suites = [load_suite(path) for path in paths if suite_kind(path) == SuiteKind.PROMPTS]
    seen = [s.spec.name for s in suites]
    if len(set(seen)) < len(seen):
        raise InputError(f"two suites have one name: {', '.join(sorted(seen))}")
    return suites if limit is None else [limited(s, limit) for s in suites]


def limited(suite: Suite, limit: int) -> Suite:
    """Return the suite cut to about ``limit`` examples, evenly over its subsets."""
    taken: dict[str | None, int] = {}
    kept = []
    subsets = {e.subset for e in suite.examples}
    quota = -(-limit // len(subsets))
    for example in suite.examples:
        taken[example.subset] = taken.get(example.subset, 0) + 1
        if taken[example.subset] <= quota:
            kept.append(example)
    tag = f"{suite.content_sha256}:{limit}"
    digest = hashlib.sha256(tag.encode()).hexdigest()
    return Suite(spec=suite.spec, examples=tuple(kept), content_sha256=digest)
