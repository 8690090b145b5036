"""Metrics: the answers of one checkpoint to one suite -> scores, one family to a module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from harness.types import Example, Generation, MetricInfo, Score


class Metric(Protocol):
    """A family of metric keys computed from the same reading of the answers.

    Attributes:
        info: what each key means, in the order of the scores.
    """

    @property
    def info(self) -> tuple[MetricInfo, ...]:
        """The keys it produces."""
        ...

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return the scores of one checkpoint on one suite.

        An example without a generation has no score. The order is by example, sample and key.

        Args:
            examples: the suite's examples.
            generations: answers of one checkpoint to that suite, in any order.

        Raises:
            ValueError: the generations cannot be those of one checkpoint on these examples.
        """
        ...


@runtime_checkable
class ExampleChecker(Protocol):
    """A metric that can refuse a suite's examples before anything is generated."""

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Raise InputError where an example cannot be scored."""
        ...


def _check_one_source(generations: Sequence[Generation]) -> None:
    sources = sorted({(g.checkpoint, g.suite) for g in generations})
    if len(sources) > 1:
        raise ValueError(
            f"a metric takes one checkpoint on one suite, given {len(sources)}: {sources}"
        )


def by_prompt(
    examples: Sequence[Example], generations: Sequence[Generation]
) -> Iterator[tuple[Example, list[Generation]]]:
    """Yield each example that was answered with its answers, by example order and sample.

    Raises:
        ValueError: several checkpoints or suites, an answer to an example that is not in
            ``examples``, or two answers with one sample number.
    """
    _check_one_source(generations)
    answers: dict[str, dict[int, Generation]] = defaultdict(dict)
    for generation in generations:
        if generation.sample in answers[generation.example_id]:
            raise ValueError(f"'{generation.example_id}' has sample {generation.sample} twice")
        answers[generation.example_id][generation.sample] = generation
    if strangers := sorted(answers.keys() - {e.id for e in examples}):
        raise ValueError(f"answers to examples that the suite does not have: {strangers[:5]}")
    for example in examples:
        if found := answers.get(example.id):
            yield example, [found[sample] for sample in sorted(found)]


def by_answer(
    examples: Sequence[Example], generations: Sequence[Generation]
) -> Iterator[tuple[Example, Generation]]:
    """Yield every answer with its example, by example order and sample; raises as `by_prompt`."""
    for example, answers in by_prompt(examples, generations):
        for answer in answers:
            yield example, answer


def answer_score(
    answer: Generation,
    metric: str,
    value: float | None,
    *,
    weight: float = 1.0,
    reason: str | None = None,
    undefined: bool = False,
) -> Score:
    """Return a score about one answer; ``reason`` says why ``value`` is None.

    ``undefined``: the metric has no value for such an answer, which is no gap in the run.
    """
    return Score(
        checkpoint=answer.checkpoint,
        suite=answer.suite,
        metric=metric,
        example_id=answer.example_id,
        sample=answer.sample,
        value=value,
        weight=weight,
        reason=reason,
        undefined=undefined,
    )


def ngram_score(answer: Generation, metric: str, value: float | None, n: int) -> Score:
    """Return a score about an answer's n-grams; None where it has fewer than ``n`` words."""
    reason = f"the answer has fewer than {n} words" if value is None else None
    return answer_score(answer, metric, value, reason=reason, undefined=value is None)


def prompt_score(
    answer: Generation,
    metric: str,
    value: float | None,
    *,
    reason: str | None = None,
    undefined: bool = False,
) -> Score:
    """Return a score about a prompt as a whole, named by any one of its answers."""
    return Score(
        checkpoint=answer.checkpoint,
        suite=answer.suite,
        metric=metric,
        example_id=answer.example_id,
        value=value,
        reason=reason,
        undefined=undefined,
    )
