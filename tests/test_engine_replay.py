"""The replay engine gives the recorded answer to what is asked, or says why it has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recorded_files import (
    ANSWERS,
    QUESTIONS,
    alpaca_eval,
    arena_hard,
    both,
    chat,
    generation,
    lm_eval,
    mt_bench,
    mt_bench_question,
    plain,
    recorded,
    write_jsonl,
)
from suite_records import make_loadable

from harness.engines import Completion, Failure, Request
from harness.engines.replay import ReplayEngine
from harness.errors import EngineError
from harness.types import FinishReason, Message, Role, Sampling

Chat = tuple[Message, ...]


def ask(name: str, messages: Chat, sample: int = 0) -> Request:
    sampling = Sampling(temperature=0.0, max_tokens=4)
    return Request(key=f"own\n{name}\n{sample}", messages=messages, sampling=sampling, seed=0)


def loaded(path: Path) -> ReplayEngine:
    engine = ReplayEngine()
    assert engine.load(recorded(path)) is False
    return engine


def reply(path: Path, request: Request) -> Completion | Failure:
    (found,) = loaded(path).generate([request])
    assert found.key == request.key
    return found


def text(path: Path, *request: Any) -> str:
    found = reply(path, ask(*request))
    assert isinstance(found, Completion), found
    return found.text


def reason(path: Path, *request: Any) -> str:
    found = reply(path, ask(*request))
    assert isinstance(found, Failure), found
    assert found.final
    return found.reason


def test_every_request_gets_one_reply_in_order(tmp_path: Path) -> None:
    engine = loaded(write_jsonl(tmp_path / "a", both(plain)))
    requests = [ask("1", chat(QUESTIONS[1])), ask("0", chat(QUESTIONS[0])), ask("x", chat("?"))]
    found = list(engine.generate(requests))
    assert [r.key for r in found] == [r.key for r in requests]
    assert [getattr(r, "text", None) for r in found] == [ANSWERS[1], ANSWERS[0], None]


def test_an_answer_is_found_by_its_prompt_where_ids_differ(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", both(alpaca_eval))
    assert text(path, "any", chat(f" {QUESTIONS[1]}\n")) == ANSWERS[1]
    assert "neither by id nor by prompt" in reason(path, "any", chat("Another."))


def test_an_id_with_another_prompt_is_never_trusted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", both(plain))
    assert reason(path, "0", chat("Another.")) == "the file has another prompt under the id '0'"
    assert text(path, "0", chat(QUESTIONS[1])) == ANSWERS[1]


def test_an_id_is_enough_where_the_file_holds_no_prompt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "generations.jsonl", both(generation))
    found = reply(path, ask("e1", chat("Whatever.")))
    assert isinstance(found, Completion)
    assert (found.text, found.tokens, found.finish_reason) == (ANSWERS[1], 7, FinishReason.LENGTH)


def test_a_rendered_prompt_must_contain_the_question(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", both(lm_eval))
    assert text(path, "0", chat(QUESTIONS[0])) == ANSWERS[0]
    assert "another prompt" in reason(path, "0", chat(QUESTIONS[1]))


def test_the_second_question_is_told_from_the_first(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "question.jsonl", both(mt_bench_question))
    path = write_jsonl(tmp_path / "m.jsonl", both(mt_bench))
    assert text(path, "81", chat(QUESTIONS[0])) == ANSWERS[0]
    assert text(path, "x", chat(QUESTIONS[0], "Say it again.")) == f"{ANSWERS[0]} Again."
    assert "another prompt" in reason(path, "81/2", chat("Say it again."))


@pytest.mark.parametrize(("recorded_system", "same"), [("Be kind.", True), ("Be rude.", False)])
def test_system_messages_are_compared_where_both_have_one(
    tmp_path: Path, recorded_system: str, same: bool
) -> None:
    row = arena_hard(0, "Hi", "Ho")
    row["messages"].insert(0, {"role": "system", "content": recorded_system})
    path = write_jsonl(tmp_path / "a", [row])
    system = Message(role=Role.SYSTEM, content="Be kind.")

    assert text(path, "u0", chat("Hi")) == "Ho"
    assert isinstance(reply(path, ask("u0", (system, *chat("Hi")))), Completion) is same


def test_other_assistant_turns_are_another_prompt(tmp_path: Path) -> None:
    def dialogue(between: str) -> Chat:
        first, last = chat("Hi", "And?")
        return (first, Message(role=Role.ASSISTANT, content=between), last)

    messages = [m.model_dump(mode="json") for m in dialogue("Ho")]
    path = write_jsonl(tmp_path / "a", [{"messages": messages, "output": "He"}])
    assert text(path, "x", dialogue("Ho")) == "He"
    assert "neither" in reason(path, "x", dialogue("Hu"))


def test_the_kth_sample_is_the_kth_recorded(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "Hi", "output": t, "sample": s} for s, t in ((2, "y"), (1, "x"))]
    path = write_jsonl(tmp_path / "a", rows)
    for name in ("a", "other"):
        assert [text(path, name, chat("Hi"), k) for k in (0, 1)] == ["x", "y"]
    why = "sample 2 (from 0) is not among the 2 of the file"
    assert reason(path, "a", chat("Hi"), 2) == why


def test_a_gap_among_the_samples_shifts_none(tmp_path: Path) -> None:
    rows = [
        {"id": i, "prompt": q, "output": f"{q} {k}", "sample": k}
        for i, q in enumerate(QUESTIONS)
        for k in range(3)
    ]
    path = write_jsonl(tmp_path / "a", [rows[0], *rows[4:]])
    for name in ("1", "other"):
        assert "sample 0 (from 0)" in reason(path, name, chat(QUESTIONS[1]), 0)
        found = [text(path, name, chat(QUESTIONS[1]), k) for k in (1, 2)]
        assert found == [f"{QUESTIONS[1]} 1", f"{QUESTIONS[1]} 2"]


def test_samples_under_ids_of_their_own_are_taken_by_place(tmp_path: Path) -> None:
    rows = [{"id": f"row {k}", "prompt": "Hi", "output": f"{k}"} for k in range(3)]
    path = write_jsonl(tmp_path / "a", rows)
    assert [text(path, "own", chat("Hi"), k) for k in range(3)] == ["0", "1", "2"]
    assert "not among the 3" in reason(path, "own", chat("Hi"), 3)


@pytest.mark.parametrize("ids", [{}, {"id": "q"}])
def test_one_question_under_several_system_messages_is_several_prompts(
    tmp_path: Path, ids: dict[str, str]
) -> None:
    def under(system: str) -> Chat:
        return (Message(role=Role.SYSTEM, content=system), *chat("Hi"))

    def row(messages: Chat, answer: str) -> dict[str, Any]:
        return ids | {"messages": [m.model_dump(mode="json") for m in messages], "output": answer}

    said = [row(under("Be kind."), "dear"), row(under("Be rude."), "what")]
    path = write_jsonl(tmp_path / "a", said)
    assert text(path, "q", under("Be rude.")) == "what"
    assert text(path, "q", under("Be kind.")) == "dear"
    assert "under several system messages" in reason(path, "q", chat("Hi"))
    path = write_jsonl(tmp_path / "b", [*said, row(chat("Hi"), "bare")])
    assert text(path, "q", chat("Hi")) == "bare"
    assert text(path, "q", under("Be rude.")) == "what"


def test_a_null_answer_is_a_failure_and_an_empty_one_is_not(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "output": None}, {"id": "b", "output": ""}]
    path = write_jsonl(tmp_path / "a", rows)
    assert reason(path, "a", chat("Hi")) == "the recorded answer is null"
    assert text(path, "b", chat("Hi")) == ""


def test_what_the_file_does_not_say_stays_unknown(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", both(plain))
    found = reply(path, ask("0", chat(QUESTIONS[0])))
    assert isinstance(found, Completion)
    assert (found.finish_reason, found.tokens, found.prompt_tokens) == (None, None, None)
    assert found.token_ids is None
    assert found.statistics.logprobs == ()


def test_another_file_leaves_no_trace_of_the_one_before(tmp_path: Path) -> None:
    engine = loaded(write_jsonl(tmp_path / "a", both(plain)))
    engine.load(recorded(write_jsonl(tmp_path / "b", [{"id": "z", "output": "x"}])))
    (found,) = engine.generate([ask("0", chat(QUESTIONS[0]))])
    assert isinstance(found, Failure)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", both(plain))
    checkpoint = recorded(path)
    write_jsonl(path, both(plain)[:1])
    with pytest.raises(EngineError, match=r"'a': .* has changed since the run began"):
        ReplayEngine().load(checkpoint)


def test_misuse_is_named(tmp_path: Path) -> None:
    engine = ReplayEngine()
    with pytest.raises(EngineError, match="before a file is loaded"):
        list(engine.generate([]))
    with pytest.raises(EngineError, match="'w' is not a file of recorded outputs"):
        engine.load(make_loadable("w"))
    engine = loaded(write_jsonl(tmp_path / "a", both(plain)))
    with pytest.raises(EngineError, match="a request has none"):
        list(engine.generate([ask("0", ())]))
    engine.close()
    with pytest.raises(EngineError, match="before a file is loaded"):
        list(engine.generate([]))
    assert engine.identity == {"name": "replay"}


def test_numbers_that_are_no_samples_leave_the_place_to_count(tmp_path: Path) -> None:
    """Numbers of rows, one a prompt; and seeds, the same for all prompts."""
    for numbers, samples in (((0, 1), 1), ((42, 43), 2)):
        rows = [
            {"prompt": q, "output": f"{q} {k}", "sample_id": numbers[i if samples == 1 else k]}
            for i, q in enumerate(QUESTIONS)
            for k in range(samples)
        ]
        path = write_jsonl(tmp_path / "numbered.jsonl", rows)
        for question in QUESTIONS:
            for k in range(samples):
                assert text(path, "x", chat(question), k) == f"{question} {k}"
