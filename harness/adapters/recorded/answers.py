"""An answer as it was recorded, whatever the form of its file."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from harness.types import FinishReason, Message, Record, Role

Turns = tuple[tuple[Role, str], ...]
"""Who said what, as far as two prompts must agree to be one."""


class RecordedAnswer(Record):
    """One answer of a file, with what the file says about it.

    Attributes:
        id: the prompt's own id; None where the file has none. Of a dialogue with several
            questions, the second answer's id is that of the dialogue with ``/2`` behind it.
        dialogue: the dialogue's own id, where it has several questions.
        messages: the chat up to the question; empty where the file does not hold it. Two
            neighbouring user turns are questions of one dialogue: between them stood the
            model's own answer to the first.
        prompt: the prompt as one rendered text, template and few-shot examples included, where
            the file holds that in place of a chat.
        text: the answer; None where the file says that there is none.
        sample: number among the answers to one prompt.
        finish_reason, tokens: None where the file does not say.
        model: who answered, in the file's words.
        reference: a good answer to the prompt, where the file holds one.
    """

    id: str | None = Field(default=None, pattern=r"^.+$")
    dialogue: str | None = None
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    text: str | None
    sample: int | None = Field(default=None, ge=0)
    finish_reason: FinishReason | None = None
    tokens: int | None = Field(default=None, ge=0)
    model: str | None = None
    reference: str | None = None

    @property
    def chat(self) -> tuple[Message, ...]:
        """The prompt as a chat; empty where it is not known."""
        if self.prompt is None:
            return self.messages
        return (Message(role=Role.USER, content=self.prompt),)

    def answers(self, messages: Sequence[Message]) -> bool | None:
        """Return whether this is an answer to ``messages``; None where the file cannot tell.

        Turns must be the same, leading and trailing space aside. System messages are compared
        where both sides have one: few files say which was set. A rendered text must contain
        every turn, in order.
        """
        if self.prompt is not None:
            return _contains(self.prompt, [content for _, content in turns(messages)])
        if not self.messages:
            return None
        systems = {system_text(self.messages), system_text(messages)} - {""}
        return len(systems) < 2 and turns(self.messages) == turns(messages)


def turns(messages: Sequence[Message]) -> Turns:
    """Return the turns of a chat without its system messages and without outer space."""
    return tuple((m.role, m.content.strip()) for m in messages if m.role != Role.SYSTEM)


def prompt_of(messages: Sequence[Message]) -> Turns:
    """Return what tells two prompts of one file apart: the turns, behind a system message if any.

    Empty where the chat is not known.
    """
    system = system_text(messages)
    return (((Role.SYSTEM, system),) if system else ()) + turns(messages)


def system_text(messages: Sequence[Message]) -> str:
    """Return the text of a chat's system messages without outer space; empty where it has none."""
    return "\n".join(m.content.strip() for m in messages if m.role == Role.SYSTEM)


def _contains(text: str, parts: Sequence[str]) -> bool:
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True
