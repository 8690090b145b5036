"""The stage that samples answers: each engine started once, each checkpoint held and proved."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.adapters.identity import verify_unchanged
from harness.canary import Canary, CanaryProof, Readings, Sequences
from harness.engines import Completion, Engine, Failure, ReadableEngine, Request, split_key
from harness.errors import EngineDiedError, EngineError, RunFolderError
from harness.groups import EngineGroup, speed_of
from harness.plan import Plan
from harness.progress import bar
from harness.prompts import Prompts
from harness.requests import as_generation, make_requests, request_sha256
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

Note = Callable[..., None]


class Sampler:
    """Samples what is missing of a run's answers, group by group, and appends each to disk.

    Args:
        canaries: by checkpoint name, the canary texts of its engine group in token ids.
        readings: by checkpoint name, its independent reading of them.
        note: keeps an event in the manifest, at once.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        prompts: Mapping[str, Prompts],
        canaries: Mapping[str, Sequences],
        readings: Mapping[str, Readings],
        note: Note,
    ) -> None:
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
            todo = [queue for queue in waiting if queue.chunks()]
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
                return
            except EngineDiedError as error:
                engine.close()
                deaths = deaths + 1 if len(self.generated) == before else 1
                self.note("engine died", checkpoint=queue.checkpoint.spec.name, reason=str(error))
                if deaths > RESTARTS:
                    raise
                log.warning("%s; starting it again", error)

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
    """The requests of all suites to one checkpoint, and which of them are still to be answered."""

    def __init__(self, sampler: Sampler, group: EngineGroup, checkpoint: Loadable) -> None:
        plan = sampler.plan
        self.sampler = sampler
        self.group = group
        self.checkpoint = checkpoint
        name = checkpoint.spec.name
        self.requests = make_requests(plan.suites, sampler.prompts.get(name, {}), plan.config.seed)
        engine = group.sha256(plan.config.seed)
        self.asked = {r.key: request_sha256(checkpoint, r, engine) for r in self.requests}
        self._check_kept()

    def _check_kept(self) -> None:
        """Refuse answers on disk that were given to another request.

        Raises:
            RunFolderError: names the first.
        """
        for request in self.requests:
            kept = self.sampler.generated.get(identity(self.checkpoint, request.key))
            if kept is not None and kept.request_sha256 != self.asked[request.key]:
                raise RunFolderError(
                    f"{self.sampler.folder.path / GENERATIONS.file}: the answer of "
                    f"'{self.checkpoint.spec.name}' to {kept.suite}/{kept.example_id} was given to "
                    "another request (other weights, prompt, sampling, seed or engine). Give "
                    "another --output, or remove the folder to start afresh."
                )

    def chunks(self) -> list[list[Request]]:
        """Return what to hand over: whole chunks with anything missing, so that batches repeat.

        Where answers do not depend on the batch (endpoints, files): what is missing alone.
        """
        if self.group.form != Form.WEIGHTS:
            missing = [r for r in self.requests if self._missing(r)]
            return [missing] if missing else []
        size: int = self.group.settings.chunk  # type: ignore[union-attr]
        every = [self.requests[i : i + size] for i in range(0, len(self.requests), size)]
        return [chunk for chunk in every if any(map(self._missing, chunk))]

    def _missing(self, request: Request) -> bool:
        return identity(self.checkpoint, request.key) not in self.sampler.generated

    def work(self, engine: Engine) -> None:
        """Sample the missing answers with the engine that holds the checkpoint."""
        chunks = self.chunks()
        before, started = self._tokens(), time.monotonic()
        with bar(sum(map(len, chunks)), f"generate {self.checkpoint.spec.name}", "answer") as shown:
            for chunk in chunks:
                replies = _counted(engine.generate(chunk), shown)
                self.sampler.take(self.checkpoint, replies, self.asked)
        remember_speed(
            self._tokens() - before,
            time.monotonic() - started,
            **speed_of(self.group, self.checkpoint),
        )
        verify_unchanged(self.checkpoint)

    def _tokens(self) -> int:
        name = self.checkpoint.spec.name
        return sum(g.tokens or 0 for g in self.sampler.generated.values() if g.checkpoint == name)


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
