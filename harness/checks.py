"""What a suite names held against what is installed: metrics, judges, primary keys, versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from harness import plugins
from harness.errors import InputError, TbpoError
from harness.judges import Judge
from harness.metrics import ExampleChecker, Metric
from harness.suites import (
    Suite,
    SuiteKind,
    SuiteSpec,
    known_suites,
    load_suite,
    read_spec,
    suite_kind,
)

MEMBERS = {"metrics": ("info", "score"), "judges": ("info", "compare")}
"""What an object of each kind must have; ``harness.metrics`` and ``harness.judges`` say more."""


def load_metrics(suites: Sequence[Suite]) -> dict[str, Metric]:
    """Return the metrics that suites name, by name, each checked against the suites' examples.

    Raises:
        InputError: an unknown or unusable metric, a primary key that none produces, a key that
            two of one suite produce, or an example that a metric cannot score.
    """
    metrics = named_metrics(name for suite in suites for name in suite.spec.metrics)
    for suite in suites:
        check_keys(suite.spec, metrics)
        for name in suite.spec.metrics:
            metric = metrics[name]
            if isinstance(metric, ExampleChecker):
                metric.check_examples(suite.examples)
    return metrics


def named_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return metrics by name; raises as `load_metrics` on those that are unknown or unusable."""
    return {name: cast(Metric, _made("metrics", name)) for name in dict.fromkeys(names)}


def check_keys(spec: SuiteSpec, metrics: Mapping[str, Metric]) -> None:
    """Refuse a primary key that no metric of the suite produces, and a key that two produce.

    Raises:
        InputError: names suite and key.
    """
    makers: dict[str, str] = {}
    for name in spec.metrics:
        for info in metrics[name].info:
            other = makers.setdefault(info.key, name)
            if other != name:
                raise InputError(
                    f"suite {spec.name}: metric key '{info.key}' is produced by both '{other}' and "
                    f"'{name}'. Name one of them."
                )
    if wrong := [key for key in spec.primary if key not in makers]:
        raise InputError(
            f"suite {spec.name}: primary metric '{wrong[0]}' is produced by none of its "
            f"metrics. They produce: {', '.join(sorted(makers))}."
        )


def load_judges(suites: Sequence[Suite]) -> dict[str, Judge]:
    """Return the judges that suites name, by name.

    Raises:
        InputError: as `named_judges`.
    """
    return named_judges(name for suite in suites for name in suite.spec.judges)


def named_judges(names: Iterable[str]) -> dict[str, Judge]:
    """Return judges by name.

    Raises:
        InputError: an unknown or unusable judge, or one whose verdicts carry another name.
    """
    judges: dict[str, Judge] = {}
    for name in dict.fromkeys(names):
        judges[name] = cast(Judge, _made("judges", name))
        if (own := judges[name].info.name) != name:
            raise InputError(
                f"judge '{name}' calls itself '{own}', and its verdicts would be lost: give its "
                "info and its entry point one name."
            )
    return judges


def _made(group: str, name: str) -> object:
    """Return the object that a registered class makes, with the members of its kind.

    Raises:
        InputError: it is unknown, cannot be imported or made, or lacks a member.
    """
    found = plugins.load(group, name)
    try:
        made = found()  # type: ignore[operator]
    except TbpoError:
        raise
    except Exception as error:  # whatever another package's code raises
        problem = f"{type(error).__name__}: {error}"
        raise InputError(f"{group} '{name}' cannot be made without arguments: {problem}") from error
    if lacking := [member for member in MEMBERS[group] if not hasattr(made, member)]:
        raise InputError(
            f"{group} '{name}' lacks '{lacking[0]}': harness/{group}/__init__.py says what one has."
        )
    return made


def check_version(suite: Suite) -> None:
    """Refuse other content under the name and version of a packaged suite.

    Of a suite whose data are not packaged, or are the user's own copy, the declaration counts.

    Raises:
        InputError: names suite and version.
    """
    path = known_suites().get(suite.spec.name)
    if path is None or suite_kind(path) is not SuiteKind.PROMPTS:
        return
    packaged = read_spec(path)
    if packaged.version == suite.spec.version and not _same(suite, packaged, path):
        raise InputError(
            f"suite {suite.spec.name}: the packaged suite of this name has another content as "
            f"version {packaged.version}. Raise the version, or give the suite another name."
        )


def _same(suite: Suite, packaged: SuiteSpec, path: Path) -> bool:
    if suite.used is not None or packaged.data.path is None:
        return suite.spec == packaged
    return suite.content_sha256 == load_suite(path).content_sha256
