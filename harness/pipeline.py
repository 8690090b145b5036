"""The only orchestrator: a plan in, a sealed run folder out.

Stages: training logs (copied), likelihoods and canary readings (transformers, float32),
generations (one engine start for checkpoints of one shape), scores, judgments. Each stage reads
what is on disk and adds what is missing, so a run that was killed goes on where it stopped. Where
only training logs are asked for, no model is loaded.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from harness.adapters.identity import verify_unchanged
from harness.canary import (
    Readings,
    Sequences,
    base_of,
    canary_sequences,
    check_room,
    refuse_unchanged,
    remembered_reading,
    take_reading,
)
from harness.capability.stage import TaskStage
from harness.engines.reference import ReferenceModel
from harness.engines.settings import EngineSettings
from harness.errors import EngineError
from harness.generation import Sampler
from harness.judges import HoldingJudge
from harness.likelihoods import (
    KL_KEYS,
    RAW_KEYS,
    kl_scores,
    missing_scores,
    no_weights,
    pair_sums,
    preference_table,
    raw_scores,
)
from harness.metrics.likelihood import LogProbs
from harness.plan import DIVERGENCE, Plan, RunConfig, make_plan, rendered
from harness.progress import over
from harness.prompts import Prompts
from harness.provenance import git_commit, hardware, now
from harness.requests import make_pairs
from harness.store import (
    JUDGMENTS,
    SCORES,
    TRAINING,
    RunFolder,
    is_complete,
    open_run,
)
from harness.suites import Suite
from harness.suites.declaration import LIKELIHOOD
from harness.types import Counts, Generation, Judgment, Loadable, Score, Status, SuiteExample

log = logging.getLogger(__name__)

JUDGED_TOGETHER = 1024
"""Pairs that a judge is given at once: large enough to keep an endpoint busy."""


def run(config: RunConfig) -> Path:
    """Carry out a run, or what is missing of it, and return its sealed folder.

    Raises:
        InputError: something given cannot be used; nothing was started.
        RunFolderError: the output folder belongs to another run or is in use.
        EngineError: the engine failed or answered for another checkpoint; what was computed stays.
    """
    plan = make_plan(config)
    done = is_complete(config.output)
    prompts = {} if done else rendered(plan)
    canaries = {} if done else _canaries(plan)
    examples = [
        SuiteExample(suite=suite.spec.name, example=example)
        for suite in plan.suites
        for example in suite.examples
    ]
    examples += [
        SuiteExample(suite=planned.name, example=example)
        for planned in plan.tasks
        for example in planned.examples
    ]
    with open_run(config.output, plan.manifest, examples) as folder:
        if folder.manifest.status == Status.COMPLETE:
            log.info("%s is complete; nothing to compute", config.output)
            return config.output
        work = Work(plan, folder, prompts, canaries)
        work.note_resumption()
        work.training()
        if plan.suites or plan.tasks:
            work.likelihoods()
            work.generations()
        work.sampler.check()
        work.divergences()
        work.scores()
        work.judgments()
        work.finish()
    return config.output


def _canaries(plan: Plan) -> dict[str, Sequences]:
    """Return the canary texts by checkpoint: one tokenisation an engine group."""
    found: dict[str, Sequences] = {}
    for group in plan.groups if plan.suites or plan.tasks else ():
        if isinstance(group.settings, EngineSettings):
            sequences = canary_sequences(group.checkpoints[0])
            check_room(sequences, group.settings.max_model_len)
            found |= {c.spec.name: sequences for c in group.checkpoints}
    return found


class Work:
    """The stages of one run on one folder."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        prompts: Mapping[str, Prompts],
        canaries: Mapping[str, Sequences],
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.prompts = prompts
        self.scored = {SCORES.identity(s) for s in folder.records(SCORES)}
        self.canaries = canaries
        self.readings: dict[str, Readings] = {}
        self.sums: dict[tuple[str, str], dict[str, LogProbs]] = {}
        self.stage = TaskStage(
            plan.tasks,
            folder.path,
            plan.config.seed,
            lambda: self.scored,
            self._append_scores,
            self._note,
        )
        self.sampler = Sampler(
            plan, folder, prompts, self.canaries, self.readings, self._note, self.stage
        )

    @property
    def generated(self) -> Mapping[tuple[Any, ...], Generation]:
        """The answers there are, by identity."""
        return self.sampler.generated

    # -- training logs -------------------------------------------------------------------------

    def training(self) -> None:
        """Copy the logged steps, so that the folder can be read where the logs are gone."""
        if self.plan.manifest.training is not None:
            self.folder.write_all(TRAINING, self.plan.training_rows)

    # -- likelihoods and canary readings -------------------------------------------------------

    def likelihoods(self) -> None:
        """Score given answers in float32 and take the canary readings, one model load each.

        Raises:
            CheckpointError: an adapter changes nothing.
        """
        for checkpoint in self.plan.checkpoints:
            if (reason := no_weights(checkpoint)) is None:
                self.readings[checkpoint.spec.name] = self._likelihoods(checkpoint)
                self._check_changed(checkpoint)
            else:
                for suite in self._suites_with(LIKELIHOOD):
                    self._append_scores(missing_scores(checkpoint, suite, RAW_KEYS, reason))

    def _suites_with(self, metric: str) -> list[Suite]:
        return [suite for suite in self.plan.suites if metric in suite.spec.metrics]

    def _likelihoods(self, checkpoint: Loadable) -> Readings:
        """Return a checkpoint's canary reading; its float32 model is gone when this returns."""
        sequences = self.canaries[checkpoint.spec.name]
        reading = remembered_reading(checkpoint, sequences)
        missing = [
            suite
            for suite in self._suites_with(LIKELIHOOD)
            if not self._has_likelihoods(checkpoint, suite)
        ]
        if reading is not None and not missing:
            return reading
        with closing(ReferenceModel(checkpoint)) as model:
            for suite in missing:
                prompts = self.prompts[checkpoint.spec.name][suite.spec.name]
                found = raw_scores(checkpoint, suite, prompts, model)
                verify_unchanged(checkpoint)
                self._append_scores(found)
            return reading or take_reading(checkpoint, sequences, model)

    def _check_changed(self, checkpoint: Loadable) -> None:
        if checkpoint.base is None:
            return
        name = checkpoint.spec.name
        below = base_of(checkpoint)
        sequences = self.canaries[name]
        base = remembered_reading(below, sequences)
        if base is None:
            with closing(ReferenceModel(below)) as model:
                base = take_reading(below, sequences, model)
        refuse_unchanged(checkpoint, self.readings[name], base)

    def _has_likelihoods(self, checkpoint: Loadable, suite: Suite) -> bool:
        name = checkpoint.spec.name
        return all(
            (suite.spec.name, metric, name, example.id, -1) in self.scored
            for example in suite.examples
            for metric in RAW_KEYS
        )

    def _append_scores(self, scores: Iterable[Score]) -> None:
        new = [s for s in scores if SCORES.identity(s) not in self.scored]
        self.folder.append(SCORES, new)
        self.scored |= {SCORES.identity(s) for s in new}

    # -- generations ---------------------------------------------------------------------------

    def generations(self) -> None:
        """Sample all missing answers, each group of checkpoints through one engine start."""
        self.sampler.run()

    def note_resumption(self) -> None:
        """Record that earlier work is gone on with, and where."""
        if self.generated or self.scored:
            self._note("resumed", git_commit=git_commit(), cpu=hardware()["cpu"])

    def _note(self, event: str, **facts: Any) -> None:
        """Keep what happened in the manifest, at once: a killed run keeps its history."""
        found = self.folder.manifest
        events = (*found.events, {"event": event, "time": now(), **facts})
        self.folder.write_manifest(found.model_copy(update={"events": events}))

    # -- scores --------------------------------------------------------------------------------

    def scores(self) -> None:
        """Compute every metric of every checkpoint on every suite."""
        for checkpoint in self.plan.checkpoints:
            if no_weights(checkpoint) is not None:
                self._append_scores(self.stage.out_of_reach(checkpoint))
        answers = self._answers()
        jobs = [
            (s, c, m)
            for s in self.plan.suites
            for c in self.plan.checkpoints
            for m in s.spec.metrics
        ]
        for suite, checkpoint, metric in over(jobs, "scores", "table"):
            generations = answers[suite.spec.name, checkpoint.spec.name]
            if metric == LIKELIHOOD:
                table = preference_table(checkpoint, self.plan.base, suite, self._pair_sums())
                self._append_scores(table)
            else:
                self._append_scores(self.plan.metrics[metric].score(suite.examples, generations))

    def _answers(self) -> dict[tuple[str, str], list[Generation]]:
        answers: dict[tuple[str, str], list[Generation]] = defaultdict(list)
        for generation in self.generated.values():
            answers[generation.suite, generation.checkpoint].append(generation)
        return answers

    def _pair_sums(self) -> Mapping[tuple[str, str], Mapping[str, LogProbs]]:
        if not self.sums:
            self.sums = pair_sums(self.folder.records(SCORES))
        return self.sums

    # -- divergence from the base --------------------------------------------------------------

    def divergences(self) -> None:
        """Hold each checkpoint's own samples against the base, both in float32."""
        answers = self._answers()
        with Models() as models:
            for checkpoint in self.plan.checkpoints:
                for suite in self._suites_with(DIVERGENCE):
                    found = answers[suite.spec.name, checkpoint.spec.name]
                    missing = [g for g in found if not self._has_divergence(g)]
                    prompts = self.prompts.get(checkpoint.spec.name, {})
                    shown = prompts.get(suite.spec.name, {})
                    scores = kl_scores(checkpoint, self.plan.base, shown, missing, models)
                    if missing:
                        verify_unchanged(checkpoint)
                        verify_unchanged(self.plan.base)
                    self._append_scores(scores)

    def _has_divergence(self, answer: Generation) -> bool:
        name, example = answer.checkpoint, answer.example_id
        return all((answer.suite, key, name, example, 0) in self.scored for key in KL_KEYS)

    # -- judgments -----------------------------------------------------------------------------

    def judgments(self) -> None:
        """Let every judge of a suite compare all checkpoints, and each with the reference.

        Raises:
            EngineError: a judge gave no usable reply on some pairs; the others are kept.
            BudgetError: the judges' budget is spent; what was judged is kept.
        """
        texts = {
            (g.suite, g.checkpoint, g.example_id): g.text
            for g in self.generated.values()
            if g.sample == 0
        }
        present = {JUDGMENTS.identity(j) for j in self.folder.records(JUDGMENTS)}
        unanswered: list[Judgment] = []
        for name, judge in self.plan.judges.items():
            with closing(judge) if isinstance(judge, HoldingJudge) else nullcontext():
                for suite in self.plan.suites:
                    if name in suite.spec.judges:
                        unanswered += self._judge(name, suite, texts, present)
        if unanswered:
            raise EngineError(
                f"{len(unanswered)} judgments are missing (first: judge '{unanswered[0].judge}', "
                f"{unanswered[0].suite}/{unanswered[0].example_id}: {unanswered[0].reason}). What "
                "was judged is kept; run the same command to ask for the rest."
            )

    def _judge(
        self,
        name: str,
        suite: Suite,
        texts: Mapping[tuple[str, str, str], str],
        present: Collection[tuple[Any, ...]],
    ) -> list[Judgment]:
        """Append a judge's judgments on a suite, some at a time; return those without a reply."""
        judge, asked = self.plan.judges[name], suite.spec.name
        pairs = [
            pair
            for pair in make_pairs(suite, self.plan.checkpoints, texts, judge)
            if (asked, name, pair.candidate, pair.baseline, pair.example.id) not in present
        ]
        log.info("judge '%s' compares %d pairs on %s", name, len(pairs), asked)
        unanswered: list[Judgment] = []
        for start in range(0, len(pairs), JUDGED_TOGETHER):
            verdicts = judge.compare(pairs[start : start + JUDGED_TOGETHER])
            self.folder.append(JUDGMENTS, [v for v in verdicts if not v.unanswered])
            unanswered += [v for v in verdicts if v.unanswered]
        return unanswered

    # -- end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the counts, sort the files and mark the run complete."""
        found = self.folder.manifest
        present = {
            "generations": len(self.generated),
            "scores": len(self.scored),
            "judgments": len(self.folder.records(JUDGMENTS)),
        }
        if self.plan.manifest.training is not None:
            present["training"] = len(self.plan.training_rows)
        expected = present | {"generations": found.counts["generations"].expected}
        counts = {n: Counts(expected=expected[n], present=k) for n, k in present.items()}
        self.folder.write_manifest(found.model_copy(update={"counts": found.counts | counts}))
        self.folder.seal()


class Models:
    """The float32 models of at most two checkpoints, kept between calls: the base and one other."""

    def __init__(self) -> None:
        self._held: dict[str, ReferenceModel] = {}

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        for model in self._held.values():
            model.close()

    def __call__(self, checkpoint: Loadable) -> ReferenceModel:
        """Return a checkpoint's model; the one asked for longest ago makes room for a third."""
        name = checkpoint.spec.name
        model = self._held.pop(name, None)
        if model is None:
            while len(self._held) > 1:
                self._held.pop(next(iter(self._held))).close()
            model = ReferenceModel(checkpoint)
        self._held[name] = model
        return model
