"""Preference data: formats of rows, sources, skips by reason, tokens, the held-out split."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import SPECIAL, save_sentencepiece, save_tokenizer

from harness.adapters.embedded import SMOLLM2
from harness.errors import CheckpointError, DataError, InputError
from harness.files import cache_root, sha256_file
from harness.preference_rows import MalformedRowError, UnusablePairError, parse_row
from harness.prompts import end_of_turn, load_tokenizer, render
from harness.training import sources
from harness.training.data import (
    Pair,
    SkipReason,
    Skips,
    TokenPair,
    read_pairs,
    source_identity,
    split_holdout,
    tokenize_pair,
)
from harness.types import Message, Role

Row = dict[str, Any]
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
# Read here: each test has a cache of its own.
EMBEDDED = cache_root() / "models" / f"{SMOLLM2.name}-{SMOLLM2.version}-{SMOLLM2.wheel_sha256[:12]}"


def system(text: str) -> Message:
    return Message(role=Role.SYSTEM, content=text)


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def assistant(text: str) -> Message:
    return Message(role=Role.ASSISTANT, content=text)


def hh(*turns: str) -> str:
    """An HH dialogue of alternating turns."""
    return "".join(
        f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(turns)
    )


def chat(*turns: str, start: str = "user") -> list[dict[str, str]]:
    """A chat list of alternating turns; a turn may name its role ('system> Be brief.')."""
    roles = ["user", "assistant"] if start == "user" else ["assistant", "user"]
    made = []
    for text in turns:
        role, _, said = text.rpartition("> ")
        if not role:
            role, said = roles[0], text
            roles.reverse()
        made.append({"role": role, "content": said})
    return made


def both(chosen: Any, rejected: Any, **more: Any) -> Row:
    return {"chosen": chosen, "rejected": rejected, **more}


# Formats

TEA = (user("Which tea is mild?"), assistant("Green or black?"), user("Green."))
TEA_TURNS = ("Which tea is mild?", "Green or black?", "Green.")
RIVER = "Name a river."


def river(chosen: Any, rejected: Any) -> Row:
    return both(chosen, rejected, prompt=RIVER)


SAME_PAIR = {
    "hh": both(hh(*TEA_TURNS, "Sencha."), hh(*TEA_TURNS, "No idea.")),
    "hh prompt": both(" Sencha.", " No idea.", prompt=hh(*TEA_TURNS) + "\n\nAssistant:"),
    "hh prompt without marker": both("Sencha.", "No idea.", prompt=hh(*TEA_TURNS)),
    "hh with a prompt": both(
        hh(*TEA_TURNS, "Sencha."), hh(*TEA_TURNS, "No idea."), prompt="Which tea is mild?"
    ),
    "implicit prompt": both(chat(*TEA_TURNS, "Sencha."), chat(*TEA_TURNS, "No idea.")),
    "null prompt": both(chat(*TEA_TURNS, "Sencha."), chat(*TEA_TURNS, "No idea."), prompt=None),
    "explicit list, answer turns": both(
        chat("Sencha.", start="assistant"),
        chat("No idea.", start="assistant"),
        prompt=chat(*TEA_TURNS),
    ),
    "explicit list, whole dialogues": both(
        chat(*TEA_TURNS, "Sencha."), chat(*TEA_TURNS, "No idea."), prompt=chat(*TEA_TURNS)
    ),
    "explicit list, plain answers": both("Sencha.", "No idea.\n", prompt=chat(*TEA_TURNS)),
    "explicit list, answers that go on": both(
        chat("Green or black?", "Green.", "Sencha.", start="assistant"),
        chat("Green or black?", "Green.", "No idea.", start="assistant"),
        prompt=chat(TEA_TURNS[0]),
    ),
}


@pytest.mark.parametrize("row", SAME_PAIR.values(), ids=SAME_PAIR.keys())
def test_every_format_gives_the_same_pair(row: Row) -> None:
    assert parse_row(row) == Pair(TEA, "Sencha.", "No idea.")


ONE_TURN = {
    "text prompt, plain answers": river("Elbe", "Po"),
    "text prompt, answer turns": river(
        chat("Elbe", start="assistant"), chat("Po", start="assistant")
    ),
    "UltraFeedback Binarized": {
        **both(chat(RIVER, "Elbe"), chat(RIVER, "Po"), prompt=RIVER),
        "prompt_id": "7",
        "messages": chat(RIVER, "Elbe"),
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
}


@pytest.mark.parametrize("row", ONE_TURN.values(), ids=ONE_TURN.keys())
def test_text_prompt_is_one_user_turn(row: Row) -> None:
    assert parse_row(row) == Pair((user(RIVER),), "Elbe", "Po")


@pytest.mark.parametrize(
    "row",
    [
        both(
            chat("system> Be brief.", RIVER, "Elbe"),
            chat("system> Be brief.", RIVER, "Po"),
        ),
        both("Elbe", "Po", prompt=chat("system> Be brief.", RIVER)),
        both(
            chat("system> Be brief.", RIVER, "Elbe"),
            chat("system> Be brief.", RIVER, "Po"),
            prompt=RIVER,
        ),
    ],
)
def test_leading_system_turn_belongs_to_the_prompt(row: Row) -> None:
    assert parse_row(row) == Pair((system("Be brief."), user(RIVER)), "Elbe", "Po")


def test_neighbouring_hh_turns_of_one_speaker_are_merged() -> None:
    opening = "\n\nHuman: Hello.\n\nHuman: Are you there?"
    row = both(
        f"{opening}\n\nAssistant: Yes.\n\nAssistant: What is it?", f"{opening}\n\nAssistant: No."
    )
    assert parse_row(row) == Pair((user("Hello.\n\nAre you there?"),), "Yes.\n\nWhat is it?", "No.")


def test_blank_lines_and_colons_of_an_answer_stay() -> None:
    answer = "Two:\n\nNote: the Elbe\n\nHumans: none"
    assert parse_row(both(hh(RIVER, answer), hh(RIVER, "Po"))).chosen == answer


def test_origin_is_no_part_of_a_pairs_identity() -> None:
    assert Pair(TEA, "a", "b", "x.jsonl:1") == Pair(TEA, "a", "b", "y.jsonl:2")
    assert Pair(TEA, "a", "b") != Pair(TEA, "a", "c")


GOOD = hh(RIVER, "The Elbe.")
R = SkipReason
UNUSABLE: list[tuple[Row, SkipReason]] = [
    (both(RIVER, GOOD), R.NO_OPENING),
    (both("The Elbe.", "The Po."), R.NO_OPENING),
    (both("\n\nAssistant: Hello.\n\nHuman: Hi.", GOOD), R.NO_OPENING),
    (both(f"A note.{GOOD}", GOOD), R.NO_OPENING),
    (both(hh(RIVER, "The Elbe.", "Another?"), GOOD), R.NO_FINAL_ANSWER),
    (both(chat(RIVER, "Elbe"), []), R.NO_FINAL_ANSWER),
    (both(chat(RIVER, "Elbe"), chat(RIVER)), R.NO_FINAL_ANSWER),
    (both(GOOD, hh(RIVER, "  ")), R.EMPTY_ANSWER),
    (both(chat(RIVER, "Elbe"), chat(RIVER, "\n")), R.EMPTY_ANSWER),
    (river("", "Po"), R.EMPTY_ANSWER),
    (both(GOOD, hh("Name a lake.", "The Elbe is no lake.")), R.DIFFERENT_PROMPTS),
    (both(chat(RIVER, "Elbe"), chat("A lake?", "Po")), R.DIFFERENT_PROMPTS),
    (both(chat("system> Be brief.", RIVER, "Elbe"), chat(RIVER, "Po")), R.DIFFERENT_PROMPTS),
    (both(chat(RIVER, "Elbe"), chat(RIVER, "Po"), prompt="A lake?"), R.DIFFERENT_PROMPTS),
    (both(GOOD, hh(RIVER, "Po"), prompt="A lake?"), R.DIFFERENT_PROMPTS),
    (
        both(chat(RIVER, "Elbe"), chat(RIVER, "Po"), prompt=chat("system> Be brief.", RIVER)),
        R.DIFFERENT_PROMPTS,
    ),
    (both(chat(RIVER, "Elbe"), chat(RIVER, "Po"), prompt=chat(RIVER, "Elbe")), R.DIFFERENT_PROMPTS),
    (both(GOOD, hh(RIVER, " The Elbe. ")), R.EQUAL_ANSWERS),
    (river("Elbe", "Elbe"), R.EQUAL_ANSWERS),
    (both(chat(RIVER, "user> Really.", "Elbe"), chat(RIVER, "Po")), R.ROLE_ORDER),
    (both(chat("system> A", "Elbe", start="assistant"), chat(RIVER, "Po")), R.ROLE_ORDER),
    (both(chat(RIVER, "system> Be brief.", "Elbe"), chat(RIVER, "Po")), R.ROLE_ORDER),
    (both("Elbe", "Po", prompt=chat(RIVER, "The river is")), R.ROLE_ORDER),
    (both("Elbe", "Po", prompt=chat("system> Be brief.")), R.ROLE_ORDER),
    (both(chat("human> Hi", "Elbe"), chat("human> Hi", "Po")), R.UNKNOWN_ROLE),
    (both(chat("Elbe", start="assistant"), chat("Po", start="assistant")), R.NO_PROMPT),
    (both("Elbe", "Po", prompt=""), R.EMPTY_PROMPT),
    (both("Elbe", "Po", prompt=[]), R.EMPTY_PROMPT),
    (both(hh(" ", "Elbe"), hh(" ", "Po")), R.EMPTY_PROMPT),
    (river("Elbe \ud800", "Po"), R.NOT_UNICODE),
    (both(chat(RIVER, "Elbe \ud800"), chat(RIVER, "Po")), R.NOT_UNICODE),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_unusable_pairs_are_refused_with_a_reason(row: Row, reason: SkipReason) -> None:
    with pytest.raises(UnusablePairError) as caught:
        parse_row(row)
    assert caught.value.reason is reason


MALFORMED: list[tuple[object, str]] = [
    (["chosen", "rejected"], "found a list"),
    ("chosen", "found a text"),
    (None, "found null"),
    ({}, r"'chosen' is missing or null \(fields: none\)"),
    ({"chosen": GOOD, "worse": GOOD}, r"'rejected' is missing or null \(fields: chosen, worse\)"),
    (both(GOOD, None), "'rejected' is missing or null"),
    (both(7, GOOD), "'chosen' must be a text, found a number"),
    (river("Elbe", False), "'rejected' must be a text, found true or false"),
    (both(chat(RIVER, "Elbe"), GOOD), "'chosen' is a list and 'rejected' is a text"),
    (both({"role": "user"}, GOOD), "'chosen' must be a text, found an object"),
    (both("Elbe", "Po", prompt=3), "'prompt' must be a text, found a number"),
    (both("Elbe", "Po", prompt=["a"]), r"'prompt'\[0\] must be an object .*found a text"),
    (both(chat(RIVER), [{"role": "user"}]), r"'rejected'\[0\]\.content must be a text, found null"),
    (both([{"content": "a"}], chat(RIVER)), r"'chosen'\[0\]\.role must be a text, found null"),
    (both([{"role": "user", "content": ["a"]}], []), r"\.content must be a text, found a list"),
]


@pytest.mark.parametrize(("row", "problem"), MALFORMED)
def test_malformed_rows_say_what_was_found_and_expected(row: object, problem: str) -> None:
    with pytest.raises(MalformedRowError, match=rf"{problem}.*Expected an object"):
        parse_row(row)


# Sources


def pack(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_lines(path: Path, rows: Sequence[Row]) -> Path:
    return pack(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_list(path: Path, rows: Sequence[Row]) -> Path:
    return pack(path, json.dumps(rows, indent=1).encode())


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


Writer = Callable[[Path, Sequence[Row]], Path]
WRITERS: list[tuple[str, Writer, str]] = [
    ("a.jsonl", write_lines, ":"),
    ("a.jsonl.gz", write_lines, ":"),
    ("a.json", write_list, ", row "),
    ("a.json.gz", write_list, ", row "),
    ("lines.json", write_lines, ":"),
    ("a.parquet", write_parquet, ", row "),
]
CHATS = [
    both(chat(RIVER, "Elbe"), chat(RIVER, "Po")),
    both(chat(RIVER, "Elbe"), chat(RIVER, "Elbe")),
    both(chat(RIVER, "Elbe"), chat(RIVER, "Oder")),
]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(("name", "write", "place"), WRITERS)
def test_kinds_of_files(
    tmp_path: Path, name: str, write: Writer, place: str, as_text: bool
) -> None:
    path = write(tmp_path / name, CHATS)
    skips = Skips()
    pairs = read_pairs([str(path) if as_text else path], skips)
    assert pairs == [Pair((user(RIVER),), "Elbe", worse) for worse in ("Po", "Oder")]
    assert [pair.origin for pair in pairs] == [f"{name}{place}1", f"{name}{place}3"]
    assert skips.first == {SkipReason.EQUAL_ANSWERS: f"{name}{place}2"}
    assert source_identity(path) == {"file": name, "sha256": sha256_file(path)}


@pytest.mark.parametrize(("name", "write", "place"), WRITERS)
def test_malformed_row_is_named_with_its_file(
    tmp_path: Path, name: str, write: Writer, place: str
) -> None:
    path = write(tmp_path / name, [CHATS[0], {"chosen": None, "rejected": None}])
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(path))}{place}2: 'chosen' is missing or null"
    ):
        read_pairs([path], Skips())


def test_sources_are_read_in_order_and_unusable_pairs_counted(tmp_path: Path) -> None:
    rows = [both(GOOD, hh(RIVER, "1")), *(row for row, _ in UNUSABLE)]
    plain = write_lines(tmp_path / "a.jsonl", rows)
    packed = write_lines(tmp_path / "b.jsonl.gz", [both(GOOD, hh(RIVER, "2"))])
    skips = Skips()
    pairs = read_pairs([packed, plain, packed], skips)
    assert [pair.rejected for pair in pairs] == ["2", "1", "2"]
    assert sum(skips.counts.values()) == len(UNUSABLE)
    reasons = [reason for _, reason in UNUSABLE]
    for reason in set(reasons):
        assert skips.counts[reason] == reasons.count(reason)
        assert skips.first[reason] == f"a.jsonl:{reasons.index(reason) + 2}"


def test_blank_lines_are_passed_over_and_counted_as_lines(tmp_path: Path) -> None:
    line = json.dumps(CHATS[0]).encode()
    path = pack(tmp_path / "a.jsonl", b"\n" + line + b"\r\n  \n" + line)
    assert [p.origin for p in read_pairs([path], Skips())] == ["a.jsonl:2", "a.jsonl:4"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"chosen": ', "not valid JSON.*Expected one JSON object a line"),
        (b'["chosen", "rejected"]', "found a list. Expected an object"),
        (b'{"chosen": "x"}', "'rejected' is missing"),
        (b'{"chosen": "\xe9"}', "not valid UTF-8 at byte 13"),
    ],
)
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_malformed_line_is_named(tmp_path: Path, name: str, line: bytes, problem: str) -> None:
    path = pack(tmp_path / name, json.dumps(CHATS[0]).encode() + b"\n" + line)
    with pytest.raises(DataError, match=rf"{name}:2: {problem}"):
        read_pairs([path], Skips())


def test_broken_list_is_named_with_its_line(tmp_path: Path) -> None:
    path = pack(tmp_path / "bad.json", b'[\n{"chosen": "a",\n"rejected" "b"}]')
    with pytest.raises(DataError, match=r"bad\.json:3: not valid JSON"):
        read_pairs([path], Skips())


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    rows = [both(GOOD, hh(RIVER, str(i * i))) for i in range(99)]
    whole = write_lines(tmp_path / "whole.jsonl.gz", rows).read_bytes()
    contents = {
        "no.jsonl.gz": b"not gzip",
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "damaged.jsonl.gz": whole[:10] + b"\xff" * 20,
        "cut.json.gz": whole[: len(whole) // 2],
        "no.parquet": b"not parquet",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "absent.jsonl", "absent.json", "absent.parquet"]:
        with pytest.raises(InputError, match=rf"{name} cannot be read as"):
            read_pairs([tmp_path / name], Skips())
    with pytest.raises(InputError, match=r"absent\.jsonl cannot be read"):
        source_identity(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "data/pairs.jsonl", "a/b.json.gz", "a b/c"])
def test_text_that_names_nothing_is_refused_without_a_look_at_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sources, "_load", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match=rf"'{name}' is neither an existing file nor a hub id"):
        read_pairs([name], Skips())


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_pairs([tmp_path], Skips())


def test_sources_without_usable_pairs_say_why_and_where(tmp_path: Path) -> None:
    same = write_lines(tmp_path / "same.jsonl", [both(GOOD, GOOD)] * 3)
    with pytest.raises(
        InputError, match=r"no usable .*same\.jsonl \(equal answers: 3 \(first: same\.jsonl:1\)\)"
    ):
        read_pairs([same], Skips())
    with pytest.raises(InputError, match=r"no usable .*\(no rows\)"):
        read_pairs([write_lines(tmp_path / "empty.jsonl", [])], Skips())


# The hub, which no test reaches


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """A hub of one data set; yields what was asked of it."""
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str]] = []

    def load(dataset: str, *, split: str) -> Any:
        asked.append((dataset, split))
        if dataset != "own/pairs":
            raise ConnectionError(f"Couldn't reach '{dataset}' on the Hub")
        return datasets.Dataset.from_list(CHATS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    sources._load.cache_clear()
    yield asked
    sources._load.cache_clear()


@pytest.mark.parametrize(
    ("source", "split"), [("own/pairs", "train"), ("own/pairs:test_prefs", "test_prefs")]
)
def test_hub_data_set_is_loaded_once(hub: list[tuple[str, str]], source: str, split: str) -> None:
    skips = Skips()
    pairs = read_pairs([source], skips)
    assert [pair.rejected for pair in pairs] == ["Po", "Oder"]
    assert pairs[1].origin == f"own/pairs:{split}, row 3"
    assert skips.first == {SkipReason.EQUAL_ANSWERS: f"own/pairs:{split}, row 2"}
    identity = source_identity(source)
    assert hub == [("own/pairs", split)]
    assert (identity["dataset"], identity["split"]) == ("own/pairs", split)
    assert len(identity["fingerprint"]) == 16
    assert identity["revision"] is None


def test_commit_is_read_from_the_folder_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"

    class Loaded:
        cache_files = ({"filename": f"cache/own___pairs/default/0.0.0/{commit}/pairs-train.arrow"},)
        _fingerprint = "f"

    monkeypatch.setattr(sources, "_load", lambda *_: Loaded)
    assert source_identity("own/pairs")["revision"] == commit


def test_unreachable_hub_says_what_to_do(hub: list[tuple[str, str]]) -> None:
    with pytest.raises(
        InputError, match=r"^no/such, split 'train'.*Couldn't reach.*give a \.jsonl"
    ):
        read_pairs(["no/such"], Skips())
    assert hub == [("no/such", "train")]


def test_existing_file_is_preferred_to_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[tuple[str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    write_lines(tmp_path / "own" / "pairs", [CHATS[0]])
    assert len(read_pairs(["own/pairs"], Skips())) == 1
    assert hub == []


# Tokens

PLAIN = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
"""A template that writes no special token: the tokenizer's </s> ends an answer."""


def make_tokenizer(folder: Path, template: str | None) -> Any:
    from transformers import AutoTokenizer

    save_tokenizer(folder, template)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("plain"), PLAIN)


def tokens_of(tokenizer: Any, pair: Pair, **limits: Any) -> tuple[Any, Skips]:
    skips = Skips()
    return tokenize_pair(tokenizer, pair, skips=skips, **limits), skips


def texts(tokenizer: Any, tokens: TokenPair) -> tuple[str, str, str]:
    prompt, chosen, rejected = (
        tokenizer.decode(ids) for ids in (tokens.prompt, tokens.chosen, tokens.rejected)
    )
    return prompt, chosen, rejected


LONG = Pair((user("first"), assistant("second"), user("third")), "good", "bad", "a.jsonl:7")
WHOLE = "u:first\na:second\nu:third\na:"
TAIL = "u:third\na:"


def test_tokens_are_the_rendered_chat_and_answers_with_an_end(tokenizer: Any) -> None:
    made, skips = tokens_of(tokenizer, LONG)
    assert texts(tokenizer, made) == (WHOLE, "good</s>", "bad</s>")
    assert made.prompt == tuple(render(tokenizer, LONG.messages))
    assert made.origin == "a.jsonl:7"
    assert skips == Skips()
    assert skips.as_dict() == {}


@pytest.mark.parametrize(
    ("limits", "prompt"),
    [
        ({"max_prompt": len(WHOLE)}, WHOLE),
        ({"max_prompt": len(WHOLE) - 1}, TAIL),
        ({"max_prompt": len(TAIL)}, TAIL),
        # The longer answer, 'good' and its end, has five tokens.
        ({"max_length": len(WHOLE) + 5}, WHOLE),
        ({"max_length": len(WHOLE) + 4}, TAIL),
        ({"max_length": len(WHOLE) + 4, "max_response": 4}, WHOLE),
        ({"max_length": len(WHOLE) + 5, "max_prompt": len(TAIL)}, TAIL),
    ],
)
def test_oldest_turns_are_dropped_until_the_prompt_fits(
    tokenizer: Any, limits: dict[str, int], prompt: str
) -> None:
    made, skips = tokens_of(tokenizer, LONG, **limits)
    assert tokenizer.decode(made.prompt) == prompt
    assert skips.counts == {}


def test_system_turn_stays_when_old_turns_are_dropped(tokenizer: Any) -> None:
    pair = Pair((system("Be brief."), *LONG.messages), "good", "bad")
    whole = "s:Be brief.\n" + WHOLE
    made, _ = tokens_of(tokenizer, pair, max_prompt=len(whole) - 1)
    assert tokenizer.decode(made.prompt) == "s:Be brief.\n" + TAIL
    made, skips = tokens_of(tokenizer, pair, max_prompt=len(TAIL))
    assert made is None
    assert skips.counts == {SkipReason.LONG_PROMPT: 1}


def test_last_user_turn_that_is_too_long_leaves_the_pair_out(tokenizer: Any) -> None:
    made, skips = tokens_of(tokenizer, LONG, max_prompt=len(TAIL) - 1)
    assert made is None
    assert skips.as_dict() == {
        "prompt longer than max_prompt tokens": {"pairs": 1, "first": "a.jsonl:7"}
    }


@pytest.mark.parametrize("limits", [{"max_response": 4}, {"max_length": len(TAIL) + 4}])
def test_long_answers_are_cut_without_an_end_or_left_out(
    tokenizer: Any, limits: dict[str, int]
) -> None:
    made, skips = tokens_of(tokenizer, LONG, **limits)
    assert texts(tokenizer, made)[1:] == ("good", "bad</s>")
    assert skips.as_dict() == {"answers cut": {"answers": 1}}
    made, skips = tokens_of(tokenizer, LONG, long_responses="skip", **limits)
    assert made is None
    assert skips.counts == {SkipReason.LONG_ANSWER: 1}
    assert skips.cut_answers == 0


def test_prompt_and_answers_keep_to_max_length(tokenizer: Any) -> None:
    for limit in range(len(TAIL) + 1, len(WHOLE) + 8):
        made, _ = tokens_of(tokenizer, LONG, max_length=limit)
        used = len(made.prompt) + max(len(made.chosen), len(made.rejected))
        assert used <= limit
        assert min(len(made.chosen), len(made.rejected)) >= 1
    made, skips = tokens_of(tokenizer, LONG, max_length=len(TAIL))
    assert made is None
    assert skips.counts == {SkipReason.NO_ROOM: 1}


def test_answers_equal_after_the_cut_are_left_out(tokenizer: Any) -> None:
    pair = Pair((user("?"),), "same but", "same and")
    made, skips = tokens_of(tokenizer, pair, max_response=5)
    assert made is None
    assert skips.counts == {SkipReason.EQUAL_TOKENS: 1}
    assert skips.cut_answers == 0
    assert tokens_of(tokenizer, pair, max_response=6)[0] is not None


def test_end_token_inside_an_answer_leaves_the_pair_out(tokenizer: Any) -> None:
    made, skips = tokens_of(tokenizer, Pair((user("?"),), "good</s>", "bad"))
    assert made is None
    assert skips.counts == {SkipReason.END_INSIDE: 1}


def test_failing_template_names_the_pair(tmp_path: Path) -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    made = make_tokenizer(tmp_path, no_system + PLAIN)
    pair = Pair((system("s"), user("u")), "a", "b", "a.jsonl:3")
    with pytest.raises(CheckpointError, match=r"a\.jsonl:3: the chat template failed.*no system"):
        tokens_of(made, pair)


def test_doubled_bos_is_refused_as_at_generation(tmp_path: Path) -> None:
    made = make_tokenizer(tmp_path, "<s><s>" + PLAIN)
    with pytest.raises(CheckpointError, match=r"a\.jsonl:7: .*doubled BOS"):
        tokens_of(made, LONG)


# The token that ends a turn; the tokenizer's end of sequence is </s>

HEAD = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}"
FOOT = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
ENDS = {
    "end of sequence": ("{{ eos_token }}", "</s>"),
    "end of sequence and a line break": ("{{ eos_token }}\n", "</s>"),
    "after a space": (" {{ eos_token }}", "</s>"),
    "own token": ("<pad>", "<pad>"),
    "own token, then end of sequence": ("<pad>{{ eos_token }}", "<pad>"),
    "own token after a line break": ("\n<pad>\n", "<pad>"),
    "no token": ("\n", "</s>"),
    "text": ("\n[end]\n", "</s>"),
    "text before a token": (" [end] <pad>", "</s>"),
    "another role's token": ("{% if m.role != 'assistant' %}<pad>{% endif %}", "</s>"),
}


@pytest.mark.parametrize(("written", "end"), ENDS.values(), ids=ENDS.keys())
def test_answers_end_as_the_template_ends_a_turn(tmp_path: Path, written: str, end: str) -> None:
    made = make_tokenizer(tmp_path, HEAD + written + FOOT)
    assert end_of_turn(made) == SPECIAL.index(end)
    tokens, _ = tokens_of(made, LONG)
    assert texts(made, tokens)[1:] == (f"good{end}", f"bad{end}")


@pytest.mark.parametrize("written", ["{{ eos_token }}", "{{ eos_token }}\n", "<pad>"])
def test_prompt_and_answer_are_the_start_of_the_rendered_dialogue(
    tmp_path: Path, written: str
) -> None:
    made = make_tokenizer(tmp_path, HEAD + written + FOOT)
    tokens, _ = tokens_of(made, LONG)
    dialogue = [*LONG.messages, assistant("good")]
    turns = [{"role": str(m.role), "content": m.content} for m in dialogue]
    rendered = made.apply_chat_template(turns, tokenize=True, return_dict=False)
    both_parts = [*tokens.prompt, *tokens.chosen]
    assert rendered[: len(both_parts)] == both_parts


@pytest.mark.parametrize("limits", [{}, {"max_prompt": 40}, {"max_response": 4}])
def test_answers_follow_the_prompt_as_in_one_text(tmp_path: Path, limits: dict[str, int]) -> None:
    save_sentencepiece(tmp_path)
    made = load_tokenizer(str(tmp_path))
    tokens, _ = tokens_of(made, LONG, **limits)
    assert len(tokens.prompt) <= limits.get("max_prompt", 99)
    for ids, answer in ((tokens.chosen, "good</s>"), (tokens.rejected, "bad</s>")):
        whole = made(made.decode(tokens.prompt) + answer, add_special_tokens=False)["input_ids"]
        assert [*tokens.prompt, *ids] == whole[: len(tokens.prompt) + len(ids)]
        assert len(ids) == limits.get("max_response", len(whole) - len(tokens.prompt))


def test_tokenizer_without_any_end_is_refused(tmp_path: Path) -> None:
    made = make_tokenizer(tmp_path, PLAIN)
    made.eos_token = None
    with pytest.raises(CheckpointError, match="names no eos_token"):
        tokens_of(made, LONG)


def test_template_that_fails_on_the_last_turn_names_the_pair(tmp_path: Path) -> None:
    no_third = (
        "{% if messages[-1].content == 'third' %}{{ raise_exception('no third') }}{% endif %}"
    )
    with pytest.raises(CheckpointError, match=r"a\.jsonl:7: the chat template failed.*no third"):
        tokens_of(make_tokenizer(tmp_path, no_third + PLAIN), LONG)


def test_missing_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"chat template of .* failed"):
        tokens_of(make_tokenizer(tmp_path, None), LONG)


# The split


def test_holdout_is_a_partition_drawn_by_the_generator() -> None:
    pairs = [Pair((user(f"{i}?"),), str(i), "worse") for i in range(20)]
    training, held = split_holdout(pairs, 6, np.random.default_rng(1))
    assert len(held) == 6
    assert sorted([*training, *held], key=pairs.index) == pairs
    assert (training, held) == split_holdout(pairs, 6, np.random.default_rng(1))
    assert held != split_holdout(pairs, 6, np.random.default_rng(2))[1]


@pytest.mark.parametrize("seed", range(20))
def test_pairs_of_one_prompt_stay_on_one_side(seed: int) -> None:
    pairs = [Pair((user(f"{i % 7}?"),), str(i), "worse") for i in range(30)]
    training, held = split_holdout(pairs, 8, np.random.default_rng(seed))
    assert not {p.messages for p in training} & {p.messages for p in held}
    assert sorted([*training, *held], key=pairs.index) == pairs
    # Prompts have four or five pairs: two of them give eight to ten.
    assert len(held) in (8, 9, 10)


def test_holdout_that_leaves_nothing_is_refused() -> None:
    pairs = [Pair((user("?"),), str(i), "worse") for i in range(20)]
    with pytest.raises(InputError, match=r"cannot hold out 3 of 20 pairs \(1 prompts"):
        split_holdout(pairs, 3, np.random.default_rng(1))
    with pytest.raises(InputError, match="cannot hold out 3 of 3 pairs"):
        split_holdout(
            [Pair((user(f"{i}"),), "a", "b") for i in range(3)], 3, np.random.default_rng(1)
        )


# Shared data


@pytest.mark.parametrize(
    ("file", "rows", "empty"),
    [
        ("hh_rlhf_train/harmless.jsonl.gz", 1777, 4),
        ("hh_rlhf_train/helpful.jsonl.gz", 3000, 2),
        ("ultrafeedback_binarized/test_prefs.jsonl", 200, 0),
    ],
)
def test_shared_data_is_read_whole(file: str, rows: int, empty: int) -> None:
    path = SHARED / file
    if not path.is_file():
        pytest.skip("the shared data are not beside the checkout")
    skips = Skips()
    pairs = read_pairs([path], skips)
    assert len(pairs) == rows - empty
    assert dict(skips.counts) == ({SkipReason.EMPTY_ANSWER: empty} if empty else {})
    assert len({pair.origin for pair in pairs}) == len(pairs)
    assert all(pair.messages[-1].role is Role.USER for pair in pairs)


@pytest.mark.parametrize("file", ["harmless.jsonl.gz", "helpful.jsonl.gz"])
def test_embedded_model_has_the_same_answers_in_and_out_of_context(file: str) -> None:
    path = SHARED / "hh_rlhf_train" / file
    if not path.is_file():
        pytest.skip("the shared data are not beside the checkout")
    if not (EMBEDDED / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in the cache")
    made = load_tokenizer(str(EMBEDDED))
    for pair in read_pairs([path], Skips())[::30]:
        tokens, _ = tokens_of(made, pair)
        for ids, text in ((tokens.chosen, pair.chosen), (tokens.rejected, pair.rejected)):
            assert list(ids[:-1]) == made(text, add_special_tokens=False)["input_ids"]
