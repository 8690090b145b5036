"""The records of a run, checked against its manifest and reachable by what they are about.

Records meet by suite, checkpoint, example and sample; their place in a file means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

from harness.errors import InputError, RunFolderError
from harness.stats.bootstrap import Key
from harness.types import (
    REFERENCE,
    Example,
    Form,
    Generation,
    Judgment,
    Outcome,
    RunManifest,
    Score,
    SuiteCard,
)

Answer = tuple[str, int]
"""Example id and sample index of a generation."""

Examples = Mapping[str, Sequence[Example]]
"""Examples of each suite, by its name."""


class Pair(NamedTuple):
    """Whose answers a judge compared; the candidate comes later in the manifest's order.

    The reference answers come before every checkpoint, so that they are always the baseline.
    """

    suite: str
    judge: str
    candidate: str
    baseline: str


@dataclass(frozen=True)
class AlignedRun:
    """A run's records: generations, scores and judgments, each keyed by what it is about."""

    manifest: RunManifest
    examples: Examples
    generations: Mapping[tuple[str, str], Mapping[Answer, Generation]]
    scores: Mapping[tuple[str, str, str], Mapping[Key, Score]]
    judgments: Mapping[Pair, Mapping[str, Judgment]]

    @cached_property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints in the manifest's order."""
        return tuple(loadable.spec.name for loadable in self.manifest.checkpoints)

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """What each checkpoint is, by name."""
        return {loadable.spec.name: loadable.form for loadable in self.manifest.checkpoints}

    def answers(self, suite: str, checkpoint: str) -> Mapping[Answer, Generation]:
        """Return the answers of one checkpoint to one suite."""
        return self.generations.get((suite, checkpoint), {})

    @cached_property
    def units(self) -> Mapping[str, Mapping[str, str]]:
        """The independent unit of each example, by suite: itself, or its dialogue."""
        return {
            suite: {e.id: e.unit or e.id for e in found} for suite, found in self.examples.items()
        }

    def asked(self, card: SuiteCard) -> set[Answer]:
        """Return the answers that each checkpoint should have given to a suite."""
        return {(e.id, s) for e in self.examples[card.name] for s in range(card.samples)}

    def expected_pairs(self) -> Iterator[Pair]:
        """Yield each pair that each judge of each suite should have compared."""
        blind = {judge.name for judge in self.manifest.judges if not judge.judges_reference}
        some = {judge.name: judge.pairs for judge in self.manifest.judges}
        for card in self.manifest.suites:
            for judge in card.judges:
                reference = [REFERENCE] if card.has_reference and judge not in blind else []
                for baseline, candidate in combinations([*reference, *self.checkpoints], 2):
                    judged = some.get(judge)
                    if judged is None or (card.name, candidate, baseline) in judged:
                        yield Pair(card.name, judge, candidate, baseline)

    def judged_examples(self, pair: Pair) -> list[str]:
        """Return the examples a verdict is expected on: all, or those with a reference answer."""
        rows = self.examples[pair.suite]
        return [e.id for e in rows if pair.baseline != REFERENCE or e.reference is not None]


def align(
    manifest: RunManifest,
    scores: Iterable[Score],
    judgments: Iterable[Judgment],
    generations: Iterable[Generation],
    examples: Examples,
) -> AlignedRun:
    """Return the records of a run, checked and keyed.

    Raises:
        InputError: examples of a suite are not given, or are not those of the run.
        RunFolderError: a record names what the manifest does not know, comes from other weights,
            occurs twice, or is gone since the run was completed.
    """
    _check_examples(manifest, examples)
    check = _Check.against(manifest, examples)
    run = AlignedRun(
        manifest=manifest,
        examples=examples,
        generations=_keyed(map(check.generation, generations)),
        scores=_keyed(map(check.score, scores)),
        judgments=_keyed(map(check.judgment, judgments)),
    )
    _check_counts(manifest, {"scores": run.scores, "judgments": run.judgments})
    return run


def _check_counts(
    manifest: RunManifest, groups: Mapping[str, Mapping[Any, Mapping[Any, Any]]]
) -> None:
    """Refuse a run that has lost records since it was completed."""
    for name, keyed in groups.items():
        present = sum(map(len, keyed.values()))
        counts = manifest.counts.get(name)
        if counts is not None and present != counts.present:
            raise RunFolderError(
                f"the run was completed with {counts.present} {name} and now holds {present}. "
                f"{_REPEAT}"
            )


Group = TypeVar("Group", bound=tuple[str, ...])
Place = TypeVar("Place")
Item = TypeVar("Item", Generation, Score, Judgment)


def _keyed(rows: Iterable[tuple[Group, Place, Item]]) -> dict[Group, dict[Place, Item]]:
    """Return records by group and place; a second record for one place is refused."""
    grouped: dict[Group, dict[Place, Item]] = {}
    for group, place, record in rows:
        kept = grouped.setdefault(group, {})
        if place in kept:
            raise RunFolderError(
                f"{_kind(record)} {' / '.join(group)} for {place} is recorded twice. {_REPEAT}"
            )
        kept[place] = record
    return grouped


def _check_examples(manifest: RunManifest, examples: Examples) -> None:
    for card in manifest.suites:
        if card.name not in examples:
            raise InputError(f"suite '{card.name}' was run, but its examples are not given")
        found = len(examples[card.name])
        if found != card.examples:
            raise InputError(
                f"suite '{card.name}' had {card.examples} examples in the run, but {found} are "
                "given. Load it in the version and with the limit of the run."
            )


@dataclass(frozen=True)
class _Check:
    """The names that a run's records may use.

    Attributes:
        order: rank of each side of a judgment; the reference answers come first.
        weights: weight hash of each checkpoint.
    """

    order: Mapping[str, int]
    weights: Mapping[str, str]
    cards: Mapping[str, SuiteCard]
    metrics: Mapping[str, frozenset[str]]
    examples: Mapping[str, frozenset[str]]

    @classmethod
    def against(cls, manifest: RunManifest, examples: Examples) -> _Check:
        weights = {c.spec.name: c.weights_sha256 for c in manifest.checkpoints}
        cards = {card.name: card for card in manifest.suites}
        return cls(
            order={name: rank for rank, name in enumerate([REFERENCE, *weights])},
            weights=weights,
            cards=cards,
            metrics={name: frozenset(m.key for m in card.metrics) for name, card in cards.items()},
            examples={name: frozenset(e.id for e in examples[name]) for name in cards},
        )

    def generation(self, record: Generation) -> tuple[tuple[str, str], Answer, Generation]:
        self._place(record, record.checkpoint)
        if record.weights_sha256 != self.weights[record.checkpoint]:
            raise _foreign(record, f"weights of '{record.checkpoint}'", record.weights_sha256)
        return (record.suite, record.checkpoint), (record.example_id, record.sample), record

    def score(self, record: Score) -> tuple[tuple[str, str, str], Key, Score]:
        self._place(record, record.checkpoint)
        if record.metric not in self.metrics[record.suite]:
            raise _foreign(record, f"metric of suite '{record.suite}'", record.metric)
        group = (record.suite, record.metric, record.checkpoint)
        return group, (record.example_id, record.sample), record

    def judgment(self, record: Judgment) -> tuple[Pair, str, Judgment]:
        for side in {record.candidate, record.baseline} - {REFERENCE}:
            self._place(record, side)
        if record.judge not in self.cards[record.suite].judges:
            raise _foreign(record, f"judge of suite '{record.suite}'", record.judge)
        if record.candidate == record.baseline:
            raise RunFolderError(f"a judgment compares '{record.candidate}' with itself. {_REPEAT}")
        if self.order[record.candidate] < self.order[record.baseline]:
            record = _swapped(record)
        pair = Pair(record.suite, record.judge, record.candidate, record.baseline)
        return pair, record.example_id, record

    def _place(self, record: Generation | Score | Judgment, checkpoint: str) -> None:
        if record.suite not in self.cards:
            raise _foreign(record, "suite", record.suite)
        if record.example_id not in self.examples[record.suite]:
            raise _foreign(record, f"example of suite '{record.suite}'", record.example_id)
        if checkpoint not in self.weights:
            raise _foreign(record, "checkpoint", checkpoint)


_REPEAT = "The run folder was changed by hand or is damaged: run it again into another folder."


def _kind(record: Generation | Score | Judgment) -> str:
    return type(record).__name__.lower()


def _foreign(record: Generation | Score | Judgment, kind: str, name: str) -> RunFolderError:
    return RunFolderError(
        f"a {_kind(record)} names the {kind} '{name}', which the manifest does not know: it "
        f"belongs to another run. {_REPEAT}"
    )


_OPPOSITE = {Outcome.WIN: Outcome.LOSS, Outcome.LOSS: Outcome.WIN}


def _swapped(judgment: Judgment) -> Judgment:
    """Return the same verdict with candidate and baseline exchanged."""
    preference = judgment.preference
    changed = {
        "candidate": judgment.baseline,
        "baseline": judgment.candidate,
        "outcome": _OPPOSITE.get(judgment.outcome, judgment.outcome),
        "preference": None if preference is None else 1 - preference,
        "length_difference": -judgment.length_difference,
    }
    return judgment.model_copy(update=changed)
