"""Training data in the evaluation, laid out: a row for each checkpoint and suite, and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.report.text import NBSP, clean, counted, joined, number
from harness.types import Comparison, Contamination, DataOverlap, OverlapKind, SuiteOverlap

TITLE = "Training data in the evaluation"

NAMED = 5
"""Examples of a suite that are named; manifest and JSON have all of them."""

HASH_SHOWN = 12

KINDS = {
    OverlapKind.EXACT: "same prompt",
    OverlapKind.NEAR: "near-duplicate",
    OverlapKind.ANSWER: "same reference answer",
}


@dataclass(frozen=True)
class OverlapRow:
    """One suite in the training data of some checkpoints."""

    checkpoints: tuple[str, ...]
    title: str
    found: SuiteOverlap
    rows: int

    @property
    def names(self) -> str:
        """The checkpoints that share these data."""
        return clean(joined(self.checkpoints))

    @property
    def cells(self) -> tuple[str, ...]:
        """Training rows, prompts, exact, near, answers, in words."""
        found = self.found
        return (
            f"{self.rows:,}",
            f"{found.examples:,}",
            of_all(found.exact, found.examples),
            of_all(found.near, found.examples - found.short),
            of_all(found.answers, found.references),
        )

    @property
    def data(self) -> dict[str, str]:
        """HTML data attributes."""
        found = self.found
        numbers = {"exact": found.exact, "near": found.near, "answers": found.answers}
        about = {"suite": found.suite, "rows": str(self.rows), "examples": str(found.examples)}
        return about | {key: str(value) for key, value in numbers.items()}


@dataclass(frozen=True)
class OverlapBlock:
    """Everything a report says about training data in the evaluation.

    Attributes:
        notes: which data were read, what is not known, and where findings are, in words.
    """

    rows: tuple[OverlapRow, ...]
    lead: str
    notes: tuple[str, ...]
    title: str = TITLE
    header: tuple[str, ...] = (
        "Checkpoint",
        "Suite",
        "Training rows read",
        "Prompts",
        "Same prompt",
        "Near-duplicate",
        "Same reference answer",
    )


def of_all(count: int, total: int) -> str:
    """Return ``3 of 60 (5.0 %)``, or that there was nothing to look for."""
    if not total:
        return "none to look for"
    return f"{count:,} of {total:,} ({number(100 * count / total, 1)}{NBSP}%)"


def overlap_block(comparison: Comparison) -> OverlapBlock | None:
    """Return the section's content; None where no checkpoint's training data are known."""
    found = comparison.manifest.contamination
    if not found:
        return None
    titles = {card.name: card.title for card in comparison.manifest.suites}
    shared = _shared(found)
    rows = tuple(
        OverlapRow(tuple(names), titles.get(suite.suite, suite.suite), suite, data.rows)
        for names, data in shared
        for suite in data.suites
    )
    notes = (*_sources(shared), *_unknown(found), *_places(rows))
    return OverlapBlock(rows, _lead(shared), tuple(clean(note) for note in notes))


def warnings(
    found: Iterable[Contamination], titles: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return a sentence for each suite of which training data hold something.

    Args:
        titles: of the suites, by name; without, their names.
    """
    return tuple(
        f"{_verb(names)} trained on data that hold {_found(suite)} of "
        f"{(titles or {}).get(suite.suite, suite.suite)}"
        for names, data in _shared(found)
        for suite in data.suites
        if not suite.clean
    )


def report_warnings(comparison: Comparison) -> tuple[str, ...]:
    """Return the warnings of a comparison, as a report shows them."""
    titles = {card.name: card.title for card in comparison.manifest.suites}
    return tuple(clean(text) for text in warnings(comparison.manifest.contamination, titles))


def _shared(found: Iterable[Contamination]) -> list[tuple[list[str], DataOverlap]]:
    """Return what is known, once for all checkpoints that share it."""
    grouped: list[tuple[list[str], DataOverlap]] = []
    for each in found:
        same = [names for names, data in grouped if data == each.data]
        if same:
            same[0].append(each.checkpoint)
        elif each.data is not None:
            grouped.append(([each.checkpoint], each.data))
    return grouped


def _verb(names: Sequence[str]) -> str:
    return f"{joined(names)} {'was' if len(names) == 1 else 'were'}"


def _found(suite: SuiteOverlap) -> str:
    parts = [
        f"{suite.exact:,} of {counted(suite.examples, 'prompt')}" if suite.exact else "",
        f"{'near-duplicates of' if suite.near > 1 else 'a near-duplicate of'} {suite.near:,}"
        + ("" if suite.exact else f" of {counted(suite.examples, 'prompt')}")
        if suite.near
        else "",
        f"{counted(suite.answers, 'reference answer')}" if suite.answers else "",
    ]
    return joined([part for part in parts if part])


def _lead(shared: Sequence[tuple[list[str], DataOverlap]]) -> str:
    given = shared[0][1].parameters
    return (
        "Same prompt: the words of its user turns are those of a training dialogue or of its "
        "beginning; case and punctuation aside. Near-duplicate, where not the same: one training "
        f"row holds at least {number(100 * given.share, 0)}{NBSP}% of the prompt's runs of "
        f"{given.words} words; shorter prompts are left out. Same reference answer: it is an "
        f"answer of the training data, {given.words} words long or longer. Paraphrases are not "
        "found, all rows of a file count as trained on, and what the base model was trained on is "
        "not looked at."
    )


def _sources(shared: Sequence[tuple[list[str], DataOverlap]]) -> Iterator[str]:
    for names, data in shared:
        listed = joined([source_text(source) for source in data.sources])
        yield f"{joined(names)}: {counted(data.rows, 'row')} of {listed}."


def source_text(source: Mapping[str, object]) -> str:
    """Return a source as a manifest records it: name, and the head of its hash."""
    if "file" in source:
        return f"{source['file']} (SHA-256 {str(source.get('sha256'))[:HASH_SHOWN]})"
    name = f"{source.get('dataset')}:{source.get('split')}"
    return f"{name} (fingerprint {str(source.get('fingerprint'))[:HASH_SHOWN]})"


def _unknown(found: Iterable[Contamination]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each.data is None:
            reasons.setdefault(each.reason or "not looked at", []).append(each.checkpoint)
    for reason, names in reasons.items():
        yield f"{joined(names)}: not known; {reason}."


def _places(rows: Iterable[OverlapRow]) -> Iterator[str]:
    """Yield where the first findings of each suite are."""
    for row in rows:
        overlaps = row.found.overlaps
        shown = [f"{o.example_id} ({KINDS[o.kind]}, {o.origin})" for o in overlaps[:NAMED]]
        if len(overlaps) > NAMED:
            shown.append(f"{len(overlaps) - NAMED:,} more")
        if shown:
            yield f"{joined(row.checkpoints)}, {row.title}: {joined(shown)}."
