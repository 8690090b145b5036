"""Evaluation prompts among training rows: what is planted is found, and nothing else."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_records import SHARED
from training_records import write_rows

from harness.contamination import data_overlap, suite_overlaps, words
from harness.errors import DataError, InputError
from harness.files import sha256_file
from harness.preference_rows import MalformedRowError
from harness.training.known import FOLDER, NOT_KNOWN, known_data, named_sources
from harness.training.sources import FileSource, HubSource
from harness.training.texts import TrainingText, training_text, training_texts
from harness.types import (
    CheckpointSpec,
    Example,
    Message,
    OverlapKind,
    OverlapParameters,
    Role,
    SuiteOverlap,
)

STORY = (
    "Every autumn the village baker walks to the mill by the river and carries home two sacks of "
    "flour. He counts each step aloud, because his grandfather did so before him. Nobody in the "
    "valley remembers why the counting began."
)
"""40 words, 33 runs of 8."""

SHORT = "What is a mill?"
ELSE = (
    "Please explain to a patient beginner how one tunes an old upright piano at home, which tools "
    "are needed, and when it is wiser to leave all of it to somebody who does it for a living."
)


def example(text: str | Sequence[str], reference: str | None = None, name: str = "e") -> Example:
    turns = [text] if isinstance(text, str) else text
    messages = tuple(Message(role=Role.USER, content=turn) for turn in turns)
    return Example(id=name, messages=messages, reference=reference)


def looked_for(found: Example, row: Any, **given: Any) -> SuiteOverlap:
    parameters = OverlapParameters(**given)
    rows, (suite,) = suite_overlaps({"s": [found]}, [(training_text(row), "a:1")], parameters)
    assert rows == 1
    return suite


def hh(*turns: str) -> str:
    return "".join(
        f"\n\n{'Assistant' if place % 2 else 'Human'}: {turn}" for place, turn in enumerate(turns)
    )


def pair(prompt: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": "Yes, of course.", "rejected": "No."}


@pytest.mark.parametrize(
    "prompt",
    [
        STORY,
        STORY.upper(),
        f"  {STORY.replace(' ', chr(10))}\n",
        re.sub(r"[.,]", "", STORY),
        STORY.replace("because", "ｂｅｃａｕｓｅ").replace("flour", "ﬂour"),
    ],
)
def test_the_same_words_are_exact(prompt: str) -> None:
    suite = looked_for(example(STORY), pair(prompt))
    assert (suite.exact, suite.near, suite.answers, suite.short) == (1, 0, 0, 0)
    (overlap,) = suite.overlaps
    assert (overlap.example_id, overlap.origin, overlap.share) == ("e", "a:1", 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u0395\u039b\u039b\u0391\u03a3", "\u03b5\u03bb\u03bb\u03b1\u03c2"),
        ("don\u2019t", "don't"),
        ("x²", "X2"),
    ],
)
def test_forms_of_one_text_have_the_same_words(one: str, other: str) -> None:
    assert words(one) == words(other)
    assert looked_for(example(one), pair(other)).exact == 1


def test_accents_and_letters_are_not_dropped() -> None:
    assert words("resume") != words("résumé")
    assert words("日本 語") == ["日本", "語"]


def sentences(order: Sequence[int]) -> str:
    parts = re.findall(r"[^.]+\.", STORY)
    return " ".join(parts[place].strip() for place in order)


@pytest.mark.parametrize(
    ("prompt", "broken"),
    [
        (STORY.replace("mill", "market"), 8),
        (STORY.replace("Every", "Each"), 1),
        (f"{ELSE} {STORY} {ELSE}", 0),
        (STORY.removesuffix("began."), 1),
        # Each of the two old borders of the sentences broke seven.
        (sentences([2, 0, 1]), 7),
        (sentences([2, 1, 0]), 14),
    ],
)
def test_changed_texts_are_near(prompt: str, broken: int) -> None:
    suite = looked_for(example(STORY), pair(prompt))
    assert (suite.exact, suite.near) == (0, 1)
    assert suite.overlaps[0].kind == OverlapKind.NEAR
    assert suite.overlaps[0].share == pytest.approx(1 - broken / (len(words(STORY)) - 7))


def test_half_of_the_runs_is_enough_and_less_is_not() -> None:
    said = words(STORY)
    runs = len(said) - 7
    half = (runs + 1) // 2
    for kept, near in ((half + 7, 1), (half + 6, 0)):
        suite = looked_for(example(STORY), pair(" ".join(said[:kept])))
        assert suite.near == near
    assert looked_for(example(STORY), pair(" ".join(said[:10])), share=3 / runs).near == 1
    assert looked_for(example(STORY), pair(" ".join(said[:10])), share=3.1 / runs).near == 0


def test_runs_in_two_rows_do_not_add_up() -> None:
    said = words(STORY)
    halves = [" ".join(said[:19]), " ".join(said[20:])]
    rows = [(training_text(pair(half)), f"a:{i}") for i, half in enumerate(halves, 1)]
    _, (suite,) = suite_overlaps({"s": [example(STORY)]}, rows)
    assert suite.near == 0
    both = {"prompt": halves[0], "chosen": halves[1], "rejected": "No."}
    assert looked_for(example(STORY), both).near == 1


def test_other_texts_are_neither() -> None:
    suite = looked_for(example(STORY), pair(ELSE))
    assert suite.clean
    assert suite.overlaps == ()


def test_short_prompts_are_only_found_whole() -> None:
    assert looked_for(example(SHORT), pair("what is a MILL")).exact == 1
    within = looked_for(example(SHORT), pair(f"{SHORT} {STORY}"))
    assert (within.exact, within.near, within.short) == (0, 0, 1)
    # Eight words have one run.
    eight = " ".join(words(STORY)[:8])
    assert looked_for(example(eight), pair(STORY)).near == 1
    assert looked_for(example(" ".join(words(STORY)[:7])), pair(STORY)).near == 0


def test_prompt_of_a_dialogue_is_a_beginning_of_its_user_turns() -> None:
    dialogue = {"chosen": hh(STORY, "I see.", SHORT, "A house."), "rejected": hh(STORY, "No.")}
    assert looked_for(example(STORY), dialogue).exact == 1
    assert looked_for(example([STORY, SHORT]), dialogue).exact == 1
    assert looked_for(example(SHORT), dialogue).exact == 0
    late = {"chosen": hh(SHORT, "I see.", STORY, "Yes."), "rejected": hh(SHORT, "Why?")}
    found = looked_for(example(STORY), late)
    assert (found.exact, found.near) == (0, 1)


def test_first_row_is_named_and_a_same_prompt_outweighs_an_earlier_near_one() -> None:
    prompts = [ELSE, STORY.replace("mill", "market"), STORY, STORY]
    rows = [(training_text(pair(p)), f"a:{i}") for i, p in enumerate(prompts, 1)]
    for known, kind, origin in (
        (rows, OverlapKind.EXACT, "a:3"),
        (rows[:2], OverlapKind.NEAR, "a:2"),
    ):
        read, (suite,) = suite_overlaps({"s": [example(STORY)]}, known)
        assert read == len(known)
        assert [(o.kind, o.origin) for o in suite.overlaps] == [(kind, origin)]
        assert suite.exact + suite.near == 1


def test_reference_answers_are_counted_whole() -> None:
    row = {"prompt": SHORT, "chosen": STORY.lower(), "rejected": "No."}
    suite = looked_for(example(ELSE, reference=STORY), row)
    assert (suite.exact, suite.near, suite.answers, suite.references) == (0, 0, 1, 1)
    assert suite.overlaps[0].kind == OverlapKind.ANSWER
    assert looked_for(example(ELSE, reference=f"{STORY} Or so."), row).answers == 0
    chance = looked_for(example(ELSE, reference="No."), row)
    assert (chance.answers, chance.references) == (0, 0)


def test_suites_are_counted_apart() -> None:
    suites = {"one": [example(STORY), example(ELSE, name="f")], "two": [example(STORY)], "no": []}
    rows = [(training_text(pair(STORY)), "a:1")]
    _, found = suite_overlaps(suites, rows)
    assert [(s.suite, s.examples, s.exact) for s in found] == [
        ("one", 2, 1),
        ("two", 1, 1),
        ("no", 0, 0),
    ]


def test_findings_are_those_of_comparing_all_pairs() -> None:
    """Random texts of few words, so that all shares occur; sets of runs, without an index."""
    rng = np.random.default_rng(3)

    def text(longest: int) -> str:
        starts = rng.integers(0, 50, size=rng.integers(1, longest))
        return " ".join(f"w{start + step}" for start in starts for step in range(4))

    examples = [example(text(6), name=f"e{i}") for i in range(60)]
    rows = [
        (TrainingText(prompts=((text(12), text(6)),), answers=(text(12),)), f"a:{i}")
        for i in range(80)
    ]
    n, least = 3, 0.6

    def runs(of: str) -> set[tuple[str, ...]]:
        said = of.split()
        return {tuple(said[i : i + n]) for i in range(len(said) - n + 1)}

    expected = {}
    for asked in examples:
        wanted = runs(asked.messages[0].content)
        for row, origin in rows:
            held = runs(" ".join(row.prompts[0])) | runs(row.answers[0])
            share = len(wanted & held) / len(wanted)
            if share >= least:
                expected[asked.id] = (pytest.approx(share), origin)
                break
    _, (suite,) = suite_overlaps({"s": examples}, rows, OverlapParameters(words=n, share=least))
    assert suite.exact == 0
    assert {o.example_id: (o.share, o.origin) for o in suite.overlaps} == expected
    assert 10 < len(expected) < 50


CHAT = [{"role": "user", "content": STORY}, {"role": "assistant", "content": ELSE}]


@pytest.mark.parametrize(
    ("row", "prompts", "answers"),
    [
        ({"messages": CHAT}, ((STORY,),), (ELSE,)),
        ({"messages": [{"role": "system", "content": "s"}, *CHAT]}, ((STORY,),), (ELSE,)),
        ({"prompt": STORY, "completion": ELSE}, ((STORY,),), (ELSE,)),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ((STORY,),), (ELSE,)),
        ({"instruction": "Go", "input": "on", "output": ELSE}, (("Go\n\non",),), (ELSE,)),
        ({"prompt": STORY, "response": ELSE, "score": 3}, ((STORY,),), (ELSE,)),
        ({"text": hh(STORY, ELSE, "b", "c")}, ((STORY, "b"),), (ELSE, "c")),
        ({"text": ELSE}, (), (ELSE,)),
        (
            {"prompt": f"{hh('a')}\n\nAssistant:", "chosen": "b", "rejected": "c"},
            (("a",),),
            ("b", "c"),
        ),
        ({"chosen": CHAT, "rejected": [CHAT[0]]}, ((STORY,),), (ELSE,)),
        ({"chosen": hh("a", "b"), "rejected": hh("c", "b")}, (("a",), ("c",)), ("b",)),
        ({"prompt": STORY, "chosen": CHAT, "messages": CHAT}, ((STORY,),), (ELSE,)),
    ],
)
def test_rows_of_every_form_are_read(row: Any, prompts: Any, answers: Any) -> None:
    assert training_text(row) == TrainingText(prompts, answers)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "found list"),
        ({"question": "a"}, r"no field with a text \(fields: question\)"),
        ({"chosen": 3}, "'chosen' must be a text or a list, found int"),
        ({"messages": ["a"]}, r"'messages'\[0\] must be an object"),
        ({"messages": [{"role": "user", "content": None}]}, r"\[0\].content must be a text"),
    ],
)
def test_rows_without_a_text_are_refused(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedRowError, match=message):
        training_text(row)
    file = write_rows(tmp_path / "rows.jsonl", [pair(STORY), row])
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{message}"):
        list(training_texts([FileSource(file)]))


def test_packed_files_are_read_and_identified(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    lines = "".join(json.dumps(row) + "\n" for row in (pair(ELSE), pair(STORY)))
    packed.write_bytes(gzip.compress(lines.encode()))
    more = write_rows(tmp_path / "more.jsonl", [{"messages": CHAT}])
    sources = named_sources(f"{packed}+{more}")
    found = data_overlap(sources, {"s": [example(STORY)]})
    assert found.rows == 3
    assert found.sources == (
        {"file": "rows.jsonl.gz", "sha256": sha256_file(packed)},
        {"file": "more.jsonl", "sha256": sha256_file(more)},
    )
    assert found.suites[0].overlaps[0].origin == "rows.jsonl.gz:2"


def test_sources_are_named_with_plus_between_them(tmp_path: Path) -> None:
    odd = write_rows(tmp_path / "a+b.jsonl", [])
    assert named_sources(str(odd)) == (FileSource(odd),)
    assert named_sources("org/data:test+org/more") == (
        HubSource("org/data", "test"),
        HubSource("org/more", "train"),
    )
    with pytest.raises(InputError, match="has an empty part"):
        named_sources("org/data+")


def checkpoint(**given: Any) -> CheckpointSpec:
    return CheckpointSpec(name="dpo", source="x", **given)


def write_manifest(folder: Path, data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"objective": "dpo", "data": data}))
    return folder


@pytest.mark.parametrize("place", ["beside", "recorded", "variable"])
def test_data_of_a_training_manifest_are_found_by_name_and_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    file = write_rows((folder if place == "beside" else elsewhere) / "rows.jsonl", [pair(STORY)])
    name = str(file) if place == "recorded" else "rows.jsonl"
    write_manifest(folder, [{"file": name, "sha256": sha256_file(file)}])
    if place == "variable":
        assert known_data(checkpoint(), folder).sources == ()
        monkeypatch.setenv(FOLDER, str(elsewhere))
    found = known_data(checkpoint(), folder)
    assert [source.name for source in found.sources] == ["rows.jsonl"]
    assert found.sources[0].identity()["sha256"] == sha256_file(file)
    assert found.reason is None


def test_data_that_are_not_here_are_not_known(tmp_path: Path) -> None:
    here = write_rows(tmp_path / "here.jsonl", [pair(STORY)])
    entries = [
        {"file": str(here), "sha256": sha256_file(here)},
        {"file": "gone.jsonl.gz", "sha256": "ab" * 32},
        {"file": str(here), "sha256": "cd" * 32},
        {"dataset": "org/data", "split": "train", "revision": None, "fingerprint": "f"},
    ]
    for entry, words_of in zip(
        entries[1:],
        (
            "gone.jsonl.gz (sha256 abababababab), which is not here",
            "here.jsonl (sha256 cdcdcdcdcdcd), which is here with other content",
            "org/data:train, which is no file here",
        ),
        strict=True,
    ):
        found = known_data(checkpoint(), write_manifest(tmp_path / "model", [entries[0], entry]))
        assert found.sources == ()
        assert found.reason is not None
        assert words_of in found.reason
        assert found.reason.endswith("give training_data=")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"data": 3}', '{"run_key": "k"}'])
def test_other_manifests_name_no_data(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert known_data(checkpoint(), tmp_path).reason == NOT_KNOWN
    assert known_data(checkpoint(), None).reason == NOT_KNOWN


def test_what_the_user_names_counts_before_the_manifest(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [pair(STORY)])
    folder = write_manifest(tmp_path / "model", [{"file": "gone.jsonl", "sha256": "ab" * 32}])
    found = known_data(checkpoint(training_data=str(file)), folder)
    assert found.sources == (FileSource(file),)
    with pytest.raises(InputError, match=r"'dpo': training_data: 'no\.jsonl' is neither"):
        known_data(checkpoint(training_data="no.jsonl"), folder)


HH_TEST, HH_TRAIN = SHARED / "hh_rlhf", SHARED / "hh_rlhf_train"


@pytest.mark.skipif(
    not (HH_TEST.is_dir() and HH_TRAIN.is_dir()), reason=f"needs {HH_TEST} and {HH_TRAIN}"
)
@pytest.mark.parametrize(("first_turns", "near"), [(True, 7), (False, 6)])
def test_hh_for_training_and_for_evaluation_share_no_prompt(first_turns: bool, near: int) -> None:
    """Its README says so of first turns; annotators' set scenarios make the near-duplicates."""
    examples = []
    for subset in ("helpful", "harmless"):
        lines = (HH_TEST / f"{subset}.jsonl").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            turns = re.split(r"\n\n(?:Human|Assistant):", json.loads(line)["chosen"])[1::2]
            kept = turns[:1] if first_turns else turns
            examples.append(example(kept, name=f"{subset}:{number}"))
    sources = [FileSource(HH_TRAIN / f"{name}.jsonl.gz") for name in ("helpful", "harmless")]
    found = data_overlap(sources, {"hh": examples})
    (suite,) = found.suites
    assert (suite.examples, suite.exact, suite.near) == (400, 0, near)
    helpful = [o for o in suite.overlaps if o.origin == "helpful.jsonl.gz:7"]
    assert len(helpful) == 6
