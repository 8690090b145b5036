"""What is asked, answered, scored and judged: the records of a run, and an estimate."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.processor import computes_bfloat16

SCHEMA_VERSION = 2

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """Base of every record: immutable, unknown keys refused, NaN and infinities refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Role(StrEnum):
    """Who speaks in a chat turn."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Message(Record):
    """One chat turn."""

    role: Role
    content: str


class Dtype(StrEnum):
    """Arithmetic of the engine."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def native_dtype() -> Dtype:
    """Return the arithmetic that this machine is best at."""
    return Dtype.BFLOAT16 if computes_bfloat16() else Dtype.FLOAT32


def unset(value: object) -> bool:
    """Return whether a field has no value, and is left out of a dump as in older ones."""
    return value is None


def blank(value: object) -> bool:
    """Return whether a field holds nothing (false, or no entry) and is left out of a dump."""
    return not value


class CheckpointSpec(Record):
    """A checkpoint as the user named it.

    Attributes:
        name: unique in a run; shown in reports.
        source: a Hugging Face folder, a hub id (``org/name`` or ``org/name@revision``), a PEFT
            LoRA folder, a GGUF file, a ``policy.pt`` archive, the URL of an OpenAI-compatible
            endpoint, a file of recorded outputs, or ``embedded:NAME``.
        method: training method in the field's term (``sft``, ``dpo``, ``tbpo-q``...), shown only.
        adapter: name of the adapter; ``auto`` recognises the source by its files.
        base: base model of a LoRA, overriding the one its config names; of a ``policy.pt``.
        dtype: arithmetic in the engine; by default bfloat16, and float32 on a processor that
            would have to emulate it.
        merge: merge a LoRA into its base; otherwise the engine applies it, unmerged.
        chat_template: ``own`` (keep it although others differ), a Jinja file, or a folder whose
            template is taken.
        allow_unchanged: accept an adapter that changes nothing.
        model: name under which an endpoint serves the checkpoint.
        api_key_env: environment variable that holds an endpoint's key; never the key itself.
        training_logs: where its training logs are, if not beside its weights: a ``.jsonl`` file,
            or a folder with ``seeds/seed-N/train_log.jsonl`` or ``train_log.jsonl``.
        training_data: the rows that it was trained on, to be looked for in the suites: a file or
            a hub data set (``owner/name[:split]``), several with ``+`` between them.
    """

    name: str = Field(min_length=1, max_length=80, pattern=r"^[\w][\w.+-]*$")
    source: str = Field(min_length=1)
    method: str = "unknown"
    adapter: str = "auto"
    base: str | None = None
    dtype: Dtype = Field(default_factory=native_dtype)
    merge: bool = True
    chat_template: str | None = Field(default=None, min_length=1)
    allow_unchanged: bool = False
    model: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    training_logs: str | None = Field(default=None, min_length=1)
    # Left out of a dump where it is None: manifests of other runs keep their form.
    training_data: str | None = Field(default=None, min_length=1, exclude_if=unset)


class Form(StrEnum):
    """What a checkpoint is when it is asked: weights to load, a server, or answers on file."""

    WEIGHTS = "weights"
    ENDPOINT = "endpoint"
    RECORDED = "recorded"


class BaseWeights(Record):
    """The model that an adapter was put on: its folder and the hash of its weights."""

    folder: str
    weights_sha256: str


class Loadable(Record):
    """A checkpoint made ready to be asked, and its identity.

    Attributes:
        form: what it is; the engine follows from it.
        folder: a folder with config, safetensors and tokenizer; an endpoint's URL; the file of
            recorded outputs.
        weights_sha256: hash over the names and bytes of the weight files that are loaded, the
            adapter's included. An endpoint's weights cannot be seen: hash of URL, model name and
            what the server says of itself. Of recorded outputs: hash of the file.
        architecture: hash over what must agree for two checkpoints to share one engine.
        template_sha256: hash of the chat template in use; None where a server applies its own or
            answers are on file.
        tokenizer_sha256: hash over what the tokenizer does; None where there is none here.
        chat_template: text used in place of the folder's own template.
        base: what an adapter was put on; None for anything else.
        lora: folder of an adapter that the engine is to apply, unmerged, to ``folder``.
        notes: what the adapter did or dropped, in words.
    """

    spec: CheckpointSpec
    form: Form = Form.WEIGHTS
    folder: str
    weights_sha256: str
    architecture: str
    template_sha256: str | None
    tokenizer_sha256: str | None = None
    chat_template: str | None = None
    base: BaseWeights | None = None
    lora: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def arithmetic(self) -> Dtype | None:
        """The dtype it is computed in; None where that is done elsewhere or was done before."""
        return self.spec.dtype if self.form is Form.WEIGHTS else None


class Sampling(Record):
    """Sampling parameters of a suite; ``temperature`` 0 is greedy decoding.

    Attributes:
        stop: texts at whose first occurrence an answer ends; they are no part of it. Special
            tokens stay in an answer's text where there are any, for a text to stop at may be one.
    """

    temperature: float = Field(ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(ge=1)
    samples: int = Field(default=1, ge=1)
    # Left out of a dump where empty: requests without it keep their hash.
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), exclude_if=blank)


class Instruction(Record):
    """One verifiable constraint in IFEval's terms (Zhou et al., 2023, arXiv 2311.07911)."""

    id: str
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Expected(StrEnum):
    """What a decent assistant does with a prompt of an HH suite."""

    ANSWER = "answer"
    REFUSE = "refuse"


class Example(Record):
    """One prompt of a suite with what is known about its answers.

    Attributes:
        id: unique in its suite, on one line.
        unit: name of the independent unit, such as the dialogue of which this is one turn; the
            example is its own where it is None.
        messages: the chat up to and including the user turn to be answered.
        reference: a good answer (the data set's own), for overlap and win rates.
        rejected: a worse answer, for preference accuracy.
        subset: a named part of the suite, such as ``helpful``.
        instructions: constraints that the answer must keep.
        expected: whether the prompt should be answered or refused.
    """

    id: str = Field(pattern=r"^.+$")
    messages: tuple[Message, ...] = Field(min_length=1)
    reference: str | None = None
    rejected: str | None = None
    subset: str | None = None
    instructions: tuple[Instruction, ...] = ()
    expected: Expected | None = None
    # Left out of a dump where it is None: the content of other suites keeps its hash.
    unit: str | None = Field(default=None, exclude_if=unset)


class PromptStyle(StrEnum):
    """How a prompt is put to a model: in its chat template, or as it stands."""

    CHAT = "chat"
    PLAIN = "plain"


def is_chat(value: object) -> bool:
    """Return whether a style is the usual one, which a dump leaves out."""
    return value is PromptStyle.CHAT


class DataUsed(Record):
    """The file that a suite's examples were read from, where it does not come with the suite.

    Attributes:
        source: hub data set, file and commit; address; or the name of the user's own file.
        rows: of the file. left_out: rows that became no example, by reason.
    """

    source: str
    sha256: str
    rows: int
    left_out: dict[str, int] = Field(default_factory=dict)


class SuiteExample(Record):
    """An example as it was run, kept in the run folder so that the folder can be read alone."""

    suite: str
    example: Example


class FinishReason(StrEnum):
    """Why a generation ended: end-of-sequence token, or the token limit."""

    STOP = "stop"
    LENGTH = "length"


class Generation(Record):
    """One sampled answer.

    Attributes:
        weights_sha256: the checkpoint's weight hash at the time of generation.
        request_sha256: hash over everything that decides the answer: weights, configuration, chat
            template, prompt token ids (or messages, where a server renders them), sampling, seed,
            engine with version and settings.
        sample: 0-based index among the samples of one prompt.
        finish_reason: None where a recorded answer does not say.
        prompt_tokens, tokens: lengths in tokens; ``tokens`` counts the end-of-sequence token.
            None where nobody counted them.
        entropy: mean over generated tokens of the entropy, in nats, of the model's next-token
            distribution over its whole vocabulary, before temperature and truncation.
        entropy_top20: the same of its 20 likeliest tokens, renormalised: biased low.
        logprob: mean over generated tokens of their log-probability, nats, under that same
            untempered distribution.
        token_ids: the generated tokens.
    """

    checkpoint: str
    weights_sha256: str
    request_sha256: str
    suite: str
    example_id: str
    sample: int = Field(ge=0)
    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=0)
    entropy: float | None = Field(default=None, ge=0.0)
    entropy_top20: float | None = Field(default=None, ge=0.0)
    logprob: float | None = Field(default=None, le=0.0)
    token_ids: tuple[int, ...] | None = None


class Score(Record):
    """One number about one answer, or about one prompt where ``sample`` is None.

    A missing value is None with a ``reason``; it is excluded and counted, never read as zero.
    ``weight`` is the value's share in the mean, such as the number of instructions behind it.
    ``undefined`` says that everything is there and the metric has no value for such an answer, as
    n-grams of an answer of fewer words: that is no gap in the run.
    """

    checkpoint: str
    suite: str
    metric: str
    example_id: str
    sample: int | None = None
    value: float | None
    weight: float = Field(default=1.0, gt=0.0)
    reason: str | None = None
    undefined: bool = Field(default=False, exclude_if=blank)


class Outcome(StrEnum):
    """Verdict of a pairwise judge on the candidate; INVALID when no verdict could be had."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"
    INVALID = "invalid"


REFERENCE = "reference"
"""Name of the baseline that stands for the suite's own reference answers."""


class Shown(StrEnum):
    """Whose answer a pairwise judge was shown first."""

    CANDIDATE_FIRST = "candidate_first"
    BASELINE_FIRST = "baseline_first"


class OrderedVerdict(Record):
    """Verdict on a pair whose answers were shown in one order.

    Attributes:
        outcome: of the candidate, whichever place it was shown in.
        preference: degree in [0, 1] to which the candidate is better; None if INVALID.
        reply: what the judge said, on one line and cut; None where it gave no reply.
        attempts: replies that the judge was asked for.
        reason: why the verdict is INVALID.
        unanswered: no usable reply came; asking again may bring one.
    """

    shown: Shown
    outcome: Outcome
    preference: Probability | None
    reply: str | None = None
    attempts: int = Field(default=1, ge=0)
    reason: str | None = None
    unanswered: bool = Field(default=False, exclude_if=blank)


class Judgment(Record):
    """Verdict on one pair of answers to one prompt.

    Attributes:
        baseline: a checkpoint's name, or ``reference``.
        preference: probability or degree in [0, 1] that the candidate is better; None if INVALID.
        length_difference: candidate's length minus baseline's, in characters.
        reason: why the verdict is INVALID.
        orders: the verdicts behind it, of a judge that was shown the answers in both orders.
        item: place of the prompt in its benchmark, of an imported judgment whose file says it.
    """

    suite: str
    judge: str
    candidate: str
    baseline: str
    example_id: str
    outcome: Outcome
    preference: Probability | None
    length_difference: int
    reason: str | None = None
    # Left out of a dump where empty: judgments of other judges keep their published form.
    orders: tuple[OrderedVerdict, ...] = Field(default=(), exclude_if=blank)
    item: int | None = Field(default=None, ge=0, exclude_if=unset)

    @property
    def unanswered(self) -> bool:
        """Whether a judge was asked and gave no usable reply, so that asking again may help."""
        return any(order.unanswered for order in self.orders)


class Estimate(Record):
    """A statistic with its interval; no bare floats leave the statistics.

    Attributes:
        value: point estimate; None when nothing could be estimated.
        low, high: bounds of the interval at ``level``; None when undefined.
        n: observations used. clusters: independent units (prompts) among them.
        missing: observations that should exist and do not.
        method: how value and interval were obtained.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    n: int
    clusters: int
    missing: int = 0
    method: str


class Direction(StrEnum):
    """Which way a metric is better; NEITHER for descriptive ones such as length."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


class Status(StrEnum):
    """State of a run folder."""

    RUNNING = "running"
    COMPLETE = "complete"


class Counts(Record):
    """Expected and present records of a run."""

    expected: int
    present: int


SHARE = "share"
"""Unit of metrics that are shares of prompts or answers, shown in percent."""


class MetricInfo(Record):
    """What a metric key means: shown in reports, read by the gate."""

    key: str
    title: str
    unit: str
    direction: Direction
    definition: str


class JudgeInfo(Record):
    """A judge's identity and how far it can be trusted.

    Attributes:
        agreement: agreement with human labels; None where the rule defines the verdict.
        measured_on: the data behind ``agreement``.
        lead_metrics: metrics the report shows first where the judge is no better than chance.
        judges_reference: whether verdicts against the suite's reference answers are expected.
        by_rule: the verdict follows from a rule, so that agreement with people is no question.
        pairs: (suite, candidate, baseline) that it judged, of one whose verdicts were imported;
            None for a judge of all pairs.
    """

    name: str
    title: str
    definition: str
    agreement: Estimate | None = None
    measured_on: str | None = None
    identity: str
    lead_metrics: tuple[str, ...] = ()
    judges_reference: bool = True
    by_rule: bool = True
    pairs: tuple[tuple[str, str, str], ...] | None = None

    @property
    def no_better_than_chance(self) -> bool:
        """Whether the agreement's interval contains one half (or it has none)."""
        found = self.agreement
        return found is not None and (found.low is None or found.low <= 0.5)


class SuiteCard(Record):
    """A suite as it was run.

    Attributes:
        sampling: None where nothing is asked.
        temperatures: by subset, where it is another.
        used: the file that was read, where it does not come with the suite.
        runner: who asks and scores, where it is not this package.
    """

    name: str
    version: int
    title: str
    content_sha256: str
    examples: int
    sampling: Sampling | None
    metrics: tuple[MetricInfo, ...]
    judges: tuple[str, ...]
    primary: tuple[str, ...]
    has_reference: bool
    licence: str
    # Left out of a dump where unset: manifests of suites that do without stay as they were.
    temperatures: dict[str, float] = Field(default_factory=dict, exclude_if=blank)
    used: DataUsed | None = Field(default=None, exclude_if=unset)
    runner: str | None = Field(default=None, exclude_if=unset)

    @property
    def samples(self) -> int:
        """Answers that are asked for of each prompt."""
        return 0 if self.sampling is None else self.sampling.samples


UNSET = "unset"
"""How a setting is left out of what is asked."""


class JudgeSpec(Record):
    """A language model as a judge, as the user named it.

    Attributes:
        name: unique in a run; shown in reports.
        source: the URL of an OpenAI-compatible API, or a checkpoint for the engine in process.
        model: name under which an API serves it.
        api_key_env: environment variable that holds an API's key; never the key itself.
        prompts: ``tbpo`` (this package's own), the name of an evaluator of the installed
            alpaca-eval package, or a YAML file.
        max_tokens: longest reply, in tokens; by default what the prompt asks for.
        temperature: None (on the command line ``unset``) leaves it to the API, for models that
            refuse one.
        retries: new tries after a reply that cannot be read.
        seed: of the first try; each new one counts it up.
        logprobs: read a degree of preference from the log-probabilities of the labels.
        dtype, base: of a checkpoint, as in `CheckpointSpec`.
        suites: those that it judges (on the command line with ``+`` between them); by default
            every suite of prompts with one answer a prompt.
    """

    name: str = Field(min_length=1, max_length=80, pattern=r"^[\w][\w.+-]*$")
    source: str = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    prompts: str = Field(default="tbpo", min_length=1)
    temperature: float | None = Field(default=0.0, ge=0.0, le=2.0)
    max_tokens: int | None = Field(default=None, ge=1)
    retries: int = Field(default=2, ge=0)
    seed: int = 0
    logprobs: bool = True
    dtype: Dtype = Field(default_factory=native_dtype)
    base: str | None = None
    suites: tuple[str, ...] = ()

    @field_validator("temperature", mode="before")
    @classmethod
    def _left(cls, value: Any) -> Any:
        return None if value == UNSET else value

    @field_validator("suites", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value.split("+") if isinstance(value, str) else value

    @property
    def checkpoint(self) -> CheckpointSpec:
        """What is asked: the part that an adapter prepares."""
        shared = self.model_fields_set & CheckpointSpec.model_fields.keys()
        return CheckpointSpec.model_validate({name: getattr(self, name) for name in shared})

    @property
    def asks_an_api(self) -> bool:
        """Whether the judge is behind an API, and not in this machine's engine."""
        return self.source.startswith(("http://", "https://"))
