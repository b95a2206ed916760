"""What is answered, as OpenAI's clients read it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrate.models.model import LoadedModel
from calibrate.pipelines.serving.catalogue import Choice
from calibrate.pipelines.serving.reply_text import Piece
from calibrate.pipelines.serving.scoring import Scores

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Tokens of prompts and replies."""

    prompt: int
    completion: int

    def facts(self) -> dict[str, int]:
        """In the words of the protocol."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Envelope:
    """What every answer to one request has in common."""

    choice: Choice
    chat: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": list(choices), "usage": usage.facts()}

    def chunk(
        self, index: int, piece: Piece | None, reason: str | None = None, first: bool = False
    ) -> bytes:
        """A piece of a reply, or why it ended."""
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            if piece is not None and piece.thought:
                delta["reasoning_content"] = piece.thought
            if piece is not None and piece.answer:
                delta["content"] = piece.answer
            part: dict[str, Any] = {"delta": delta}
        else:
            part = {"text": piece.answer if piece else "", "logprobs": None}
        return self._event([{"index": index, **part, "finish_reason": reason}])

    def usage(self, usage: Usage) -> bytes:
        """What it took, at the end of a stream."""
        return self._event([], usage=usage.facts())

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event({**self._head(kind), "choices": choices, **more})

    def _head(self, kind: str) -> dict[str, Any]:
        served = self.choice.served
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.choice.name,
            "concept": served and served.config.concept.name,
            "strength": self.choice.strength,
        }


def event(facts: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(facts, ensure_ascii=False)}\n\n".encode()


def error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error in the words of the protocol."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def chat_choice(index: int, text: Piece, reason: str) -> dict[str, Any]:
    """One reply of a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": text.answer}
    if text.thought:
        message["reasoning_content"] = text.thought
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def log_prob_facts(
    loaded: LoadedModel, ids: Sequence[int], scores: Scores, begin: int
) -> dict[str, Any]:
    """Log-probabilities of the tokens from `begin` on, as completions have them."""
    words = [loaded.tokenizer.decode([token]) for token in ids[begin:]]
    offsets = [sum(map(len, words[:place])) for place in range(len(words))]
    return {
        "tokens": words,
        "token_logprobs": list(scores.log_probs[begin:]),
        "top_logprobs": [top and _by_word(loaded, top) for top in scores.likeliest[begin:]],
        "text_offset": offsets,
    }


def _by_word(loaded: LoadedModel, top: Mapping[int, float]) -> dict[str, float]:
    """Log-probabilities by text; of several tokens that read alike, the likeliest one's."""
    rising = sorted(top.items(), key=lambda entry: entry[1])
    return {loaded.tokenizer.decode([token]): value for token, value in rising}
