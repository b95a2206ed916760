"""From a reply's tokens to its text, piece by piece: what is sent is never taken back.

Held back is what may yet change: half a character, what may become a stop, white space that may be
the reply's last. A thought before the answer is told apart (`models.thought`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.models.thought import MARKS, thought_length

HALF_A_CHARACTER = "\ufffd"
FIRST_MARKS, LAST_MARKS = zip(*MARKS, strict=True)


@dataclass(frozen=True)
class Piece:
    """What a token adds to a reply: to its thought, and to its answer."""

    thought: str = ""
    answer: str = ""


class ReplyText:
    """The text of one reply as it grows.

    opened: the mark that ends a thought which the prompt has begun. stops: texts before which it
    ends. verbatim: the text as the tokens have it, for a completion: no thought is looked for, and
    no white space removed.
    """

    def __init__(
        self, tokenizer: Any, opened: str = "", stops: Sequence[str] = (), verbatim: bool = False
    ) -> None:
        self._tokenizer, self._opened = tokenizer, opened
        self._stops, self._verbatim = tuple(stops), verbatim
        self._ids: list[int] = []
        self._thought_tokens: int | None = 0 if verbatim else None
        self._sent = Piece()
        self.stopped = False

    @property
    def whole(self) -> Piece:
        """All that was sent."""
        return self._sent

    def add(self, ids: Sequence[int]) -> Piece:
        """Take over further tokens, and return what can be sent."""
        self._ids += ids
        return self._send(self._answer(), last=False)

    def finish(self) -> Piece:
        """What was held back, when no token follows."""
        return self._send(self._answer(), last=True)

    def _answer(self) -> tuple[str, str]:
        """Thought and answer so far."""
        if self._thought_tokens is None:
            self._thought_tokens = thought_length(self._tokenizer, self._ids, self._opened)
            if self._thought_tokens is None:
                return self._decoded(self._ids), ""
            if self._thought_tokens == 0 and self._may_begin_thought():
                self._thought_tokens = None
                return "", ""
        cut = self._thought_tokens
        thought = self._decoded(self._ids[:cut]) if cut else ""
        return thought, self._decoded(self._ids[cut:])

    def _may_begin_thought(self) -> bool:
        """Whether the beginning of a mark is all there is."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=False).lstrip()
        return any(mark.startswith(text) for mark in FIRST_MARKS)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _send(self, so_far: tuple[str, str], last: bool) -> Piece:
        thought, answer = _unmarked(so_far[0]), so_far[1]
        if not self._verbatim:
            answer = answer.lstrip()
        answer = self._until_stop(answer)
        if not last and not self.stopped:
            thought = self._settled(thought, LAST_MARKS)
            answer = self._settled(answer, self._stops)
        elif not self._verbatim:
            thought, answer = thought.rstrip(), answer.rstrip()
        sent = self._sent
        piece = Piece(thought[len(sent.thought) :], answer[len(sent.answer) :])
        self._sent = Piece(sent.thought + piece.thought, sent.answer + piece.answer)
        return piece

    def _until_stop(self, text: str) -> str:
        ends = [text.find(stop) for stop in self._stops if stop in text]
        if not ends:
            return text
        self.stopped = True
        return text[: min(ends)]

    def _settled(self, text: str, marks: Sequence[str]) -> str:
        """What of a growing text will not change; some marks would end it."""
        text = text.rstrip(HALF_A_CHARACTER)
        longest = max(
            (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])),
            default=0,
        )
        text = text[: len(text) - longest]
        return text if self._verbatim else text.rstrip()


def _unmarked(thought: str) -> str:
    """A thought without the marks around it."""
    for begin, end in MARKS:
        thought = thought.strip().removeprefix(begin).removesuffix(end)
    return thought.strip()
