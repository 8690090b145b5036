"""Builders of small runs for the tests of the reading half."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.types import (
    CheckpointSpec,
    Direction,
    Example,
    FinishReason,
    Generation,
    JudgeInfo,
    Judgment,
    Loadable,
    Message,
    MetricInfo,
    Outcome,
    Role,
    RunManifest,
    Sampling,
    Score,
    Status,
    SuiteCard,
)


def metric_info(key: str, direction: Direction = Direction.HIGHER) -> MetricInfo:
    return MetricInfo(key=key, title=key.title(), unit="share", direction=direction, definition="d")


def suite_card(
    name: str = "s",
    *,
    examples: int,
    metrics: Sequence[MetricInfo] = (metric_info("acc"),),
    judges: Sequence[str] = (),
    samples: int = 1,
    has_reference: bool = False,
) -> SuiteCard:
    return SuiteCard(
        name=name,
        version=1,
        title=name,
        content_sha256="c",
        examples=examples,
        sampling=Sampling(temperature=1.0, max_tokens=8, samples=samples),
        metrics=tuple(metrics),
        judges=tuple(judges),
        primary=tuple(info.key for info in metrics[:1]),
        has_reference=has_reference,
        licence="CC0-1.0",
    )


def run_manifest(
    *cards: SuiteCard,
    checkpoints: Sequence[str] = ("sft", "dpo"),
    status: Status = Status.COMPLETE,
    blind_judges: Iterable[str] = (),
) -> RunManifest:
    loadables = (
        Loadable(
            spec=CheckpointSpec(name=name, source="x"),
            folder="x",
            weights_sha256=f"weights of {name}",
            architecture="a",
            template_sha256="t",
        )
        for name in checkpoints
    )
    blind = set(blind_judges)
    return RunManifest(
        run_key="k",
        status=status,
        created="2026-01-01T00:00:00Z",
        seed=0,
        checkpoints=tuple(loadables),
        suites=cards,
        judges=tuple(
            JudgeInfo(
                name=name,
                title=name,
                definition="d",
                identity="i",
                judges_reference=name not in blind,
            )
            for name in sorted({judge for card in cards for judge in card.judges})
        ),
        engines=(),
        packages={},
        hardware={},
        git_commit=None,
        counts={},
    )


def make_examples(n: int, *, reference: str | None = None, prefix: str = "e") -> list[Example]:
    return [
        Example(
            id=f"{prefix}{i:02d}",
            messages=(Message(role=Role.USER, content=f"question {i}"),),
            reference=reference,
        )
        for i in range(n)
    ]


def make_generation(checkpoint: str, example: str, sample: int = 0, suite: str = "s") -> Generation:
    return Generation(
        checkpoint=checkpoint,
        weights_sha256=f"weights of {checkpoint}",
        request_sha256="r",
        suite=suite,
        example_id=example,
        sample=sample,
        text=f"{checkpoint} on {example}, {sample}",
        finish_reason=FinishReason.STOP,
        prompt_tokens=3,
        tokens=4,
        entropy=1.0,
    )


def make_score(
    checkpoint: str,
    example: str,
    value: float | None,
    *,
    metric: str = "acc",
    sample: int | None = None,
    suite: str = "s",
    weight: float = 1.0,
    reason: str | None = None,
) -> Score:
    return Score(
        checkpoint=checkpoint,
        suite=suite,
        metric=metric,
        example_id=example,
        sample=sample,
        value=value,
        weight=weight,
        reason=reason,
    )


def make_judgment(
    candidate: str,
    baseline: str,
    example: str,
    outcome: Outcome,
    length: int = 0,
    *,
    judge: str = "j",
    suite: str = "s",
    reason: str | None = None,
) -> Judgment:
    preference = {Outcome.WIN: 1.0, Outcome.TIE: 0.5, Outcome.LOSS: 0.0}.get(outcome)
    return Judgment(
        suite=suite,
        judge=judge,
        candidate=candidate,
        baseline=baseline,
        example_id=example,
        outcome=outcome,
        preference=preference,
        length_difference=length,
        reason=reason,
    )
