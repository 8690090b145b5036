"""Evaluation prompts among training rows: the same ones, and near-duplicates.

Texts are compared as words: NFKC, case folded, runs of letters and digits. A prompt is the words
of its user turns in order.

- exact: the prompt equals the user turns of a training dialogue, or a beginning of them that ends
  with a turn
- near, if not exact: one training row, its user turns and answers, holds at least ``share`` of the
  prompt's distinct word n-grams. Prompts of fewer than ``words`` words are not judged so.
- answer: the reference equals an answer of the training data; at least ``words`` words long

n = 8: Brown et al. (2020, arXiv 2005.14165, appendix C) take 8 to 13 words, as fewer collide by
chance, and Singh et al. (2024, arXiv 2411.03923) find that more than 8 miss contamination that
pays. Chowdhery et al. (2022, arXiv 2204.02311, section 8) call an example contaminated from 70 % of
its 8-grams on, wherever in the training data they are. Here they have to be in one row, as in the
near-duplicates of Lee et al. (2022, arXiv 2107.06499), and one half is asked for: a changed word
breaks up to 8 n-grams, so a prompt is still found after a change anywhere from 23 words on.
Paraphrases and translations are not found, nor near-duplicates in scripts without spaces.

The evaluation prompts are indexed and the training rows read once: memory grows with the former.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from harness.adapters import resolve
from harness.files import sha256_json
from harness.report.contamination import warnings
from harness.training.known import KnownData, known_data
from harness.training.sources import Source
from harness.training.texts import TrainingText, training_texts
from harness.types import (
    Contamination,
    DataOverlap,
    Example,
    Form,
    Loadable,
    Overlap,
    OverlapKind,
    OverlapParameters,
    Role,
    SuiteOverlap,
)

log = logging.getLogger(__name__)

Gram = tuple[str, ...]
Examples = Mapping[str, Sequence[Example]]
"""Evaluation examples by the name of their suite."""

_WORD = re.compile(r"\w+")
STANDARD = OverlapParameters()


def words(text: str) -> list[str]:
    """Return the words of a text, so that case, punctuation and forms of a letter do not matter."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(of: Sequence[str], n: int) -> Iterator[Gram]:
    """Yield the n-grams of a list of words; none where it is shorter."""
    return zip(*(of[start:] for start in range(n)), strict=False)


def prompt_words(example: Example) -> list[str]:
    """Return the words of an example's user turns."""
    return [word for m in example.messages if m.role == Role.USER for word in words(m.content)]


@dataclass(frozen=True)
class _Row:
    """Words of a training row.

    Attributes:
        beginnings: its dialogues up to each user turn, the words of the user turns alone.
        answers: each assistant turn. texts: user turns of a dialogue, and answers.
    """

    beginnings: list[str]
    answers: list[str]
    texts: list[list[str]]

    @classmethod
    def of(cls, text: TrainingText) -> _Row:
        turns = [[words(turn) for turn in prompt] for prompt in text.prompts]
        answers = [words(answer) for answer in text.answers]
        begun = [list(accumulate(dialogue)) for dialogue in turns]
        return cls(
            beginnings=[" ".join(said) for dialogue in begun for said in dialogue],
            answers=[" ".join(answer) for answer in answers],
            texts=[*(dialogue[-1] for dialogue in begun), *answers],
        )


class _Index:
    """Evaluation examples by their words and n-grams, and what was found of them so far."""

    def __init__(self, suites: Examples, parameters: OverlapParameters) -> None:
        self.parameters = parameters
        self.prompts: defaultdict[str, list[int]] = defaultdict(list)
        self.references: defaultdict[str, list[int]] = defaultdict(list)
        self.grams: defaultdict[Gram, list[int]] = defaultdict(list)
        self.sizes: list[int] = []
        self.found: dict[int, Overlap] = {}
        self.answered: dict[int, Overlap] = {}
        self.examples = [example for of in suites.values() for example in of]
        for number, example in enumerate(self.examples):
            self._add(number, example)

    def _add(self, number: int, example: Example) -> None:
        prompt, n = prompt_words(example), self.parameters.words
        if prompt:
            self.prompts[" ".join(prompt)].append(number)
        distinct = set(grams(prompt, n))
        for gram in distinct:
            self.grams[gram].append(number)
        self.sizes.append(len(distinct))
        reference = words(example.reference or "")
        if len(reference) >= n:
            self.references[" ".join(reference)].append(number)

    def read(self, row: _Row, origin: str) -> None:
        """Look for every example in one training row."""
        for answer in row.answers:
            for number in self.references.get(answer, ()):
                made = self._overlap(number, OverlapKind.ANSWER, 1.0, origin)
                self.answered.setdefault(number, made)
        for number, share in self._shares(row).items():
            if share >= self.parameters.share:
                made = self._overlap(number, OverlapKind.NEAR, share, origin)
                self.found.setdefault(number, made)
        for beginning in row.beginnings:
            for number in self.prompts.get(beginning, ()):
                if number not in self.found or self.found[number].kind != OverlapKind.EXACT:
                    self.found[number] = self._overlap(number, OverlapKind.EXACT, 1.0, origin)

    def _overlap(self, number: int, kind: OverlapKind, share: float, origin: str) -> Overlap:
        name = self.examples[number].id
        return Overlap(example_id=name, kind=kind, share=share, origin=origin)

    def _shares(self, row: _Row) -> dict[int, float]:
        """Return the share of its n-grams that the row holds, of each example with any."""
        n, known = self.parameters.words, self.grams.keys()
        held = {
            gram
            for text in row.texts
            if not known.isdisjoint(grams(text, n))
            for gram in grams(text, n)
            if gram in known
        }
        counts = Counter(number for gram in held for number in self.grams[gram])
        return {number: count / self.sizes[number] for number, count in counts.items()}

    def results(self, suites: Examples) -> Iterator[SuiteOverlap]:
        """Yield what was found, suite by suite."""
        with_reference = {number for of in self.references.values() for number in of}
        start = 0
        for suite, examples in suites.items():
            numbers = range(start, start + len(examples))
            start += len(examples)
            overlaps = [
                kind[number]
                for number in numbers
                for kind in (self.found, self.answered)
                if number in kind
            ]
            counts = Counter(overlap.kind for overlap in overlaps)
            yield SuiteOverlap(
                suite=suite,
                examples=len(examples),
                short=sum(not self.sizes[number] for number in numbers),
                references=sum(number in with_reference for number in numbers),
                exact=counts[OverlapKind.EXACT],
                near=counts[OverlapKind.NEAR],
                answers=counts[OverlapKind.ANSWER],
                overlaps=tuple(overlaps),
            )


def suite_overlaps(
    suites: Examples,
    rows: Iterable[tuple[TrainingText, str]],
    parameters: OverlapParameters = STANDARD,
) -> tuple[int, tuple[SuiteOverlap, ...]]:
    """Return the number of training rows, and what they hold of each suite.

    Args:
        rows: texts with their origin; read once. Origins found are those of the first such row.
    """
    index, count = _Index(suites, parameters), 0
    for text, origin in rows:
        index.read(_Row.of(text), origin)
        count += 1
    return count, tuple(index.results(suites))


def data_overlap(
    sources: Sequence[Source], suites: Examples, parameters: OverlapParameters = STANDARD
) -> DataOverlap:
    """Return what the rows of ``sources`` hold of the suites.

    Every row counts as trained on, also those that a training run held out or left out.

    Raises:
        DataError: a row is not JSON, or holds no text (file and line are named).
        InputError: a source cannot be read.
    """
    rows, found = suite_overlaps(suites, training_texts(sources), parameters)
    identities = tuple(source.identity() for source in sources)
    return DataOverlap(sources=identities, rows=rows, parameters=parameters, suites=found)


def find_contamination(
    checkpoints: Sequence[Loadable], suites: Examples
) -> tuple[Contamination, ...]:
    """Return what each checkpoint's training data hold of the suites, and warn of it.

    Nothing is returned where no checkpoint's training data are known, or no prompt is asked.

    Raises:
        DataError: a training row is not JSON, or holds no text (file and line are named).
        InputError: ``training_data`` names no file and no data set, or it cannot be read.
    """
    known = {c.spec.name: known_data(c.spec, _folder(c)) for c in checkpoints}
    if not suites or not any(data.sources for data in known.values()):
        return ()
    found = tuple(_each(known, suites))
    for warning in warnings(found):
        log.warning("%s", warning)
    return found


def _each(known: Mapping[str, KnownData], suites: Examples) -> Iterator[Contamination]:
    """Yield the finding of each checkpoint; data that several share are read once."""
    done: dict[str, DataOverlap] = {}
    for name, data in known.items():
        if not data.sources:
            yield Contamination(checkpoint=name, reason=data.reason)
            continue
        key = sha256_json([source.identity() for source in data.sources])
        if key not in done:
            log.info("reading the training data of '%s' for prompts of the suites", name)
            done[key] = data_overlap(data.sources, suites)
        yield Contamination(checkpoint=name, data=done[key])


def _folder(checkpoint: Loadable) -> Path | None:
    """Return the folder that a checkpoint's own files are in; None where its weights are not."""
    if checkpoint.form is not Form.WEIGHTS:
        return None
    place = Path(resolve(checkpoint.spec).source).expanduser()
    return place.parent if place.is_file() else place
