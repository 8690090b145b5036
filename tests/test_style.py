"""Counts of Markdown in answers, and their normalised differences."""

from __future__ import annotations

import numpy as np
import pytest

from harness.style import STYLE_NAMES, StyleCounts, count_style, style_differences


def counts(text: str) -> tuple[int, int, int]:
    found = count_style(text)
    return found.headings, found.lists, found.bold


def test_every_mark_is_counted() -> None:
    text = "# Title\n\nSome **bold** and __strong__ words.\n\n- one\n  * two\n1. three\n2) four\n"
    assert count_style(text) == StyleCounts(len(text), headings=1, lists=4, bold=2)


@pytest.mark.parametrize("level", range(1, 7))
def test_headings_of_all_levels(level: int) -> None:
    assert counts("#" * level + " A heading") == (1, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "####### seven",
        "#hashtag",
        "text # not at the start",
        "    # indented code",
        "2024 was a year",
        "-5 degrees",
        "1.5 litres",
        "* * *",
        "- - -",
        "***",
        "---",
        "-",
        "2 ** 3 ** 4",
        "snake__case__name",
        r"\**not bold**",
        "**not\n\nbold**",
        "****",
        "",
    ],
)
def test_what_only_looks_like_markdown(text: str) -> None:
    assert counts(text) == (0, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "```\n# comment\n- item **b**\n```",
        "```python\n# comment\n```",
        "~~~~\n# a\n~~~\n- b\n~~~~",
        "   ```\n# a\n   ```",
        "1) never closed\n```\n# a\n- b\n"[16:],
        "`**a**` and ``**b** ` **c**``",
    ],
)
def test_marks_inside_code_do_not_count(text: str) -> None:
    assert counts(text) == (0, 0, 0)


def test_marks_after_code_count_again() -> None:
    assert counts("- a\n  ```sh\n  # no\n  ```\n- b\n# yes") == (1, 2, 0)


def test_a_fence_of_another_kind_does_not_close() -> None:
    assert counts("```\n~~~\n# a\n```\n# b") == (1, 0, 0)


def test_inline_backticks_open_no_fence() -> None:
    assert counts("``` x ``` y\n# a") == (1, 0, 0)


def test_bold_may_run_over_a_line_and_stand_in_a_list() -> None:
    assert counts("- **one\nspan** and **two**") == (0, 1, 2)


def test_length_is_in_characters_and_includes_code() -> None:
    assert count_style("é\n```\nx\n```").length == 11


def test_differences_are_normalised_and_antisymmetric() -> None:
    a, b = StyleCounts(300, 2, 0, 1), StyleCounts(100, 0, 0, 3)
    there = style_differences([a, b], [b, b])
    assert there.tolist() == [[0.5, 1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0]]
    assert (style_differences([b, b], [a, b]) == -there).all()
    assert there.shape == (2, len(STYLE_NAMES))


def test_nothing_to_compare_is_an_empty_matrix() -> None:
    assert style_differences([], []).shape == (0, 4)
    assert style_differences([], []).dtype == np.float64


def test_sides_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 candidate answers but 0 of the baseline"):
        style_differences([StyleCounts(1, 0, 0, 0)], [])
