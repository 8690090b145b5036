from __future__ import annotations

import subprocess
import sys

import pytest
from metric_records import answer, example

from harness.metrics import by_answer, by_prompt
from harness.metrics.entropy import Entropy
from harness.metrics.length import Length


def test_answers_come_by_example_order_and_sample_and_unanswered_examples_are_left_out() -> None:
    examples = [example("b"), example("silent"), example("a")]
    given = [answer("4", "a", 1), answer("3", "a", 0), answer("1", "b", 0), answer("2", "b", 4)]

    assert [g.text for _, g in by_answer(examples, given)] == ["1", "2", "3", "4"]
    assert [e.id for e, _ in by_prompt(examples, given)] == ["b", "a"]


@pytest.mark.parametrize(
    ("generations", "problem"),
    [
        ([answer("x"), answer("y", sample=1, checkpoint="sft")], "one checkpoint"),
        ([answer("x"), answer("y", sample=1, suite="other")], "one suite"),
        ([answer("x"), answer("y")], "sample 0 twice"),
        ([answer("x", "z")], "'z'"),
    ],
)
def test_generations_that_cannot_belong_together_are_refused(
    generations: list[object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        list(by_prompt([example("a")], generations))  # type: ignore[arg-type]


def test_length_counts_tokens_characters_without_outer_space_and_cut_answers() -> None:
    cut = answer(" né\n", sample=1, tokens=9, finish_reason="length")
    scores = Length().score([example()], [answer("one two"), cut])

    assert [(s.sample, s.metric, s.value) for s in scores] == [
        (0, "tokens", 7),
        (0, "characters", 7),
        (0, "truncated", 0),
        (1, "tokens", 9),
        (1, "characters", 2),
        (1, "truncated", 1),
    ]
    assert [info.key for info in Length.info] == ["tokens", "characters", "truncated"]


def test_length_of_a_recorded_answer_is_missing_where_the_file_does_not_say() -> None:
    scores = Length().score([example()], [answer("one", tokens=None, finish_reason=None)])

    assert [(s.metric, s.value, s.reason) for s in scores] == [
        ("tokens", None, "nobody counted the answer's tokens"),
        ("characters", 3, None),
        ("truncated", None, "nobody said why the answer ended"),
    ]


def test_entropy_is_the_engine_s_and_missing_where_there_is_none() -> None:
    given = [
        answer("yes", sample=0, entropy=0.25, entropy_top20=0.125, logprob=-0.5),
        answer("yes", sample=1, entropy=None, entropy_top20=0.0),
        answer("", sample=2, tokens=0, entropy=0.0),
        answer("yes", sample=3, tokens=None, entropy=None, logprob=-1.0),
    ]
    scores = Entropy().score([example()], given)

    no_top, no_logprob = "the 20 likeliest tokens", "log-probabilities"
    assert [(s.sample, s.value) for s in scores if s.value is not None] == [
        (0, 0.25),
        (0, 0.125),
        (0, -0.5),
        (1, 0.0),
        (3, -1.0),
    ]
    assert [s.metric for s in scores[:3]] == [info.key for info in Entropy.info]
    assert [s.reason for s in scores if s.value is None] == [
        "nothing reported entropy over the whole vocabulary",
        f"nothing reported {no_logprob}",
        *["the answer has no token"] * 3,
        "nothing reported entropy over the whole vocabulary",
        f"nothing reported {no_top}",
    ]


def test_importing_the_metrics_loads_no_heavy_library() -> None:
    modules = ["length", "entropy", "overlap", "instructions", "diversity", "refusal", "likelihood"]
    code = "import sys\n" + "\n".join(f"import harness.metrics.{name}" for name in modules)
    code += "\nimport harness.judges.verifiable, harness.judges.reference"
    code += "\nheavy = {'torch', 'lm_eval', 'nltk', 'sacrebleu', 'rouge_score', 'langdetect'}"
    code += "\nassert not heavy & set(sys.modules), heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
