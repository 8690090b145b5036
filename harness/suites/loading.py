"""Suites loaded and checked: declaration, data and examples, before any engine starts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from harness.errors import DataError, InputError, unknown_name
from harness.files import sha256_file, sha256_json
from harness.suites.data import chosen, find_data, read_rows
from harness.suites.declaration import (
    Suite,
    SuiteKind,
    SuiteSpec,
    TrainingSuite,
    TrainingSuiteSpec,
    read_yaml,
    validation_text,
)
from harness.suites.names import (
    OUTPUTS,
    declared_name,
    known_groups,
    known_suites,
    resolve_names,
    suite_kind,
)
from harness.suites.rows import read_examples
from harness.types import Example
from harness.types.records import DataUsed


def read_spec(path: Path) -> SuiteSpec:
    """Return the declaration of a suite of prompts; its data are not looked at.

    Raises:
        InputError: unreadable file, unknown or wrong key.
    """
    declared = {key: value for key, value in read_yaml(path).items() if key != "kind"}
    try:
        return SuiteSpec.model_validate(declared)
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error


def load_suite(path: Path, data: Path | None = None) -> Suite:
    """Load and check one suite.

    Args:
        data: the user's own copy of its data, in place of the declared file.

    Raises:
        InputError: unknown or wrong key in the YAML, data that cannot be had or read.
        DataError: another hash than declared, a wrong row (file and line are named), a duplicate
            id or prompt, an empty suite.
    """
    spec = read_spec(path)
    found = find_data(spec, path.parent, data)
    rows = read_rows(found.path)
    made, left_out = read_examples(found.path, rows, spec)
    if not made:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in left_out.items())
        raise DataError(found.path, None, f"no row makes an example ({reasons})")
    try:
        kept = chosen(made, [_key(row) for row in made], spec.data, fewer=data is not None)
    except InputError as error:
        raise InputError(f"suite '{spec.name}', {found.path}: {error}") from error
    examples = tuple(example for row in kept for example in row)
    if data is None:
        _check_temperatures(path, spec, examples)
    used = DataUsed(
        source=found.source,
        sha256=sha256_file(found.path),
        rows=len(rows),
        left_out=dict(left_out),
    )
    return Suite(
        spec=spec,
        examples=examples,
        content_sha256=_content(spec, examples),
        used=None if found.own else used,
    )


def _key(row: Sequence[Example]) -> list[object]:
    """Return what a row is known by in any form of its file: its prompt, then its answers."""
    last = row[-1]
    return [[m.model_dump(mode="json") for m in last.messages], last.reference, last.rejected]


def _check_temperatures(path: Path, spec: SuiteSpec, examples: Sequence[Example]) -> None:
    subsets = {example.subset for example in examples if example.subset is not None}
    if strange := sorted(spec.temperatures.keys() - subsets):
        raise InputError(f"{path}: temperatures: {unknown_name('subset', strange[0], subsets)}")


def _content(spec: SuiteSpec, examples: Sequence[Example]) -> str:
    return sha256_json(
        [spec.model_dump(mode="json"), [e.model_dump(mode="json") for e in examples]]
    )


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


def lm_eval_suites(names: Sequence[str]) -> list[Path]:
    """Return the YAML files of suites that lm-eval runs among ``names``.

    Raises:
        InputError: unknown suite.
    """
    return [p for p in resolve_names(names) if suite_kind(p) == SuiteKind.LM_EVAL]


def load_suites(
    names: Sequence[str],
    limit: int | None = None,
    data: Mapping[str, Path] | None = None,
    max_tokens: int | None = None,
) -> list[Suite]:
    """Load the suites of prompts among ``names``.

    Names are groups, suites or paths; training suites among them are left to
    :func:`load_training_suite`, those of lm-eval to :func:`lm_eval_suites`, and ``outputs`` to
    :func:`harness.adapters.recorded.recorded_suite`.

    Args:
        limit: keeps the first examples of each.
        data: the user's own copies of suites' data, by suite.
        max_tokens: a lower limit on every answer, in tokens.

    Raises:
        InputError: unknown suite, no suite, two suites of one name, or data for a suite that is
            not among them.
    """
    found = resolve_names(names)
    if not found and OUTPUTS not in names:
        known = ", ".join([*known_suites(), *known_groups(), OUTPUTS])
        raise InputError(f"no suite given. Known: {known}.")
    copies = dict(data or {})
    _check_copies(copies, found)
    suites = []
    for path, most in found.items():
        if suite_kind(path) == SuiteKind.PROMPTS:
            suite = load_suite(path, copies.get(declared_name(path)))
            limits = [value for value in (limit, most) if value is not None]
            suites.append(cut(suite, min(limits, default=None), max_tokens))
    seen = [s.spec.name for s in suites]
    if len(set(seen)) < len(seen):
        raise InputError(f"two suites have one name: {', '.join(sorted(seen))}")
    return suites


def _check_copies(copies: Mapping[str, Path], found: Mapping[Path, int | None]) -> None:
    names = [declared_name(path) for path in found]
    if strange := sorted(set(copies) - set(names)):
        raise unknown_name("suite of --data", strange[0], names)


def cut(suite: Suite, limit: int | None, max_tokens: int | None) -> Suite:
    """Return a suite with fewer prompts, as `limited` chooses them, and shorter answers."""
    if limit is not None:
        suite = limited(suite, limit)
    sampling = suite.spec.sampling
    if max_tokens is None or sampling is None or sampling.max_tokens <= max_tokens:
        return suite
    shorter = sampling.model_copy(update={"max_tokens": max_tokens})
    spec = suite.spec.model_copy(update={"sampling": shorter})
    digest = sha256_json([suite.content_sha256, "max_tokens", max_tokens])
    return suite.model_copy(update={"spec": spec, "content_sha256": digest})


def limited(suite: Suite, limit: int) -> Suite:
    """Return the suite cut to about ``limit`` prompts, evenly over its subsets.

    The questions of one dialogue stay together and count as one.
    """
    taken: dict[str | None, int] = {}
    kept: list[Example] = []
    seen: dict[str, bool] = {}
    subsets = {e.subset for e in suite.examples}
    quota = -(-limit // len(subsets))
    for example in suite.examples:
        begun = example.unit or example.id
        if begun not in seen:
            taken[example.subset] = taken.get(example.subset, 0) + 1
            seen[begun] = taken[example.subset] <= quota
        if seen[begun]:
            kept.append(example)
    tag = f"{suite.content_sha256}:{limit}"
    digest = hashlib.sha256(tag.encode()).hexdigest()
    return suite.model_copy(update={"examples": tuple(kept), "content_sha256": digest})
