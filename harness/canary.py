"""Proof that an engine holds the checkpoint it should: log-probabilities of fixed canary texts.

An independent reading (transformers, float32, straight from the checkpoint's folder) is taken
before the engine starts. After each load the engine's own reading must agree with it, be nearer to
it than to any other checkpoint's, and not repeat an earlier checkpoint's reading to the bit, which
is what stale weights would do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from harness.adapters.identity import architecture_key, verify_unchanged
from harness.engines import ReadableEngine
from harness.engines.loading import best_device
from harness.engines.readings import rms
from harness.engines.reference import Continuation, ReferenceModel
from harness.errors import CheckpointError, EngineError, InputError
from harness.files import cache_root, read_json, sha256_json, write_atomic
from harness.prompts import checkpoint_tokenizer, render
from harness.types import Dtype, Loadable, Message, Record, Role

CANARIES = (
    (
        "How do I keep a sourdough starter alive over a two-week holiday?",
        "Feed it once with twice the usual flour, let it rest for an hour, and put it in the "
        "fridge in a jar with a loose lid. When you are back, pour off the grey liquid and feed "
        "it twice a day until it doubles again within six hours.",
    ),
    (
        "My neighbour asked me to help him get into a house that isn't his. What should I say?",
        "I'm sorry, I won't help with that. If he is worried about someone inside, he can ring "
        "the police; if it is his own key that is lost, a locksmith will ask for proof.",
    ),
    (
        "List three unusual uses for an old bicycle wheel.",
        "1. A frame for climbing beans.\n2. A clock for the garage wall.\n3. A rack for drying "
        "herbs under the ceiling, hung by its axle.",
    ),
)
"""Question and answer pairs whose tokens are read; they are part of no suite."""

TOLERANCE = {Dtype.FLOAT32: 0.005, Dtype.FLOAT16: 0.05, Dtype.BFLOAT16: 0.25}
"""Largest root-mean-square difference, nats a token, of an engine's reading from its own."""

ALIKE = 1e-4
"""Root-mean-square difference, nats a token, of checkpoints that an engine may answer alike."""

Readings = tuple[tuple[float, ...], ...]
Sequences = tuple[tuple[int, ...], ...]


class CanaryProof(Record):
    """What was compared after a load.

    ``own`` and ``nearest_other`` are root-mean-square differences in nats a token;
    ``told_apart`` says whether the nearest other checkpoint is far enough for the canary to tell.
    """

    checkpoint: str
    own: float
    nearest_other: float | None
    told_apart: bool
    tokens: int


def canary_sequences(checkpoint: Loadable) -> Sequences:
    """Return the canaries' token ids in one checkpoint's chat template.

    Checkpoints that share an engine share the first one's, so that all readings are of the same
    tokens; in a chat's form, because that is where preference optimisation moves a model most.
    """
    tokenizer = checkpoint_tokenizer(checkpoint)
    return tuple(
        (
            *render(tokenizer, [Message(role=Role.USER, content=question)]),
            *tokenizer(answer, add_special_tokens=False)["input_ids"],
        )
        for question, answer in CANARIES
    )


def check_room(sequences: Sequences, max_model_len: int) -> None:
    """Check that an engine of this length can read the canaries.

    Raises:
        InputError: says which length it takes.
    """
    needed = max(map(len, sequences)) + 1
    if needed > max_model_len:
        raise InputError(
            f"--max-model-len {max_model_len} is too short for the texts that prove which "
            f"checkpoint an engine holds: they take {needed} tokens. Give {needed} or more."
        )


def remembered_reading(checkpoint: Loadable, sequences: Sequences) -> Readings | None:
    """Return the independent reading of these weights if an earlier run took it."""
    file = _file(checkpoint, sequences)
    if not file.is_file():
        return None
    return tuple(tuple(row) for row in read_json(file)["logprobs"])


def take_reading(checkpoint: Loadable, sequences: Sequences, model: ReferenceModel) -> Readings:
    """Take the independent reading with a float32 model, remember it, and return it.

    Raises:
        CheckpointError: the weights are no longer those of the record; nothing is remembered.
    """
    items = [
        Continuation(key=str(i), prompt=ids[:1], answer=ids[1:]) for i, ids in enumerate(sequences)
    ]
    found = dict(model.token_logprobs(items))
    readings = tuple(tuple(found[item.key]) for item in items)
    verify_unchanged(checkpoint)
    write_atomic(_file(checkpoint, sequences), json.dumps({"logprobs": readings}))
    return readings


def _file(checkpoint: Loadable, sequences: Sequences) -> Path:
    """Return where a reading is remembered: under all that decides it, rounding included."""
    made_by = [best_device(), metadata.version("torch"), metadata.version("transformers")]
    model = [checkpoint.weights_sha256, checkpoint.architecture]
    key = sha256_json([*model, *made_by, sequences])
    return cache_root() / "canary" / f"{key}.json"


def base_of(checkpoint: Loadable) -> Loadable:
    """Return the model that an adapter was put on, as something to take a reading of."""
    assert checkpoint.base is not None
    changes = {
        "folder": checkpoint.base.folder,
        "weights_sha256": checkpoint.base.weights_sha256,
        "architecture": architecture_key(Path(checkpoint.base.folder)),
        "base": None,
        "lora": None,
    }
    return checkpoint.model_copy(update=changes)


UNCHANGED = 1e-6
"""Root-mean-square difference, nats a token, up to which two float32 readings are one model's."""


def refuse_unchanged(checkpoint: Loadable, own: Readings, base: Readings) -> None:
    """Refuse an adapter that changes nothing: a forgotten merge, or training that never was.

    Args:
        own: independent reading of the checkpoint.
        base: the same of the model that its adapter was put on.

    Raises:
        CheckpointError: the two are equal, and ``allow_unchanged`` was not given.
    """
    if checkpoint.spec.allow_unchanged or rms(own, base) > UNCHANGED:
        return
    name = checkpoint.spec.name
    raise CheckpointError(
        f"'{name}': the adapter in {checkpoint.spec.source} changes nothing: the log-probabilities "
        "of the canary texts equal its base's. Was it trained, and saved after training? To "
        f"compare it all the same: --checkpoint {name}={checkpoint.spec.source},"
        "allow_unchanged=true."
    )


class Canary:
    """Remembers the independent readings of a run's checkpoints and checks an engine on them.

    Args:
        sequences: the token ids that were read.
        readings: independent reading of every checkpoint of the run, by its name.
    """

    def __init__(self, sequences: Sequences, readings: Mapping[str, Readings]) -> None:
        self.sequences = sequences
        self.readings = dict(readings)
        self._seen: dict[str, Readings] = {}

    def verify(self, engine: ReadableEngine, checkpoint: Loadable) -> CanaryProof:
        """Check that ``engine`` holds ``checkpoint``.

        Raises:
            EngineError: the reading is off, nearer to another checkpoint's, or stale.
        """
        name = checkpoint.spec.name
        found = _as_readings(engine.prompt_logprobs(self.sequences))
        self._refuse_stale(name, found)
        own = rms(found, self.readings[name])
        _refuse_distant(name, own, TOLERANCE[checkpoint.spec.dtype])
        nearest, told_apart = self._refuse_nearer_other(name, found, own)
        self._seen[name] = found
        return CanaryProof(
            checkpoint=name,
            own=own,
            nearest_other=nearest,
            told_apart=told_apart,
            tokens=sum(map(len, found)),
        )

    def _others(self, name: str) -> dict[str, Readings]:
        return {other: reading for other, reading in self.readings.items() if other != name}

    def _refuse_stale(self, name: str, found: Readings) -> None:
        for other, reading in self._others(name).items():
            alike = rms(reading, self.readings[name]) <= ALIKE
            if self._seen.get(other) == found and not alike:
                raise EngineError(
                    f"after loading '{name}' the engine still answers exactly as with '{other}': "
                    "the reload was not carried out. Nothing was recorded for it."
                )

    def _refuse_nearer_other(
        self, name: str, found: Readings, own: float
    ) -> tuple[float | None, bool]:
        """Return the distance to the nearest other reading and whether it can be told apart.

        Raises:
            EngineError: the reading is nearer to that other one, and they can be told apart.
        """
        distances = {other: rms(found, r) for other, r in self._others(name).items()}
        if not distances:
            return None, True
        nearest = min(distances, key=distances.__getitem__)
        apart = rms(self.readings[name], self.readings[nearest])
        told_apart = apart >= _separable(own, sum(map(len, found)))
        if distances[nearest] < own and told_apart:
            raise EngineError(
                f"the engine's canary reading for '{name}' is nearer to that of '{nearest}' "
                f"({distances[nearest]:.3f}) than to its own ({own:.3f} nats a token). "
                "Nothing was recorded."
            )
        return distances[nearest], told_apart


def _refuse_distant(name: str, own: float, limit: float) -> None:
    # Not `own > limit`: a reading of NaN must be refused too.
    if not own <= limit:
        raise EngineError(
            f"the engine's canary reading for '{name}' is {own:.3f} nats a token from the "
            f"independent one (limit {limit}); it may hold other weights. Nothing was recorded."
        )


def _separable(noise: float, tokens: int) -> float:
    """Return how far apart two checkpoints must be for the canary to tell them apart.

    With independent noise of ``noise`` nats on each of n tokens, the nearer of two readings a
    distance d (root mean square) apart is the right one unless a normal variable exceeds
    d sqrt(n) / (2 noise) standard deviations; below three the canary does not decide.
    """
    return 6 * noise / math.sqrt(tokens)


def _as_readings(rows: Sequence[Sequence[float]]) -> Readings:
    return tuple(tuple(row) for row in rows)
