"""Chat messages to token ids in a checkpoint's own template, checked before any engine starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import CheckpointError, InputError
from harness.suites import Suite
from harness.types import Loadable, Message

Prompts = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Suite -> example id -> token ids, rendered for one checkpoint."""


def load_tokenizer(folder: str) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error


def render(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of ``messages`` in the chat template, generation marker included."""
    chat = [{"role": m.role.value, "content": m.content} for m in messages]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def end_of_turn(tokenizer: Any) -> int:
    """Return the id of the token that ends an assistant's answer in the chat template.

    That is the special token which the template writes after an answer, white space between them
    aside (``<|eot_id|>`` of Llama 3, whose end of sequence is another). Where it writes none: the
    tokenizer's end of sequence.

    Raises:
        CheckpointError: there is neither, or the template fails.
    """
    after = _after_answer(tokenizer).lstrip()
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


def _after_answer(tokenizer: Any) -> str:
    """Return what the template writes after an answer at the end of a dialogue."""
    answer = "An answer that no template writes."
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception as error:  # templates raise whatever their authors chose
        raise CheckpointError(
            f"the chat template of {tokenizer.name_or_path} cannot render an answer: {error}"
        ) from error
    return text.rpartition(answer)[2] if answer in text else ""


def check_bos(tokenizer: Any, ids: Sequence[int], where: str) -> None:
    """Refuse a prompt that opens with two beginning-of-sequence tokens.

    Raises:
        CheckpointError: the template writes a BOS and the tokenizer adds another.
    """
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise CheckpointError(
            f"{where}: the rendered prompt opens with a doubled BOS token (id {bos}). The chat "
            "template writes one and the tokenizer adds one; set add_bos_token to false in "
            "tokenizer_config.json or take it out of the template."
        )


def render_suite(checkpoint: Loadable, suite: Suite) -> dict[str, tuple[int, ...]]:
    """Return the prompt's token ids of every example of a suite, by example id.

    Raises:
        CheckpointError: a doubled BOS, or a template that cannot render the messages.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    prompts = {}
    for example in suite.examples:
        where = f"checkpoint '{checkpoint.spec.name}', {suite.spec.name}/{example.id}"
        try:
            ids = render(tokenizer, example.messages)
        except Exception as error:  # templates raise whatever their authors chose
            raise CheckpointError(f"{where}: the chat template failed: {error}") from error
        check_bos(tokenizer, ids, where)
        prompts[example.id] = tuple(ids)
    return prompts


def check_lengths(prompts: dict[str, tuple[int, ...]], suite: Suite, max_model_len: int) -> None:
    """Refuse prompts that leave no room for the suite's longest answer.

    Raises:
        InputError: names the first such examples and counts all.
    """
    room = max_model_len - suite.spec.sampling.max_tokens
    long = [name for name, ids in prompts.items() if len(ids) > room]
    if long:
        raise InputError(
            f"suite {suite.spec.name}: {len(long)} prompts are longer than {room} tokens "
            f"(first: {', '.join(long[:3])}). Raise --max-model-len to "
            f"{max(map(len, prompts.values())) + suite.spec.sampling.max_tokens}."
        )


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
        prompts = {suite.spec.name: render_suite(checkpoint, suite) for suite in suites}
        for suite in suites:
            check_lengths(prompts[suite.spec.name], suite, max_model_len)
        rendered[checkpoint.spec.name] = prompts
    return rendered


def template_warning(checkpoints: Sequence[Loadable]) -> str | None:
    """Return a warning where checkpoints to be compared have different chat templates."""
    by_template: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        by_template.setdefault(checkpoint.template_sha256, []).append(checkpoint.spec.name)
    if len(by_template) < 2:
        return None
    groups = "; ".join(", ".join(names) for names in by_template.values())
    return f"checkpoints have different chat templates ({groups}): prompts differ in form"
