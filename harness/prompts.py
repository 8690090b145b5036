"""Chat messages to token ids in a checkpoint's own template, checked before any engine starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from harness.adapters.identity import embedding_rows, model_config, read_tokenizer
from harness.dialogues import answers_needed, is_later_question, with_answers
from harness.errors import CheckpointError, InputError
from harness.suites import Suite
from harness.types import Loadable, Message
from harness.types.records import PromptStyle

Prompts = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Suite -> example id -> token ids, rendered for one checkpoint."""

PROBE = (
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "An answer that no template writes."},
)
"""A dialogue that shows what a template writes around an answer."""


def load_tokenizer(folder: str) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_tokenizer(Path(folder))


def checkpoint_tokenizer(checkpoint: Loadable) -> Any:
    """Return a checkpoint's tokenizer with the chat template that is in use.

    Raises:
        CheckpointError: it cannot be read.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    if checkpoint.chat_template is not None:
        tokenizer.chat_template = checkpoint.chat_template
    return tokenizer


TODAY = date(2024, 7, 26)
"""The day that templates which write today's date are given: with the real one the same run would
ask other prompts tomorrow. It is the day that Llama 3's templates fall back to."""


def _apply(tokenizer: Any, chat: Sequence[Mapping[str, str]], **options: Any) -> Any:
    """Return a dialogue in a tokenizer's chat template, on a fixed day.

    Raises:
        CheckpointError: the template fails.
    """
    try:
        return tokenizer.apply_chat_template(list(chat), strftime_now=TODAY.strftime, **options)
    except Exception as error:  # templates raise whatever their authors chose
        raise CheckpointError(
            f"the chat template of {tokenizer.name_or_path} failed: {error}"
        ) from error


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role.value, "content": m.content} for m in messages]


def _text(tokenizer: Any, chat: list[dict[str, str]]) -> str:
    return str(_apply(tokenizer, chat, add_generation_prompt=True, tokenize=False))


def render(
    tokenizer: Any, messages: Sequence[Message], style: PromptStyle = PromptStyle.CHAT
) -> list[int]:
    """Return the token ids of ``messages`` in the chat template, generation marker included.

    A plain prompt is the text of its only message, with the special tokens that the tokenizer
    itself puts around a text.

    Raises:
        CheckpointError: the template fails.
    """
    if style is PromptStyle.PLAIN:
        (message,) = messages
        return [int(token) for token in tokenizer(message.content)["input_ids"]]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    ids = _apply(tokenizer, _chat(messages), **options)
    return [int(token) for token in ids]


def answer_ids(
    tokenizer: Any, messages: Sequence[Message], answers: Sequence[str]
) -> list[list[int]]:
    """Return the token ids of each answer as they follow the rendered ``messages``.

    Prompt and answer are tokenised as one text, with the white space that the template writes
    between them, so that the tokens are those which generation would produce: alone, an answer
    opens with a word boundary in SentencePiece vocabularies (Llama 2, Mistral). Where the prompt's
    last token reaches into the answer, the answer is tokenised alone. The last message stands for
    all: the boundary is behind it.

    Raises:
        CheckpointError: the template cannot render an answer.
    """
    prompt = _text(tokenizer, _chat(messages[-1:]))
    space = _space_before_answer(tokenizer)
    texts = [prompt, *(prompt + space + answer for answer in answers)]
    before, *wholes = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        whole[len(before) :]
        if whole[: len(before)] == before
        else tokenizer(answer, add_special_tokens=False)["input_ids"]
        for whole, answer in zip(wholes, answers, strict=True)
    ]


def end_of_turn(tokenizer: Any) -> int:
    """Return the id of the token that ends an assistant's answer in the chat template.

    That is the special token which the template writes after an answer, white space between them
    aside (``<|eot_id|>`` of Llama 3, whose end of sequence is another). Where it writes none: the
    tokenizer's end of sequence.

    Raises:
        CheckpointError: there is neither, or the template fails.
    """
    after = _around_answer(tokenizer)[1].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ids and ids[0] in special:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name_or_path} names no eos_token and its chat template "
            "writes no special token after an answer; set eos_token in tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def _around_answer(tokenizer: Any) -> tuple[str, str]:
    """Return what the template writes before and after the probe's answer; empty without it."""
    answer = PROBE[1]["content"]
    text = str(_apply(tokenizer, PROBE, tokenize=False))
    before, found, after = text.rpartition(answer)
    return (before, after) if found else ("", "")


def _space_before_answer(tokenizer: Any) -> str:
    """Return the white space between generation marker and answer: a space after [/INST]."""
    before, _ = _around_answer(tokenizer)
    marked = _text(tokenizer, list(PROBE[:1]))
    space = before.removeprefix(marked) if before.startswith(marked) else ""
    return space if space.isspace() else ""


def check_bos(tokenizer: Any, ids: Sequence[int], where: str) -> None:
    """Refuse a prompt that opens with two beginning-of-sequence tokens.

    Raises:
        CheckpointError: the template writes two, or the message opens with one behind the
            template's. The tokenizer adds none of its own to a rendered chat.
    """
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise CheckpointError(
            f"{where}: the rendered prompt opens with a doubled BOS token "
            f"('{tokenizer.bos_token}', id {bos}). Take one out of the chat template, or out of "
            "the message where that is what opens with one; the tokenizer adds none."
        )


def render_suite(
    checkpoint: Loadable, suite: Suite, tokenizer: Any = None
) -> dict[str, tuple[int, ...]]:
    """Return the prompt's token ids of every example of a suite, by example id.

    Later questions of a dialogue are left out: their prompts hold the model's own answers.

    Args:
        tokenizer: the checkpoint's; read from its folder where it is not given.

    Raises:
        CheckpointError: a doubled BOS, a token that the model has no embedding for, or a template
            that cannot render the messages.
    """
    tokenizer = tokenizer or checkpoint_tokenizer(checkpoint)
    rows = embedding_rows(Path(checkpoint.folder))
    prompts = {}
    for example in suite.examples:
        if is_later_question(example.messages):
            continue
        where = f"checkpoint '{checkpoint.spec.name}', {suite.spec.name}/{example.id}"
        try:
            ids = render(tokenizer, example.messages, suite.spec.style)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        check_bos(tokenizer, ids, where)
        if rows is not None and max(ids, default=0) >= rows:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise CheckpointError(
                f"{where}: the prompt holds '{token}' (id {max(ids)}), for which the model has no "
                f"embedding: it has {rows}. Save the tokenizer that it was trained with."
            )
        prompts[example.id] = tuple(ids)
    return prompts


def later_lengths(suite: Suite, tokenizer: Any) -> dict[str, int]:
    """Return the longest that prompts of later questions can become, in tokens, by example id.

    Raises:
        CheckpointError: the template cannot render a dialogue.
    """
    found = {}
    for example in suite.examples:
        if is_later_question(example.messages):
            before = answers_needed(example.messages)
            chat = with_answers(example.messages, ["."] * before)
            found[example.id] = len(render(tokenizer, chat)) + before * suite.spec.max_tokens
    return found


def longest_request(checkpoint: Loadable, suites: Sequence[Suite]) -> int:
    """Return the longest prompt plus answer that suites can ask of a checkpoint, in tokens.

    Raises:
        CheckpointError: a prompt cannot be rendered.
    """
    tokenizer = checkpoint_tokenizer(checkpoint) if suites else None
    longest = 0
    for suite in suites:
        prompts = render_suite(checkpoint, suite, tokenizer).values()
        lengths = [*map(len, prompts), *later_lengths(suite, tokenizer).values()]
        longest = max(longest, max(lengths, default=0) + suite.spec.max_tokens)
    return longest


def check_lengths(
    lengths: Mapping[str, int], suite: Suite, checkpoint: Loadable, max_model_len: int
) -> None:
    """Refuse prompts that leave no room for the suite's longest answer; lengths in tokens.

    Raises:
        InputError: names checkpoint and suite, the first such examples, and counts all.
    """
    answer = suite.spec.max_tokens
    room = max_model_len - answer
    long = [name for name, length in lengths.items() if length > room]
    if not long:
        return
    problem = f"{len(long)} prompts are longer than {room} tokens (first: {', '.join(long[:3])})"
    if room < 0:
        problem = f"its answers alone may take {answer} tokens, beyond the {max_model_len} allowed"
    raise InputError(
        f"checkpoint '{checkpoint.spec.name}', suite {suite.spec.name}: {problem}. "
        f"{_more_room(checkpoint, max(lengths.values()) + answer)}"
    )


def _more_room(checkpoint: Loadable, needed: int) -> str:
    """Return what to do where a prompt and its answer need ``needed`` tokens."""
    config = model_config(Path(checkpoint.folder)).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and needed > limit:
        return (
            f"The suite does not fit this model: it needs {needed} tokens, the model's own limit "
            f"is {limit}. Leave one of them out."
        )
    return f"Raise --max-model-len to {needed}."


def render_all(
    checkpoints: Sequence[Loadable], suites: Sequence[Suite], max_model_len: int
) -> dict[str, Prompts]:
    """Return every prompt's token ids by checkpoint name: rendered by its own tokenizer, checked.

    Raises:
        CheckpointError: a doubled BOS, or a template that cannot render a prompt.
        InputError: prompts that leave no room for an answer.
    """
    rendered: dict[str, Prompts] = {}
    for checkpoint in checkpoints:
        tokenizer = checkpoint_tokenizer(checkpoint) if suites else None
        prompts = {s.spec.name: render_suite(checkpoint, s, tokenizer) for s in suites}
        for suite in suites:
            lengths = {name: len(ids) for name, ids in prompts[suite.spec.name].items()}
            lengths |= later_lengths(suite, tokenizer)
            check_lengths(lengths, suite, checkpoint, max_model_len)
        rendered[checkpoint.spec.name] = prompts
    return rendered
