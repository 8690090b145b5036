"""Prompts: the checkpoint's own template, one BOS, the generation marker, room for the answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from run_records import make_examples
from suite_records import make_loadable, make_suite
from tiny_checkpoints import (
    SPECIAL,
    TEMPLATE,
    save_checkpoint,
    save_sentencepiece,
    save_tokenizer,
)

from harness.errors import CheckpointError, InputError
from harness.prompts import (
    answer_ids,
    check_bos,
    check_lengths,
    checkpoint_tokenizer,
    load_tokenizer,
    render,
    render_suite,
)
from harness.types import Loadable, Message, Role

BOS, USER, ASSISTANT = (SPECIAL.index(t) for t in ("<s>", "<|user|>", "<|assistant|>"))
HELLO = [Message(role=Role.USER, content="Hi")]
ONE = make_suite("own", make_examples(1))


def test_prompt_is_rendered_in_the_checkpoints_template(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    ids = render(tokenizer, HELLO)
    assert ids[:2] == [BOS, USER]
    assert ids[-1] == ASSISTANT
    assert tokenizer.decode(ids) == "<s><|user|>Hi</s><|assistant|>"
    check_bos(tokenizer, ids, "here")


def test_all_turns_are_rendered(tokenizer_folder: Path) -> None:
    turns = [
        Message(role=role, content=text)
        for role, text in ((Role.SYSTEM, "S"), (Role.USER, "1"), (Role.ASSISTANT, "2"))
    ]
    tokenizer = load_tokenizer(str(tokenizer_folder))
    text = tokenizer.decode(render(tokenizer, [*turns, *HELLO]))
    assert text == "<s><|system|>S</s><|user|>1</s><|assistant|>2</s><|user|>Hi</s><|assistant|>"


def held(folder: Path, template: str = TEMPLATE) -> Loadable:
    """Return a checkpoint below ``folder`` whose chat template is ``template``."""
    save_tokenizer(folder / "tokenizer", template)
    return make_loadable("sft", save_checkpoint(folder / "sft", folder / "tokenizer"))


def test_suite_is_rendered_by_example(tmp_path: Path, tokenizer_folder: Path) -> None:
    examples = make_examples(3)
    prompts = render_suite(held(tmp_path), make_suite("own", examples))
    assert list(prompts) == [e.id for e in examples]
    tokenizer = load_tokenizer(str(tokenizer_folder))
    assert "question 2" in tokenizer.decode(prompts["e02"])


def test_doubled_bos_is_refused_and_the_prompt_named(tmp_path: Path) -> None:
    checkpoint = held(tmp_path, "<s>" + TEMPLATE)
    with pytest.raises(CheckpointError, match=r"checkpoint 'sft', own/e00: .*doubled BOS") as found:
        render_suite(checkpoint, ONE)
    assert f"('<s>', id {BOS})" in str(found.value)
    assert "Take one out of the chat template, or out of the message" in str(found.value)
    assert "add_bos_token" not in str(found.value)


def test_bos_that_a_message_opens_with_is_doubled_by_the_templates(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "<s>{{ messages[0]['content'] }}")
    tokenizer = load_tokenizer(str(tmp_path))
    ids = render(tokenizer, [Message(role=Role.USER, content="<s>Hi")])
    with pytest.raises(CheckpointError, match=r"here: .*doubled BOS"):
        check_bos(tokenizer, ids, "here")


def test_bos_inside_a_prompt_is_no_doubled_one(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    check_bos(tokenizer, [BOS, USER, BOS, BOS], "here")
    tokenizer.bos_token = None
    check_bos(tokenizer, [BOS, BOS], "here")


def test_template_that_refuses_a_chat_is_named(tmp_path: Path) -> None:
    checkpoint = held(tmp_path, "{{ raise_exception('no system turn') }}")
    with pytest.raises(CheckpointError, match=r"'sft', own/e00: .*template.* failed: no system"):
        render_suite(checkpoint, ONE)


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}', "\x00"])
def test_tokenizer_that_cannot_be_read_is_named(
    tokenizer_folder: Path, tmp_path: Path, content: str
) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "copy"))
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*copy cannot be read"):
        load_tokenizer(str(folder))


ANSWERS = ("good", " good", "a good one", ":)", "")


def alone(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_answer_opens_with_no_word_boundary_of_its_own(tmp_path: Path, scheme: str) -> None:
    save_sentencepiece(tmp_path, scheme=scheme)
    tokenizer = load_tokenizer(str(tmp_path))
    turns = [Message(role=Role.USER, content="Hi"), Message(role=Role.ASSISTANT, content="Yes?")]
    text = "user:\nHi</s>\nassistant:\nYes?</s>\nuser:\nHi</s>\nassistant:\n"
    found = answer_ids(tokenizer, [*turns, *HELLO], ANSWERS)
    for answer, ids in zip(ANSWERS, found, strict=True):
        assert render(tokenizer, [*turns, *HELLO]) + ids == alone(tokenizer, text + answer)
    assert tokenizer.convert_ids_to_tokens(found[0]) == list("good")
    assert tokenizer.convert_ids_to_tokens(found[1]) == ["\u2581g", *"ood"]
    assert alone(tokenizer, "good") == found[1]
    assert found[-1] == []


def test_space_that_the_template_writes_before_an_answer_is_part_of_it(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    )
    save_sentencepiece(tmp_path, template)
    tokenizer = load_tokenizer(str(tmp_path))
    (ids,) = answer_ids(tokenizer, HELLO, ["good"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581g", *"ood"]
    whole = alone(tokenizer, "[INST] Hi [/INST] good</s>")
    assert [*render(tokenizer, HELLO), *ids, tokenizer.eos_token_id] == whole


def test_answer_that_the_prompt_reaches_into_is_tokenised_alone(tmp_path: Path) -> None:
    save_sentencepiece(tmp_path, "{{ messages[-1]['content'] }}:")
    tokenizer = load_tokenizer(str(tmp_path))
    found = answer_ids(tokenizer, HELLO, [")", "good"])
    assert alone(tokenizer, "Hi:)")[-1:] == tokenizer.convert_tokens_to_ids([":)"])
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in found] == [["\u2581", ")"], [*"good"]]


def test_answer_of_a_byte_level_tokenizer_is_the_same_alone(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    found = answer_ids(tokenizer, HELLO, ANSWERS)
    assert found == [alone(tokenizer, answer) for answer in ANSWERS]


@pytest.mark.parametrize(
    ("answer", "allowed", "message"),
    [
        (8, 19, r"4 prompts are longer than 11 tokens \(first: e01, e02, e03\)\. Raise .* to 23\."),
        (8, 7, r"its answers alone may take 8 tokens, beyond the 7 allowed\. Raise .* to 23\."),
        (
            2034,
            2048,
            r"1 prompts are .* does not fit this model: it needs 2049 tokens, .* is 2048\.",
        ),
        (3000, 2048, r"its answers alone may .* does not fit this model: it needs 3015 tokens"),
    ],
)
def test_prompts_too_long_are_named_and_counted(
    tmp_path: Path, answer: int, allowed: int, message: str
) -> None:
    checkpoint = held(tmp_path)
    asked = make_suite("own", make_examples(5), max_tokens=answer)
    lengths = {f"e{i:02d}": 11 + i for i in range(5)}
    check_lengths(lengths, asked, checkpoint, max_model_len=answer + 15)
    with pytest.raises(InputError, match=f"checkpoint 'sft', suite own: {message}") as found:
        check_lengths(lengths, asked, checkpoint, max_model_len=allowed)
    assert "does not fit" not in message or "Raise" not in str(found.value)


def test_template_that_was_set_takes_the_place_of_the_folders(tokenizer_folder: Path) -> None:
    own = make_loadable("a", tokenizer_folder)
    other = own.model_copy(update={"chat_template": "{{ messages[0].content }}!"})
    assert checkpoint_tokenizer(own).decode(render(checkpoint_tokenizer(own), HELLO)) == (
        "<s><|user|>Hi</s><|assistant|>"
    )
    assert checkpoint_tokenizer(other).decode(render(checkpoint_tokenizer(other), HELLO)) == "Hi!"


def test_templates_that_write_the_date_are_given_one_and_the_same(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}|{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_tokenizer(tmp_path, dated)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode(render(tokenizer, HELLO)) == "26 Jul 2024|Hi"


def test_template_that_fails_is_named_wherever_it_is_asked(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "{{ raise_exception('no system turn') }}")
    tokenizer = load_tokenizer(str(tmp_path))
    for ask in (render, lambda t, messages: answer_ids(t, messages, ["x"])):
        with pytest.raises(CheckpointError, match=r"template of .* failed: no system turn"):
            ask(tokenizer, HELLO)
