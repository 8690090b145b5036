"""Rows of a suite's data to examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import DataError
from harness.files import sha256_json
from harness.preference_rows import MalformedRowError, UnusablePairError, parse_row
from harness.suites.declaration import Duplicates, Empty, Fields, Names, SuiteSpec, validation_text
from harness.types import Example, Expected, Message, Role
from harness.types.records import PromptStyle

Row = dict[str, Any]
Numbered = tuple[int, Row]
"""A row and the line that it starts on."""

ID = 12
"""Hexadecimal digits of an id that is made from the prompt."""

LATER = "/"
"""Between a dialogue's id and the number of its question, from the second on."""

DUPLICATE = "the same prompt as an earlier row"
EMPTY = "an empty turn"


def read_examples(
    path: Path, rows: Iterable[Numbered], spec: SuiteSpec
) -> tuple[list[list[Example]], Counter[str]]:
    """Return the examples of each row, and how many rows were left out, by reason.

    Left out are preference pairs that make no pair, and repeated prompts where the suite says so.

    Raises:
        DataError: a row is wrong (file and line are named), or an id or a prompt occurs twice.
    """
    found: list[list[Example]] = []
    left_out: Counter[str] = Counter()
    ids: dict[str, int] = {}
    prompts: dict[tuple[Message, ...], int] = {}
    for number, row in rows:
        try:
            made = _checked(path, number, row, spec)
        except UnusablePairError as error:
            left_out[error.reason] += 1
            continue
        first = prompts.setdefault(made[-1].messages, number)
        if first != number and spec.data.duplicates is not Duplicates.KEEP:
            if spec.data.duplicates is Duplicates.REFUSE:
                named = not spec.fields.id_from_prompt
                raise DataError(path, number, _doubled(made[0], ids, first, named=named))
            left_out[DUPLICATE] += 1
            continue
        for example in made:
            if example.id in ids:
                raise DataError(path, number, f"example id '{example.id}' occurs twice")
            ids[example.id] = number
        found.append(made)
    return found, left_out


def _doubled(example: Example, ids: Mapping[str, int], first: int, *, named: bool) -> str:
    if named and example.id in ids:
        return f"example id '{example.id}' occurs twice"
    return (
        f"the prompt of '{example.id}' is that of line {first}. Take one out, or say in the YAML "
        "what is to become of them: data.duplicates: drop (or keep)."
    )


def _checked(path: Path, number: int, row: Row, spec: SuiteSpec) -> list[Example]:
    try:
        made = list(_examples(row, spec.fields))
        if any(not m.content.strip() for example in made for m in example.messages):
            if spec.data.empty is Empty.DROP:
                raise UnusablePairError(EMPTY)
            raise ValueError("a turn is empty")
        for example in made:
            _check_turns(example.messages, spec.data.longest_prompt, spec.fields)
            if spec.style is PromptStyle.PLAIN and len(example.messages) > 1:
                raise ValueError("a plain prompt is one turn of the user")
    except UnusablePairError:
        raise
    except KeyError as error:
        raise DataError(path, number, f"field {error} is missing") from error
    except (AttributeError, IndexError, TypeError) as error:
        problem = f"the declared fields do not fit: {error}"
        raise DataError(path, number, problem) from error
    except ValidationError as error:
        raise DataError(path, number, validation_text(error)) from error
    except (MalformedRowError, ValueError) as error:
        raise DataError(path, number, str(error)) from error
    return made


class Filled(dict[str, Any]):
    """A row for a template: a field that is null is one that is missing."""

    def __getitem__(self, key: str) -> Any:
        """Return a field.

        Raises:
            KeyError: it is not there, or null.
        """
        value = super().__getitem__(key)
        if value is None:
            raise KeyError(key)
        return value


def _examples(row: Row, fields: Fields) -> Iterator[Example]:
    """Yield what a row asks: one example, or one a question of a dialogue."""
    values = _about(row, fields)
    if fields.pair:
        pair = parse_row(row)
        values |= {"reference": pair.chosen, "rejected": pair.rejected}
        asked: list[Any] = [list(pair.messages)]
    elif fields.turns is not None:
        asked = _questions(_value(row, fields.turns))
    elif fields.user is not None:
        asked = [[{"role": Role.USER, "content": fields.user.format_map(Filled(row))}]]
    else:
        asked = [row["messages"]]
    name = values.pop("id", None)
    if fields.id_from_prompt:
        chat = [m.model_dump(mode="json") if isinstance(m, Message) else m for m in asked[-1]]
        name = f"p-{sha256_json(chat)[:ID]}"
    yield from _numbered(name, values, asked)


def _numbered(name: str | None, values: Row, asked: Sequence[Any]) -> Iterator[Example]:
    about = values if name is None else values | {"id": name}
    if len(asked) > 1:
        about |= {"unit": name}
    for place, messages in enumerate(asked, start=1):
        own = {"id": f"{name}{LATER}{place}"} if place > 1 else {}
        yield Example.model_validate(about | own | {"messages": messages})


def _questions(value: Any) -> list[Any]:
    """Return the chat of each question of a dialogue: the user's turns up to it."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given:
        raise ValueError(f"the turns must be a list of texts, found {type(value).__name__}")
    turns = [_turn(entry) for entry in given]
    return [turns[: place + 1] for place in range(len(turns))]


def _turn(entry: Any) -> dict[str, Any]:
    content = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(content, str):
        raise ValueError(f"a turn must be a text, found {type(content).__name__}")
    return {"role": Role.USER, "content": content}


def _about(row: Row, fields: Fields) -> Row:
    values: Row = {key: row[key] for key in ("id", "subset", "expected") if key in row}
    if fields.id is not None:
        values["id"] = _id(_value(row, fields.id))
    if fields.subset is not None:
        values["subset"] = str(_value(Filled(row), fields.subset))
    if fields.expected is not None:
        values["expected"] = _expected(row, fields)
    if fields.instructions or fields.arguments or "instructions" in row:
        values["instructions"] = _instructions(row, fields)
    for target in ("reference", "rejected"):
        names = getattr(fields, target)
        if names is not None:
            values[target] = _value(row, names)
    return values


def _value(row: Row, names: Names) -> Any:
    if isinstance(names, str):
        return row[names]
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(" or ".join(names))


def _expected(row: Row, fields: Fields) -> Expected:
    about = fields.expected
    assert about is not None
    value = str(row[about.field])
    if value in about.answer:
        return Expected.ANSWER
    if value in about.refuse:
        return Expected.REFUSE
    known = ", ".join([*about.answer, *about.refuse])
    raise ValueError(f"'{about.field}' must be one of {known}; found {value!r}")


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"an id is text or a whole number, found {type(value).__name__}")
    return str(value)


def _instructions(row: Row, fields: Fields) -> Any:
    names = row[fields.instructions or "instructions"]
    if fields.arguments is None:
        return names
    arguments = row[fields.arguments]
    if not isinstance(names, list) or not isinstance(arguments, list):
        raise ValueError(f"'{fields.instructions}' and '{fields.arguments}' must be lists")
    if len(names) != len(arguments):
        raise ValueError(f"{len(names)} instructions have {len(arguments)} sets of arguments")
    return [
        {"id": name, "kwargs": _given(kwargs)}
        for name, kwargs in zip(names, arguments, strict=True)
    ]


def _given(kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, dict):
        raise ValueError(f"an instruction's arguments must be a mapping, found {kwargs!r}")
    return {key: value for key, value in kwargs.items() if value is not None}


def _check_turns(messages: Sequence[Message], longest: int, fields: Fields) -> None:
    """Refuse roles out of order, empty turns and prompts that are too long to be meant.

    The questions of one dialogue, read by ``fields.turns``, are neighbouring turns of the user.
    """
    roles = [m.role for m in messages if m.role != Role.SYSTEM]
    for place, role in enumerate(roles if fields.turns is None else ()):
        expected = Role.USER if place % 2 == 0 else Role.ASSISTANT
        if role != expected:
            raise ValueError(f"turn {place + 1} is by '{role}', expected '{expected}'")
    if not roles or roles[-1] != Role.USER:
        raise ValueError("the last turn must be the user's")
    length = sum(len(m.content) for m in messages)
    if length > longest:
        raise ValueError(
            f"the prompt has {length:,} characters, beyond the {longest:,} that are taken for "
            "meant; if it is, raise data.longest_prompt in the YAML"
        )
