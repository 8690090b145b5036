"""Judgments made elsewhere, brought into a run folder whose answers they are about.

Each judgment is kept under a judge named after the annotator. Verdicts on one pair in both orders
become one by the rule of this package's own judges (:class:`harness.judges.llm.LlmJudge`): a side
wins where both orders agree on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.adapters.recorded.answers import turns
from harness.errors import InputError
from harness.files import sha256_file, sha256_json
from harness.judges import AnswerPair, invalid, verdict
from harness.judges.llm.judge import pair_judgment
from harness.judgments import JudgmentFile, Judgments, read_judgments
from harness.judgments.verdicts import UNKNOWN_ITEM
from harness.stats.judged import CANDIDATE_FIRST
from harness.store import EXAMPLES, GENERATIONS, JUDGMENTS, RunFolder, open_run, read_run
from harness.types import (
    REFERENCE,
    Counts,
    Example,
    JudgeInfo,
    Judgment,
    OrderedVerdict,
    Outcome,
    Record,
    RunManifest,
    Shown,
)

NO_VERDICT = "the imported file has no valid verdict on the pair"

Asked = tuple[str, str]
"""Suite and example id."""


class Imported(Record):
    """What was brought into a run.

    Attributes:
        judgments: how many were added, by judge.
        elsewhere: verdicts about prompts that the run does not have; left out.
    """

    judgments: dict[str, int]
    elsewhere: int


@dataclass(frozen=True)
class _Run:
    """What of a run the judgments are matched to.

    Attributes:
        rank: of each side; the reference answers come first, so that they are the baseline.
        by_id, by_text: where a prompt of that id, or with that only turn, is.
        texts: first answer of each side to each prompt.
    """

    rank: Mapping[str, int]
    examples: Mapping[Asked, Example]
    by_id: Mapping[str, Asked]
    by_text: Mapping[str, Asked]
    texts: Mapping[tuple[Asked, str], str]

    def find(self, asked: str) -> Asked | None:
        """Return the prompt that an id or a text stands for."""
        return self.by_id.get(asked) or self.by_text.get(asked.strip())

    def text(self, asked: Asked, side: str) -> str:
        """Return a side's answer to a prompt.

        Raises:
            InputError: the run has none.
        """
        if (asked, side) not in self.texts:
            raise InputError(
                f"'{side}' is judged on '{asked[1]}', and the run has no answer of it. Import the "
                "answers that were judged."
            )
        return self.texts[asked, side]


def import_judgments(
    path: Path, files: Sequence[JudgmentFile], reference: str | None = None
) -> Imported:
    """Add the verdicts of files to a run and seal it again; what is there already is kept.

    Args:
        reference: name under which the files have the suite's own reference answers.

    Raises:
        InputError: the files judge a model that is not in the run, or none of its prompts; or
            the run has other verdicts of a judge of that name.
        RunFolderError: there is no run at ``path``, or it is in use.
    """
    manifest = read_run(path).manifest
    identity = sha256_json([sha256_file(file.table.path) for file in files])
    judgments = read_judgments(files)
    with open_run(path, manifest, ()) as folder:
        run = _run(folder)
        groups, elsewhere = _groups(judgments, run, {reference: REFERENCE} if reference else {})
        records = [_judgment(sides, found, run) for sides, found in groups.items()]
        added = _add(folder, records, identity, judgments.forms)
    return Imported(judgments=added, elsewhere=elsewhere)


def _run(folder: RunFolder) -> _Run:
    names = [checkpoint.spec.name for checkpoint in folder.manifest.checkpoints]
    examples = {(row.suite, row.example.id): row.example for row in folder.records(EXAMPLES)}
    texts = {
        ((g.suite, g.example_id), g.checkpoint): g.text
        for g in folder.records(GENERATIONS)
        if g.sample == 0
    }
    references = {
        (asked, REFERENCE): example.reference
        for asked, example in examples.items()
        if example.reference is not None
    }
    return _Run(
        rank={name: place for place, name in enumerate([REFERENCE, *names])},
        examples=examples,
        by_id={asked[1]: asked for asked in examples},
        by_text=dict(_by_text(examples)),
        texts=texts | references,
    )


def _by_text(examples: Mapping[Asked, Example]) -> Iterator[tuple[str, Asked]]:
    for asked, example in examples.items():
        spoken = turns(example.messages)
        if len(spoken) == 1:
            yield spoken[0][1], asked


class _Sides(NamedTuple):
    """Who judged which two answers to which prompt."""

    judge: str
    asked: Asked
    candidate: str
    baseline: str


class _Found(NamedTuple):
    """A verdict on the candidate, NaN where there is none, the order of the answers, the item."""

    preference: float
    order: int
    item: int

    @property
    def turned(self) -> _Found:
        """The same verdict with candidate and baseline exchanged."""
        return self._replace(preference=1 - self.preference, order=-self.order)

    @property
    def outcome(self) -> Outcome:
        """The side of one half that the preference is on."""
        if np.isnan(self.preference):
            return Outcome.INVALID
        if self.preference == 0.5:
            return Outcome.TIE
        return Outcome.WIN if self.preference > 0.5 else Outcome.LOSS


def _groups(
    judgments: Judgments, run: _Run, renamed: Mapping[str, str]
) -> tuple[dict[_Sides, list[_Found]], int]:
    """Return the verdicts about the run's prompts by pair, and how many are about others."""
    judged = judgments.judged
    names = [renamed.get(name, name) for name in judged.models]
    _check_models(names, run)
    groups: dict[_Sides, list[_Found]] = defaultdict(list)
    elsewhere = 0
    for place in range(len(judgments)):
        asked = run.find(judgments.asked[place])
        if asked is None:
            elsewhere += 1
            continue
        found = _Found(
            preference=float(judged.preference[place]),
            order=int(judged.order[place]),
            item=int(judged.item[place]),
        )
        candidate, baseline = names[judged.candidate[place]], names[judged.baseline[place]]
        if run.rank[candidate] < run.rank[baseline]:
            candidate, baseline, found = baseline, candidate, found.turned
        judge = judged.judges[judged.judge[place]]
        groups[_Sides(judge, asked, candidate, baseline)].append(found)
    if not groups:
        raise InputError(
            "none of the judgments is about a prompt of the run (first: "
            f"{judgments.asked[0][:60]!r}). A prompt is found by its id, or by its text."
        )
    return groups, elsewhere


def _check_models(names: Sequence[str], run: _Run) -> None:
    if strange := [name for name in names if name not in run.rank]:
        raise InputError(
            f"the judgments are about '{strange[0]}', which is not in the run "
            f"({', '.join(n for n in run.rank if n != REFERENCE)}). Import its answers under that "
            "name, or give --reference if they are the suite's own reference answers."
        )


def _judgment(sides: _Sides, found: Sequence[_Found], run: _Run) -> Judgment:
    suite, asked = sides.asked[0], sides.asked
    pair = AnswerPair(
        suite=suite,
        candidate=sides.candidate,
        baseline=sides.baseline,
        example=run.examples[asked],
        candidate_text=run.text(asked, sides.candidate),
        baseline_text=run.text(asked, sides.baseline),
    )
    made = _verdict(pair, sides.judge, found)
    items = {one.item for one in found} - {UNKNOWN_ITEM}
    return made.model_copy(update={"item": min(items)}) if items else made


def _verdict(pair: AnswerPair, judge: str, found: Sequence[_Found]) -> Judgment:
    if len(found) > 1:
        return pair_judgment(pair, judge, [_ordered(one) for one in found])
    (only,) = found
    if only.outcome is Outcome.INVALID:
        return invalid(pair, judge, NO_VERDICT)
    return verdict(pair, judge, only.outcome, only.preference)


def _ordered(found: _Found) -> OrderedVerdict:
    valid = found.outcome is not Outcome.INVALID
    first = found.order == CANDIDATE_FIRST
    return OrderedVerdict(
        shown=Shown.CANDIDATE_FIRST if first else Shown.BASELINE_FIRST,
        outcome=found.outcome,
        preference=found.preference if valid else None,
        reason=None if valid else NO_VERDICT,
    )


def _add(
    folder: RunFolder, records: Sequence[Judgment], identity: str, forms: Sequence[str]
) -> dict[str, int]:
    """Append what is new, and let the manifest know the judges."""
    manifest = folder.manifest
    judges = [_info(name, records, identity, forms) for name in sorted({r.judge for r in records})]
    _check_judges(manifest, judges)
    present = {JUDGMENTS.identity(record) for record in folder.records(JUDGMENTS)}
    new = [record for record in records if JUDGMENTS.identity(record) not in present]
    # The manifest first: records of a judge it does not know would make the folder unreadable.
    folder.write_manifest(_with_judges(manifest, judges, len(present) + len(new)))
    folder.append(JUDGMENTS, new)
    folder.seal()
    return {judge.name: sum(r.judge == judge.name for r in new) for judge in judges}


def _info(name: str, records: Sequence[Judgment], identity: str, forms: Sequence[str]) -> JudgeInfo:
    own = [record for record in records if record.judge == name]
    return JudgeInfo(
        name=name,
        title=name,
        definition=f"Verdicts of '{name}' imported from a file ({', '.join(forms)}). Where a pair "
        "was judged in both orders, an answer wins where they agree on it, and ties otherwise.",
        identity=sha256_json([name, identity]),
        judges_reference=any(record.baseline == REFERENCE for record in own),
        by_rule=False,
        pairs=tuple(sorted({(r.suite, r.candidate, r.baseline) for r in own})),
    )


def _check_judges(manifest: RunManifest, judges: Sequence[JudgeInfo]) -> None:
    known = {judge.name: judge.identity for judge in manifest.judges}
    for judge in judges:
        if known.get(judge.name, judge.identity) != judge.identity:
            raise InputError(
                f"the run already has verdicts of a judge '{judge.name}' from elsewhere. Import "
                "all files of one judge together, into a new --output."
            )


def _with_judges(manifest: RunManifest, judges: Sequence[JudgeInfo], total: int) -> RunManifest:
    known = {judge.name for judge in manifest.judges}
    cards = []
    for card in manifest.suites:
        names = [j.name for j in judges if card.name in {suite for suite, *_ in j.pairs or ()}]
        cards.append(card.model_copy(update={"judges": _union(card.judges, names)}))
    counts = manifest.counts | {"judgments": Counts(expected=total, present=total)}
    added = tuple(judge for judge in judges if judge.name not in known)
    changes = {"suites": tuple(cards), "judges": (*manifest.judges, *added), "counts": counts}
    return manifest.model_copy(update=changes)


def _union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))
