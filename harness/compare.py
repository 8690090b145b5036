"""From the records of a run to a :class:`Comparison`: everything that a report shows.

Reads records only. Each estimate draws from a generator of its own, seeded by what the estimate
is about, so that adding a suite, a metric or a checkpoint changes no other number; only p values
adjusted for their family depend on how large it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from harness.alignment import Examples, align
from harness.comparing.columns import tables
from harness.comparing.families import corrected_differences, corrected_win_rates
from harness.comparing.gaps import gaps, unknown
from harness.comparing.metrics import differences, results
from harness.comparing.resampling import Resampling
from harness.comparing.samples import samples
from harness.comparing.strengths import strengths
from harness.comparing.win_rates import win_rates
from harness.stability import read_stability, training_gaps
from harness.stats.judge_agreement import judge_agreement
from harness.stats.judge_quality import judge_quality
from harness.stats.judged import Judged
from harness.trust import opinions
from harness.types import (
    Comparison,
    Generation,
    Judgment,
    RunManifest,
    Score,
    SuiteJudge,
    SuitePanel,
    TrainingRow,
)


def compare(
    manifest: RunManifest,
    scores: Iterable[Score],
    judgments: Iterable[Judgment],
    generations: Iterable[Generation],
    examples: Examples,
    *,
    training: Sequence[TrainingRow] = (),
    seed: int = 0,
    resamples: int = 2000,
    samples_shown: int = 2,
) -> Comparison:
    """Return every estimate of a run with its interval, and what is missing in words.

    Args:
        examples: the examples of each suite that was run, by suite name.
        training: logged training steps, where the run has a training suite.
        seed: 0 or more; with ``resamples`` it fixes every interval.
        samples_shown: prompts of each subset whose answers are shown side by side.

    Raises:
        InputError: examples of a suite are not given, or are not those of the run.
        RunFolderError: a record names what the manifest does not know, comes from other weights,
            or occurs twice.
    """
    run = align(manifest, scores, judgments, generations, examples)
    resampling = Resampling(seed, resamples)
    found = list(tables(run))
    judges = opinions(run)
    paired = tuple(d for table in found for d in differences(table, resampling))
    duels = tuple(win_rates(run, resampling))
    return Comparison(
        manifest=manifest,
        gaps=(*gaps(run, found), *training_gaps(manifest, training)),
        metrics=tuple(r for table in found for r in results(table, resampling)),
        differences=paired,
        win_rates=duels,
        samples=tuple(samples(run, samples_shown)),
        resamples=resamples,
        seed=seed,
        training=read_stability(manifest.training, training) if manifest.training else None,
        unknown=tuple(unknown(run, found)),
        judge_quality=tuple(
            SuiteJudge(suite=suite, quality=quality)
            for suite, judged in judges.items()
            for quality in judge_quality(judged)
        ),
        judge_agreement=tuple(_judge_agreement(judges, resampling)),
        strengths=tuple(strengths(run, judges)),
        corrected_differences=tuple(corrected_differences(paired, run.checkpoints[0])),
        corrected_win_rates=tuple(corrected_win_rates(duels, run.checkpoints[0])),
    )


def _judge_agreement(judges: Mapping[str, Judged], resampling: Resampling) -> Iterator[SuitePanel]:
    for suite, judged in judges.items():
        rng = resampling.rng("judge agreement", suite)
        found = judge_agreement(judged, rng=rng, resamples=resampling.resamples)
        if found is not None:
            yield SuitePanel(suite=suite, agreement=found)
