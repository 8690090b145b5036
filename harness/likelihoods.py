"""What float32 models say of given answers: the facts behind preference accuracy and reference KL.

A checkpoint is held against the run's base only where both have weights here and the same
tokenizer, and in given answers the same chat template; elsewhere scores are missing and say why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from harness.engines.reference import Continuation, Divergence, ReferenceModel, answer_sums
from harness.errors import InputError
from harness.metrics import answer_score
from harness.metrics.likelihood import (
    KL_INFO,
    SCORED,
    LogProbs,
    pair_score,
    preference_scores,
)
from harness.progress import bar
from harness.prompts import answer_ids, checkpoint_tokenizer, end_of_turn
from harness.suites import Suite
from harness.types import Example, Form, Generation, Loadable, Score

RAW_KEYS = ("logprob_chosen", "logprob_rejected")
"""Metric keys of the raw sums behind preference accuracy, nats."""

KL_KEYS = tuple(info.key for info in KL_INFO)

OTHER_WIDTH = "its vocabulary is wider or narrower than the base's"

FORMS = {Form.ENDPOINT: "an endpoint", Form.RECORDED: "a file of recorded answers"}

Models = Callable[[Loadable], ReferenceModel]
"""Returns a checkpoint's float32 model; called only where one is needed."""

PairSums = Mapping[tuple[str, str], Mapping[str, LogProbs]]
"""(suite, checkpoint) -> example id -> sums, nats, of better and worse answer."""


def no_weights(checkpoint: Loadable) -> str | None:
    """Return why a checkpoint's likelihoods cannot be read here; None where they can."""
    if checkpoint.form is Form.WEIGHTS:
        return None
    return f"'{checkpoint.spec.name}' is {FORMS[checkpoint.form]}: its weights are not here"


def unlike_base(checkpoint: Loadable, base: Loadable) -> str | None:
    """Return why a checkpoint's likelihoods cannot be held against the base's; None if they can.

    Under another tokenizer an answer is other tokens, whose probabilities are of other events.
    """
    if (reason := no_weights(checkpoint) or no_weights(base)) is not None:
        return reason
    if checkpoint.tokenizer_sha256 != base.tokenizer_sha256:
        return f"its tokenizer differs from that of the base '{base.spec.name}'"
    return None


# -- preference accuracy -----------------------------------------------------------------------


def raw_scores(
    checkpoint: Loadable,
    suite: Suite,
    prompts: Mapping[str, tuple[int, ...]],
    model: ReferenceModel,
) -> list[Score]:
    """Score chosen and rejected answers of a suite, each with its end-of-turn token.

    Raises:
        InputError: an example lacks one of the two.
    """
    tokenizer = checkpoint_tokenizer(checkpoint)
    end = end_of_turn(tokenizer)
    items = [
        Continuation(key=f"{metric}\n{example.id}", prompt=prompts[example.id], answer=(*ids, end))
        for example in suite.examples
        for metric, ids in zip(
            RAW_KEYS, answer_ids(tokenizer, example.messages, _both(example)), strict=True
        )
    ]
    with bar(len(items), f"likelihood {checkpoint.spec.name}", "answer") as shown:
        sums = answer_sums(model, items, shown.update)
    scores = []
    for key, value in sums.items():
        metric, example_id = key.split("\n")
        scores.append(pair_score(checkpoint.spec.name, suite.spec.name, metric, example_id, value))
    return scores


def _both(example: Example) -> tuple[str, str]:
    """Return the better and the worse answer of an example."""
    if example.reference is None or example.rejected is None:
        raise InputError(f"'{example.id}' lacks an answer that preference_accuracy needs")
    return example.reference, example.rejected


def missing_scores(
    checkpoint: Loadable, suite: Suite, keys: Sequence[str], reason: str
) -> list[Score]:
    """Return a missing score for every example and key, all for one reason."""
    return [
        pair_score(checkpoint.spec.name, suite.spec.name, key, example.id, None, reason)
        for example in suite.examples
        for key in keys
    ]


def pair_sums(scores: Iterable[Score]) -> dict[tuple[str, str], dict[str, LogProbs]]:
    """Return the sums of all pairs of which both halves were read."""
    halves: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for score in scores:
        if score.metric in RAW_KEYS and score.value is not None:
            halves[score.suite, score.checkpoint][score.example_id][score.metric] = score.value
    return {
        key: {i: (v[RAW_KEYS[0]], v[RAW_KEYS[1]]) for i, v in sorted(rows.items()) if len(v) == 2}
        for key, rows in halves.items()
    }


def preference_table(
    checkpoint: Loadable, base: Loadable, suite: Suite, sums: PairSums
) -> list[Score]:
    """Return the preference scores of a checkpoint on a suite, or why they are missing."""
    if (reason := no_weights(checkpoint)) is not None:
        return missing_scores(checkpoint, suite, SCORED, reason)
    name, place = checkpoint.spec.name, suite.spec.name
    rows, base_rows = sums.get((place, name), {}), sums.get((place, base.spec.name), {})
    unlike = unlike_base(checkpoint, base) or _other_template(checkpoint, base)
    return preference_scores(name, place, rows, base_rows, unlike=unlike)


def _other_template(checkpoint: Loadable, base: Loadable) -> str | None:
    """Return that the two read a pair in different chat templates: as different texts."""
    if checkpoint.template_sha256 == base.template_sha256:
        return None
    return f"its chat template differs from that of the base '{base.spec.name}'"


# -- divergence from the base ------------------------------------------------------------------


def kl_scores(
    checkpoint: Loadable,
    base: Loadable,
    prompts: Mapping[str, tuple[int, ...]],
    generations: Sequence[Generation],
    models: Models,
) -> list[Score]:
    """Return ``reference_kl`` and ``reference_kl_sampled`` of a checkpoint's first samples.

    With y the T tokens of an answer to x, and s_t = (x, y_<t):
    (1/T) sum_t KL(pi(.|s_t) || pi_base(.|s_t)), exact over the vocabulary, and
    (1/T) sum_t log pi(y_t|s_t) - log pi_base(y_t|s_t), both in nats a token.

    Args:
        prompts: token ids by example id, as the answers were generated from.
        generations: the checkpoint's answers to one suite; samples other than 0 are ignored.
        models: returns the float32 model of the checkpoint and of the base; not called where
            no answer can be read, or where the checkpoint is the base.
    """
    firsts = [answer for answer in generations if answer.sample == 0]
    unlike = unlike_base(checkpoint, base)
    missing = {a.example_id: r for a in firsts if (r := unlike or _unreadable(a)) is not None}
    readable = [answer for answer in firsts if answer.example_id not in missing]
    found: dict[str, tuple[float, float]] = {}
    if _same_model(checkpoint, base):
        found = {answer.example_id: (0.0, 0.0) for answer in readable}
    elif readable:
        found = _divergence_means(checkpoint, base, prompts, readable, models)
        missing |= {a.example_id: OTHER_WIDTH for a in readable if a.example_id not in found}
    return [score for answer in firsts for score in _kl_pair(answer, found, missing)]


def _same_model(one: Loadable, other: Loadable) -> bool:
    """Whether two checkpoints compute the same: weights alone do not say, rope scaling counts."""
    return len({(c.weights_sha256, c.architecture) for c in (one, other)}) == 1


def _unreadable(answer: Generation) -> str | None:
    if answer.token_ids is None:
        return "nobody kept the answer's token ids"
    return None if answer.token_ids else "the answer has no token"


def _divergence_means(
    checkpoint: Loadable,
    base: Loadable,
    prompts: Mapping[str, tuple[int, ...]],
    answers: Sequence[Generation],
    models: Models,
) -> dict[str, tuple[float, float]]:
    """Return both means by example id; empty where the models' vocabularies differ in width."""
    items = [
        Continuation(key=a.example_id, prompt=prompts[a.example_id], answer=a.token_ids or ())
        for a in answers
    ]
    own, other = models(checkpoint), models(base)
    if own.vocabulary != other.vocabulary:
        return {}
    with bar(len(items), f"reference KL {checkpoint.spec.name}", "answer") as shown:
        found = {}
        for key, tokens in own.divergences(other, items):
            found[key] = _means(tokens)
            shown.update(1)
    return found


def _means(tokens: Sequence[Divergence]) -> tuple[float, float]:
    return fmean(t.kl for t in tokens), fmean(t.log_ratio for t in tokens)


def _kl_pair(
    answer: Generation,
    found: Mapping[str, tuple[float, float]],
    missing: Mapping[str, str],
) -> Iterator[Score]:
    values = found.get(answer.example_id, (None, None))
    reason = missing.get(answer.example_id)
    for key, value in zip(KL_KEYS, values, strict=True):
        yield answer_score(answer, key, value, reason=reason)
