"""The stage that samples answers: each engine started once, each checkpoint held and proved."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.adapters.identity import verify_unchanged
from harness.canary import Canary, CanaryProof, Readings, Sequences
from harness.capability.stage import TaskStage
from harness.dialogues import answers_needed, earlier_questions, with_answers
from harness.engines import Completion, Engine, Failure, ReadableEngine, Request, split_key
from harness.engines.settings import EngineSettings
from harness.errors import EngineDiedError, EngineError, RunFolderError
from harness.groups import EngineGroup, speed_of
from harness.plan import Plan
from harness.progress import bar
from harness.prompts import Prompts, checkpoint_tokenizer, render
from harness.requests import as_generation, make_requests, request_sha256, rounds
from harness.speeds import remember_speed
from harness.store import GENERATIONS, RunFolder
from harness.types import Form, Loadable

log = logging.getLogger(__name__)

FLUSH = 16
"""Answers written to disk together, at most."""

RESTARTS = 2
"""Deaths of an engine in a row, without one new answer between them, that are put up with."""

NAMED = 5
"""Unanswered requests that a message names."""

NO_EARLIER = "an earlier question of its dialogue has no answer"
NO_ROOM = "the dialogue so far leaves no room for an answer"

Note = Callable[..., None]


class Sampler:
    """Samples what is missing of a run's answers, group by group, and appends each to disk.

    Args:
        canaries: by checkpoint name, the canary texts of its engine group in token ids.
        readings: by checkpoint name, its independent reading of them.
        note: keeps an event in the manifest, at once.
        stage: evaluates what lm-eval runs on the same engine, each checkpoint while it is held.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        prompts: Mapping[str, Prompts],
        canaries: Mapping[str, Sequences],
        readings: Mapping[str, Readings],
        note: Note,
        stage: TaskStage | None = None,
    ) -> None:
        self.stage = stage
        self.plan = plan
        self.folder = folder
        self.prompts = prompts
        self.canaries = canaries
        self.readings = readings
        self.note = note
        self.generated = {GENERATIONS.identity(g): g for g in folder.records(GENERATIONS)}
        self.failures: dict[tuple[Any, ...], Failure] = {}

    def run(self) -> None:
        """Sample all missing answers, each group of checkpoints through one engine start.

        Raises:
            RunFolderError: an answer on disk was given to another request; nothing was started.
            EngineError: an engine failed, or answers for another checkpoint.
        """
        queues = [[Queue(self, g, c) for c in g.checkpoints] for g in self.plan.groups]
        for group, waiting in zip(self.plan.groups, queues, strict=True):
            todo = [queue for queue in waiting if self.waits(queue)]
            if todo:
                self._serve(group, todo)

    def _serve(self, group: EngineGroup, queues: Sequence[Queue]) -> None:
        engine = group.make(self.plan.config.seed)
        canary = self._canary(group)
        try:
            for place, queue in enumerate(queues, start=1):
                name = queue.checkpoint.spec.name
                log.info("'%s' on %s (%d of %d)", name, group.engine, place, len(queues))
                self._to_the_end(engine, canary, queue)
        finally:
            engine.close()

    def _canary(self, group: EngineGroup) -> Canary | None:
        names = [c.spec.name for c in group.checkpoints]
        if group.form != Form.WEIGHTS:
            return None
        return Canary(self.canaries[names[0]], {n: self.readings[n] for n in names})

    def _to_the_end(self, engine: Engine, canary: Canary | None, queue: Queue) -> None:
        """Answer a queue; an engine that dies is started again while it makes progress."""
        deaths = 0
        while True:
            before = len(self.generated)
            try:
                self._hold(engine, canary, queue.checkpoint)
                queue.work(engine)
                self._evaluate(engine, queue)
                return
            except EngineDiedError as error:
                engine.close()
                deaths = deaths + 1 if len(self.generated) == before else 1
                self.note("engine died", checkpoint=queue.checkpoint.spec.name, reason=str(error))
                if deaths > RESTARTS:
                    raise
                log.warning("%s; starting it again", error)

    def _evaluate(self, engine: Engine, queue: Queue) -> None:
        settings = queue.group.settings
        if self.stage is not None and isinstance(settings, EngineSettings):
            self.stage.work(engine, queue.checkpoint, settings.max_model_len)
            verify_unchanged(queue.checkpoint)

    def waits(self, queue: Queue) -> bool:
        """Return whether anything of a queue's checkpoint is missing that its engine can give."""
        if queue.unfinished():
            return True
        weights = queue.group.form is Form.WEIGHTS
        return weights and self.stage is not None and bool(self.stage.missing(queue.checkpoint))

    def _hold(self, engine: Engine, canary: Canary | None, checkpoint: Loadable) -> None:
        """Load a checkpoint and prove that the engine holds it.

        Raises:
            EngineError: the engine refuses it, or answers for another one.
            CheckpointError: its weights are no longer those of the run.
        """
        name = checkpoint.spec.name
        verify_unchanged(checkpoint)
        if engine.load(checkpoint):
            self.note("engine started", checkpoint=name, engine=engine.identity["name"])
        if canary is None:
            self.note("loaded", checkpoint=name)
        elif isinstance(engine, ReadableEngine):
            proof = canary.verify(engine, checkpoint)
            _say(proof)
            self.note("loaded", **proof.model_dump(mode="json"))
        else:
            raise EngineError(f"'{name}': the engine cannot show what it holds; use another one")

    def take(
        self, checkpoint: Loadable, replies: Iterable[Completion | Failure], asked: Asked
    ) -> None:
        """Append answers as they come, in small batches; keep what failed."""
        for batch in _batched(replies):
            made = []
            for reply in batch:
                key = identity(checkpoint, reply.key)
                if isinstance(reply, Failure):
                    self.failures[key] = reply
                elif key not in self.generated:
                    made.append(as_generation(checkpoint, reply, asked[reply.key]))
            self.folder.append(GENERATIONS, made)
            self.generated |= {GENERATIONS.identity(g): g for g in made}

    def check(self) -> None:
        """Refuse to go on where answers are missing that another try may bring.

        Answers that cannot be had (not in a recorded file) are noted and stay a gap.

        Raises:
            EngineError: answers are missing; what there is stays.
        """
        expected = self.plan.manifest.counts["generations"].expected
        self._refuse_silent()
        final = {key: f for key, f in self.failures.items() if f.final}
        for name, failures in _by_checkpoint(final).items():
            self.note("not answered", checkpoint=name, count=len(failures), first=_first(failures))
            log.warning(
                "'%s': %d answers are not to be had: %s", name, len(failures), _first(failures)
            )
        missing = expected - len(self.generated) - len(final)
        if missing:
            open_ones = [f for f in self.failures.values() if not f.final]
            why = f" ({_first(open_ones)})" if open_ones else ""
            raise EngineError(
                f"{missing} of {expected} answers are missing{why}. What was computed is kept; "
                "run the same command to ask for the rest."
            )

    def _refuse_silent(self) -> None:
        """Refuse a run in which a checkpoint answered nothing at all.

        Raises:
            EngineError: names it, with the first reason.
        """
        answered = {generation.checkpoint for generation in self.generated.values()}
        for name, failures in _by_checkpoint(self.failures).items():
            if name not in answered:
                raise EngineError(f"'{name}' answered nothing: {_first(failures)}")


Asked = Mapping[str, str]
"""Request key -> hash of the request."""


def identity(checkpoint: Loadable, key: str) -> tuple[Any, ...]:
    """Return the identity, as the store has it, of the answer to a request of a checkpoint."""
    suite, example, sample = split_key(key)
    return (suite, checkpoint.spec.name, example, sample)


class Queue:
    """The requests of all suites to one checkpoint, and which of them are still to be answered.

    The later questions of a dialogue are asked in rounds of their own, for each goes on from the
    checkpoint's own answers to those before it.
    """

    def __init__(self, sampler: Sampler, group: EngineGroup, checkpoint: Loadable) -> None:
        self.sampler = sampler
        self.group = group
        self.checkpoint = checkpoint
        self.dialogues = Dialogues(sampler.plan, checkpoint)
        self.engine = group.sha256(sampler.plan.config.seed)
        # Recorded answers to later questions are on file like all others.
        alone = group.form is Form.RECORDED
        self.depths: list[int | None] = [None] if alone else [*range(rounds(sampler.plan.suites))]
        for depth in self.depths:
            requests = [r for r in self._requests(depth) if isinstance(r, Request)]
            self._check_kept(requests)

    def _requests(self, depth: int | None) -> list[Request | Failure]:
        """Return what is asked in a round; a Failure where an earlier answer is not there."""
        plan = self.sampler.plan
        prompts = self.sampler.prompts.get(self.checkpoint.spec.name, {})
        asked = make_requests(plan.suites, prompts, plan.config.seed, depth)
        if not depth:
            return list(asked)
        return [self.dialogues.going_on(r, self._earlier(r), self._room()) for r in asked]

    def _earlier(self, request: Request) -> list[str | Failure | None]:
        """Return the answers before a later question; what became of those that are not there."""
        suite, example, sample = split_key(request.key)
        found: list[str | Failure | None] = []
        for before in self.dialogues.earlier[suite][example]:
            key = (suite, self.checkpoint.spec.name, before, sample)
            answer = self.sampler.generated.get(key)
            found.append(answer.text if answer else self.sampler.failures.get(key))
        return found

    def _room(self) -> int | None:
        settings = self.group.settings
        return settings.max_model_len if isinstance(settings, EngineSettings) else None

    def _asked(self, requests: Sequence[Request]) -> Asked:
        return {r.key: request_sha256(self.checkpoint, r, self.engine) for r in requests}

    def _check_kept(self, requests: Sequence[Request]) -> None:
        """Refuse answers on disk that were given to another request.

        Raises:
            RunFolderError: names the first.
        """
        asked = self._asked(requests)
        for request in requests:
            kept = self.sampler.generated.get(identity(self.checkpoint, request.key))
            if kept is not None and kept.request_sha256 != asked[request.key]:
                raise RunFolderError(
                    f"{self.sampler.folder.path / GENERATIONS.file}: the answer of "
                    f"'{self.checkpoint.spec.name}' to {kept.suite}/{kept.example_id} was given to "
                    "another request (other weights, prompt, sampling, seed or engine). Give "
                    "another --output, or remove the folder to start afresh."
                )

    def unfinished(self) -> bool:
        """Return whether any answer is missing."""
        plan = self.sampler.plan
        return any(map(self._missing, make_requests(plan.suites, {}, plan.config.seed)))

    def _chunks(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Return what to hand over: whole chunks with anything missing, so that batches repeat.

        Where answers do not depend on the batch (endpoints, files): what is missing alone.
        """
        if self.group.form != Form.WEIGHTS:
            missing = [r for r in requests if self._missing(r)]
            return [missing] if missing else []
        size: int = self.group.settings.chunk  # type: ignore[union-attr]
        every = [list(requests[i : i + size]) for i in range(0, len(requests), size)]
        return [chunk for chunk in every if any(map(self._missing, chunk))]

    def _missing(self, request: Request) -> bool:
        return identity(self.checkpoint, request.key) not in self.sampler.generated

    def work(self, engine: Engine) -> None:
        """Sample the missing answers with the engine that holds the checkpoint."""
        before, started = self._tokens(), time.monotonic()
        for depth in self.depths:
            self._work(engine, depth)
        remember_speed(
            self._tokens() - before,
            time.monotonic() - started,
            **speed_of(self.group, self.checkpoint),
        )
        verify_unchanged(self.checkpoint)

    def _work(self, engine: Engine, depth: int | None) -> None:
        requests: list[Request] = []
        lacking: list[Failure] = []
        for asked in self._requests(depth):
            if isinstance(asked, Failure):
                lacking.append(asked)
            else:
                requests.append(asked)
        self.sampler.take(self.checkpoint, lacking, {})
        chunks, hashes = self._chunks(requests), self._asked(requests)
        title = f"generate {self.checkpoint.spec.name}" + (f", turn {depth + 1}" if depth else "")
        with bar(sum(map(len, chunks)), title, "answer") as shown:
            for chunk in chunks:
                replies = _counted(engine.generate(chunk), shown)
                self.sampler.take(self.checkpoint, replies, hashes)

    def _tokens(self) -> int:
        name = self.checkpoint.spec.name
        return sum(g.tokens or 0 for g in self.sampler.generated.values() if g.checkpoint == name)


class Dialogues:
    """The later questions of a plan's dialogues, put to one checkpoint after its own answers."""

    def __init__(self, plan: Plan, checkpoint: Loadable) -> None:
        self.checkpoint = checkpoint
        self.earlier = {s.spec.name: earlier_questions(s.examples) for s in plan.suites}

    @cached_property
    def _tokenizer(self) -> Any:
        return checkpoint_tokenizer(self.checkpoint)

    def going_on(
        self, request: Request, before: Sequence[str | Failure | None], room: int | None
    ) -> Request | Failure:
        """Return a later question with the answers before it in its chat.

        Args:
            before: the answers; what became of those that are not there.
            room: longest prompt plus answer, in tokens; None where a server renders.
        """
        answers = [text for text in before if isinstance(text, str)]
        if len(answers) < answers_needed(request.messages):
            lost = [reply for reply in before if isinstance(reply, Failure)]
            final = any(failure.final for failure in lost)
            return Failure(key=request.key, reason=NO_EARLIER, final=final)
        chat = with_answers(request.messages, answers)
        if room is None:
            return request.model_copy(update={"messages": chat})
        prompt = tuple(render(self._tokenizer, chat))
        # Sampled tokens may be more when they are tokenised again as text.
        left = min(request.sampling.max_tokens, room - len(prompt))
        if left < 1:
            return Failure(key=request.key, reason=NO_ROOM, final=True)
        sampling = request.sampling.model_copy(update={"max_tokens": left})
        changes = {"messages": chat, "prompt": prompt, "sampling": sampling}
        return request.model_copy(update=changes)


def _say(proof: CanaryProof) -> None:
    other = (
        "" if proof.nearest_other is None else f", {proof.nearest_other:.3f} from the nearest other"
    )
    log.info(
        "canary of '%s': %.3f nats a token from its own reading%s",
        proof.checkpoint,
        proof.own,
        other,
    )
    if not proof.told_apart:
        log.warning(
            "'%s' is too like another checkpoint for the canary to tell them apart",
            proof.checkpoint,
        )


def _by_checkpoint(failures: Mapping[tuple[Any, ...], Failure]) -> dict[str, list[Failure]]:
    found: dict[str, list[Failure]] = {}
    for key, failure in failures.items():
        found.setdefault(key[1], []).append(failure)
    return found


def _first(failures: Sequence[Failure]) -> str:
    shown = [f"{'/'.join(f.key.split(chr(10)))}: {f.reason}" for f in failures[:NAMED]]
    more = f"; and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
    return "; ".join(shown) + more


def _counted(replies: Iterable[Completion | Failure], shown: Any) -> Iterator[Completion | Failure]:
    for reply in replies:
        shown.update(1)
        yield reply


def _batched(replies: Iterable[Completion | Failure]) -> Iterator[list[Completion | Failure]]:
    """Yield replies in small batches; what arrived before the engine failed comes first."""
    batch: list[Completion | Failure] = []
    try:
        for reply in replies:
            batch.append(reply)
            if len(batch) >= FLUSH:
                yield batch
                batch = []
    except EngineError:
        yield batch
        raise
    if batch:
        yield batch
