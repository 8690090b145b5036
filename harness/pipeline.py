"""The only orchestrator: a plan in, a sealed run folder out.

Stages: training logs (copied), likelihoods and canary readings (transformers, float32),
generations (one vLLM engine for all checkpoints), scores, judgments. Each stage reads what is on
disk and adds what is missing, so a run that was killed goes on where it stopped. Where only
training logs are asked for, no model is loaded.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.canary import Canary, Readings, canary_sequences, remembered_reading, take_reading
from harness.engines import Completion, Request
from harness.engines.reference import ReferenceModel
from harness.engines.vllm import VllmEngine
from harness.errors import EngineError
from harness.judges import AnswerPair, Judge
from harness.likelihoods import RAW_KEYS, pair_sums, raw_scores
from harness.metrics.likelihood import LogProbs, preference_scores
from harness.plan import Plan, RunConfig, make_plan
from harness.progress import bar, over
from harness.prompts import Prompts, render_all
from harness.provenance import git_commit, hardware, now
from harness.requests import as_generation, make_pairs, make_requests, split_key
from harness.store import (
    GENERATIONS,
    JUDGMENTS,
    SCORES,
    TRAINING,
    RunFolder,
    is_complete,
    open_run,
)
from harness.suites import Suite
from harness.types import Counts, Generation, Judgment, Loadable, Score, Status, SuiteExample

log = logging.getLogger(__name__)

LIKELIHOOD = "preference_accuracy"
"""Name of the metric family that is filled from log-probabilities of given answers."""


def run(config: RunConfig) -> Path:
    """Carry out a run, or what is missing of it, and return its sealed folder.

    Raises:
        InputError: something given cannot be used; nothing was started.
        RunFolderError: the output folder belongs to another run or is in use.
        EngineError: the engine failed or answered for another checkpoint; what was computed stays.
    """
    plan = make_plan(config)
    prompts = {} if is_complete(config.output) else _prompts(plan)
    examples = [
        SuiteExample(suite=suite.spec.name, example=example)
        for suite in plan.suites
        for example in suite.examples
    ]
    with open_run(config.output, plan.manifest, examples) as folder:
        if folder.manifest.status == Status.COMPLETE:
            log.info("%s is complete; nothing to compute", config.output)
            return config.output
        work = Work(plan, folder, prompts)
        work.note_resumption()
        work.training()
        if plan.suites:
            work.likelihoods()
            work.generations()
        work.check_generations()
        work.scores()
        work.judgments()
        work.finish()
    return config.output


def _prompts(plan: Plan) -> dict[str, Prompts]:
    return render_all(plan.checkpoints, plan.suites, plan.settings.max_model_len)


class Work:
    """The stages of one run on one folder."""

    def __init__(self, plan: Plan, folder: RunFolder, prompts: Mapping[str, Prompts]) -> None:
        self.plan = plan
        self.folder = folder
        self.prompts = prompts
        self.generated = {GENERATIONS.identity(g): g for g in folder.records(GENERATIONS)}
        self.scored = {SCORES.identity(s) for s in folder.records(SCORES)}
        self.canaries = canary_sequences(plan.checkpoints[0]) if plan.suites else ()
        self.readings: dict[str, Readings] = {}
        self.sums: dict[tuple[str, str], dict[str, LogProbs]] = {}

    # -- training logs -------------------------------------------------------------------------

    def training(self) -> None:
        """Copy the logged steps, so that the folder can be read where the logs are gone."""
        if self.plan.manifest.training is not None:
            self.folder.write_all(TRAINING, self.plan.training_rows)

    # -- likelihoods and canary readings -------------------------------------------------------

    def likelihoods(self) -> None:
        """Score given answers in float32 and take the canary readings, one model load each."""
        for checkpoint in self.plan.checkpoints:
            self.readings[checkpoint.spec.name] = self._likelihoods(checkpoint)

    def _likelihoods(self, checkpoint: Loadable) -> Readings:
        """Return a checkpoint's canary reading; its float32 model is gone when this returns."""
        reading = remembered_reading(checkpoint, self.canaries)
        missing = [
            suite
            for suite in self.plan.suites
            if LIKELIHOOD in suite.spec.metrics and not self._has_likelihoods(checkpoint, suite)
        ]
        if reading is not None and not missing:
            return reading
        model = ReferenceModel(checkpoint)
        for suite in missing:
            prompts = self.prompts[checkpoint.spec.name][suite.spec.name]
            self._append_scores(raw_scores(checkpoint, suite, prompts, model))
        return reading or take_reading(checkpoint, self.canaries, model)

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
        """Sample all missing answers of all checkpoints through one engine start."""
        todo = [c for c in self.plan.checkpoints if self._missing_chunks(c)]
        if not todo:
            return
        canary = Canary(self.canaries, self.readings)
        engine = VllmEngine(self.plan.settings, self.plan.config.seed)
        try:
            for place, checkpoint in enumerate(todo, start=1):
                log.info(
                    "loading '%s' into the engine (%d of %d)",
                    checkpoint.spec.name,
                    place,
                    len(todo),
                )
                starts = engine.starts
                engine.load(checkpoint)
                if engine.starts > starts:
                    self._note("engine started", checkpoint=checkpoint.spec.name)
                proof = canary.verify(engine, checkpoint)
                log.info(
                    "canary of '%s': %.3f nats a token from its own reading%s",
                    proof.checkpoint,
                    proof.own,
                    ""
                    if proof.nearest_other is None
                    else f", {proof.nearest_other:.3f} from the nearest other",
                )
                if not proof.told_apart:
                    log.warning(
                        "'%s' is too like another checkpoint for the canary to tell them apart",
                        proof.checkpoint,
                    )
                self._note("loaded", **proof.model_dump(mode="json"))
                self.generate(engine, checkpoint)
        finally:
            engine.close()

    def note_resumption(self) -> None:
        """Record that earlier work is gone on with, and where."""
        if self.generated or self.scored:
            self._note("resumed", git_commit=git_commit(), cpu=hardware()["cpu"])

    def _note(self, event: str, **facts: Any) -> None:
        """Keep what happened in the manifest, at once: a killed run keeps its history."""
        found = self.folder.manifest
        events = (*found.events, {"event": event, "time": now(), **facts})
        self.folder.write_manifest(found.model_copy(update={"events": events}))

    def _missing_chunks(self, checkpoint: Loadable) -> list[list[Request]]:
        requests = make_requests(
            self.plan.suites, self.prompts[checkpoint.spec.name], self.plan.config.seed
        )
        chunks = [
            requests[i : i + self.plan.settings.chunk]
            for i in range(0, len(requests), self.plan.settings.chunk)
        ]
        return [
            c for c in chunks if any(self._identity(checkpoint, r) not in self.generated for r in c)
        ]

    @staticmethod
    def _identity(checkpoint: Loadable, request: Request) -> tuple[Any, ...]:
        suite, example, sample = split_key(request.key)
        return (suite, checkpoint.spec.name, example, sample)

    def generate(self, engine: VllmEngine, checkpoint: Loadable) -> None:
        """Sample a checkpoint's missing answers with the engine that holds it; append each."""
        chunks = self._missing_chunks(checkpoint)
        total = sum(map(len, chunks))
        with bar(total, f"generate {checkpoint.spec.name}", "answer") as shown:
            for chunk in chunks:
                lengths = {r.key: len(r.prompt) for r in chunk}
                for batch in _batched(engine.generate(chunk), shown):
                    made = [as_generation(checkpoint, c, lengths[c.key]) for c in batch]
                    new = [g for g in made if GENERATIONS.identity(g) not in self.generated]
                    self.folder.append(GENERATIONS, new)
                    self.generated |= {GENERATIONS.identity(g): g for g in new}

    def check_generations(self) -> None:
        """Refuse to go on where the engine left answers out.

        Raises:
            EngineError: answers are missing; what there is stays.
        """
        expected = self.plan.manifest.counts["generations"].expected
        if missing := expected - len(self.generated):
            raise EngineError(f"the engine left out {missing} of {expected} answers; run again.")

    # -- scores --------------------------------------------------------------------------------

    def scores(self) -> None:
        """Compute every metric of every checkpoint on every suite."""
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
                self._append_scores(self._preference_scores(suite, checkpoint))
            else:
                self._append_scores(self.plan.metrics[metric].score(suite.examples, generations))

    def _answers(self) -> dict[tuple[str, str], list[Generation]]:
        answers: dict[tuple[str, str], list[Generation]] = defaultdict(list)
        for generation in self.generated.values():
            answers[generation.suite, generation.checkpoint].append(generation)
        return answers

    def _preference_scores(self, suite: Suite, checkpoint: Loadable) -> list[Score]:
        rows = self._log_probabilities(suite, checkpoint)
        base = self._log_probabilities(suite, self.plan.checkpoints[0])
        return preference_scores(checkpoint.spec.name, suite.spec.name, rows, base)

    def _log_probabilities(self, suite: Suite, checkpoint: Loadable) -> dict[str, LogProbs]:
        key = (suite.spec.name, checkpoint.spec.name)
        if not self.sums:
            self.sums = pair_sums(self.folder.records(SCORES))
        return self.sums.get(key, {})

    # -- judgments -----------------------------------------------------------------------------

    def judgments(self) -> None:
        """Let every judge of a suite compare all checkpoints, and each with the reference."""
        texts = {
            (g.suite, g.checkpoint, g.example_id): g.text
            for g in self.generated.values()
            if g.sample == 0
        }
        present = {JUDGMENTS.identity(j) for j in self.folder.records(JUDGMENTS)}
        for suite in self.plan.suites:
            for name in suite.spec.judges:
                judge = self.plan.judges[name]
                pairs = [
                    pair
                    for pair in make_pairs(suite, self.plan.checkpoints, texts, judge)
                    if (suite.spec.name, name, pair.candidate, pair.baseline, pair.example.id)
                    not in present
                ]
                log.info("judge '%s' compares %d pairs on %s", name, len(pairs), suite.spec.name)
                self._judge(judge, pairs)

    def _judge(self, judge: Judge, pairs: Sequence[AnswerPair]) -> None:
        verdicts: list[Judgment] = judge.compare(pairs) if pairs else []
        self.folder.append(JUDGMENTS, verdicts)

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
        counts = {name: Counts(expected=n, present=n) for name, n in present.items()}
        self.folder.write_manifest(found.model_copy(update={"counts": found.counts | counts}))
        self.folder.seal()


FLUSH = 16
"""Answers written to disk together, at most."""


def _batched(completions: Iterator[Completion], bar: Any) -> Iterator[list[Completion]]:
    batch: list[Completion] = []
    for completion in completions:
        bar.update(1)
        batch.append(completion)
        if len(batch) >= FLUSH:
            yield batch
            batch = []
    if batch:
        yield batch
