"""Diversity of a file of samples: its metrics with intervals, without a model or a run folder.

A row is a prompt with its samples: ``{"id": ..., "prompt": ..., "samples": [{"text": ...}]}``. The
scores are those of the metrics of a run, and the intervals those of its comparison.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness.comparing.columns import UNEXPLAINED, Column, Table
from harness.comparing.metrics import results
from harness.comparing.resampling import Resampling
from harness.errors import DataError
from harness.metrics import Metric
from harness.metrics.diversity import (
    Compression,
    Distinct,
    DistinctN,
    EmbeddingDiversity,
    Repetition,
    SelfBleu,
    SelfBleuAcross,
)
from harness.metrics.entropy import Entropy
from harness.scoring import checkpoint_name
from harness.stats.bootstrap import Weighted
from harness.tables import Row, read_table
from harness.types import (
    Direction,
    Estimate,
    Example,
    Generation,
    Message,
    MetricInfo,
    Record,
    Role,
    Score,
)

SUITE = "outputs"
"""Name of a file's own prompts, as where a file of answers is scored."""

COLUMNS = ("id", "prompt", "samples")
ENTROPY = "entropy"
UNHASHED = "none"


class Figure(Record):
    """One metric of the file.

    Attributes:
        n: prompts with a value. observations: values; of a metric of answers, more than prompts.
        missing: values that are not there, by their reasons in ``reasons``.
        method: how the interval was obtained.
    """

    title: str
    unit: str
    direction: Direction
    definition: str
    value: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    observations: int
    missing: int
    reasons: dict[str, int]
    method: str

    def row(self) -> dict[str, Any]:
        """Return it for a JSON file: ``mean``, ``interval`` (null without one), then all else."""
        known = self.model_dump(mode="json", exclude={"value", "low", "high"})
        interval = None if self.low is None else [self.low, self.high]
        return {"mean": self.value, "interval": interval, **known}

    @property
    def estimate(self) -> Estimate:
        """The figure as an estimate."""
        return Estimate(
            value=self.value,
            low=self.low,
            high=self.high,
            level=self.level,
            n=self.observations,
            clusters=self.n,
            missing=self.missing,
            method=self.method,
        )


class FileDiversity(Record):
    """The metrics of a file by their keys, with the fewest and the most samples of a prompt."""

    file: str
    prompts: int
    fewest_samples: int
    most_samples: int
    metrics: dict[str, Figure]

    def row(self) -> dict[str, Any]:
        """Return it for a JSON file: each metric under its own key."""
        about = self.model_dump(mode="json", exclude={"metrics"})
        return about | {key: figure.row() for key, figure in self.metrics.items()}


def file_diversity(
    path: Path, *, embeddings: bool = False, seed: int = 0, resamples: int = 2000
) -> FileDiversity:
    """Return the diversity of the samples in a file.

    Args:
        path: JSONL, JSON, CSV or Parquet, plain or gzip, of rows as above; a sample may be a text
            alone, and carry its ``entropy`` in nats. In a CSV the samples are a JSON list.
        embeddings: with what a sentence model is needed for.
        seed, resamples: of the bootstrap, as of a comparison.

    Raises:
        InputError: the file cannot be read, or the sentence model cannot be had.
        DataError: a row is broken, two have one id, or there is none.
    """
    name = checkpoint_name(path)
    examples, answers = _records(path, name)
    resampling = Resampling(seed, resamples)
    figures: dict[str, Figure] = {}
    for metric in _metrics(answers, embeddings):
        scores = metric.score(examples, answers)
        for info in metric.info:
            own = [score for score in scores if score.metric == info.key]
            figures[info.key] = _figure(info, own, examples, name, resampling)
    samples = Counter(answer.example_id for answer in answers).values()
    return FileDiversity(
        file=str(path),
        prompts=len(examples),
        fewest_samples=min(samples),
        most_samples=max(samples),
        metrics=figures,
    )


class _EntropyAlone:
    """The ``entropy`` of each answer, without what else an engine reports."""

    info = tuple(info for info in Entropy.info if info.key == ENTROPY)

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        return [s for s in Entropy().score(examples, generations) if s.metric == ENTROPY]


def _metrics(answers: Sequence[Generation], embeddings: bool) -> Iterator[Metric]:
    yield from (Distinct(), DistinctN(), SelfBleu(), SelfBleuAcross(), Compression(), Repetition())
    if any(answer.entropy is not None for answer in answers):
        yield _EntropyAlone()
    if embeddings:
        yield EmbeddingDiversity()


def _figure(
    info: MetricInfo,
    scores: Sequence[Score],
    examples: Sequence[Example],
    name: str,
    resampling: Resampling,
) -> Figure:
    keyed = {(score.example_id, score.sample): score for score in scores}
    column = Column(
        values={k: Weighted(s.value, s.weight) for k, s in keyed.items() if s.value is not None},
        lacking={k: s.reason or UNEXPLAINED for k, s in keyed.items() if s.value is None},
    )
    units = {example.id: example.id for example in examples}
    (result,) = results(Table(SUITE, info, False, {name: column}, units), resampling)
    found = result.estimate
    return Figure(
        **info.model_dump(exclude={"key"}),
        **found.model_dump(include={"value", "low", "high", "level", "missing", "method"}),
        n=found.clusters,
        observations=found.n,
        reasons=dict(Counter(column.lacking.values())),
    )


def _records(path: Path, name: str) -> tuple[list[Example], list[Generation]]:
    """Return the file's prompts and their samples as a run would record them."""
    examples, answers = [], []
    lines: dict[str, int] = {}
    for line, row in read_table(path).rows:
        place = _Place(path, line)
        example = place.example(row)
        if example.id in lines:
            place.refuse(f"id '{example.id}' is also that of line {lines[example.id]}")
        lines[example.id] = line
        examples.append(example)
        for number, (text, entropy) in enumerate(place.samples(row)):
            answers.append(_answer(name, example.id, number, text, entropy))
    return examples, answers


def _answer(
    name: str, example_id: str, number: int, text: str, entropy: float | None
) -> Generation:
    return Generation(
        checkpoint=name,
        weights_sha256=UNHASHED,
        request_sha256=UNHASHED,
        suite=SUITE,
        example_id=example_id,
        sample=number,
        text=text,
        finish_reason=None,
        entropy=entropy,
    )


class _Place:
    """A row's file and line, for what is wrong with it."""

    def __init__(self, path: Path, line: int) -> None:
        self._path, self._line = path, line

    def refuse(self, problem: str) -> NoReturn:
        raise DataError(self._path, self._line, problem)

    def example(self, row: Row) -> Example:
        """Return the row's prompt; each column must be there."""
        if absent := [name for name in COLUMNS if row.get(name) is None]:
            self.refuse(
                f"no {' and no '.join(absent)}: a row is a prompt with its samples, "
                '{"id": ..., "prompt": ..., "samples": [{"text": ...}, ...]}'
            )
        identifier = row["id"]
        if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
            self.refuse(f"id: expected a text or a whole number, found {_kind(identifier)}")
        if not str(identifier).strip() or len(str(identifier).splitlines()) > 1:
            self.refuse("id: expected one line of text")
        prompt = self._text("prompt", row["prompt"])
        message = Message(role=Role.USER, content=prompt)
        return Example(id=self._text("id", str(identifier)), messages=(message,))

    def samples(self, row: Row) -> list[tuple[str, float | None]]:
        """Return each sample's text and entropy."""
        found = row["samples"]
        if isinstance(found, str):
            found = self._parsed(found)
        if not isinstance(found, list):
            self.refuse(f"samples: expected a list, found {_kind(found)}")
        if not found:
            self.refuse(f"prompt '{row['id']}' has no sample: leave it out, or add its answers")
        return [self._sample(f"samples[{number}]", sample) for number, sample in enumerate(found)]

    def _parsed(self, cell: str) -> Any:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell

    def _sample(self, where: str, sample: Any) -> tuple[str, float | None]:
        if isinstance(sample, str):
            return self._text(where, sample), None
        if not isinstance(sample, dict) or "text" not in sample:
            self.refuse(f'{where}: expected a text or {{"text": ...}}, found {_kind(sample)}')
        text = self._text(f"{where}.text", sample["text"])
        return text, self._entropy(f"{where}.{ENTROPY}", sample.get(ENTROPY))

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            self.refuse(f"{where}: expected a text, found {_kind(value)}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            self.refuse(f"{where}: half a character (a lone surrogate) at {error.start}")
        return str(value)

    def _entropy(self, where: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(f"{where}: expected a number, found {_kind(value)}")
        if not math.isfinite(value) or value < 0:
            self.refuse(f"{where}: expected nats, 0 or more, found {value}")
        return float(value)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return "nothing" if value is None else f"{type(value).__name__}"
