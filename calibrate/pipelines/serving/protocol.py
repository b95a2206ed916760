"""What requests say: OpenAI's completions and chat completions, with a strength and a concept.

What would change the answer and is not served is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from calibrate.common.errors import InputError

MOST_REPLIES, MOST_PROMPTS, MOST_STOPS = 16, 64, 4
MOST_LOGPROBS = 20
DEFAULT_TOKENS = 256  # of a reply, where there is room

Text = Annotated[str, StringConstraints(max_length=1_000_000)]


class _Request(BaseModel):
    """What both kinds of requests say.

    model: a calibration's name, or the model's own for plain replies. strength: α, by default the
    calibrated. concept: chooses among the calibrations, where model names none of them.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    strength: float | None = None
    concept: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_REPLIES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    # what says who asks, and changes no reply
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # taken where they change nothing
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which a reply ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > MOST_STOPS or not all(given):
            raise InputError(f"stop takes at most {MOST_STOPS} texts, none of them empty")
        return tuple(given)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool((self.stream_options or {}).get("include_usage"))

    def check(self) -> None:
        """Raise InputError for what is not served."""
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise InputError(f"{name} is not served, since it would change what was calibrated")


class ChatMessage(BaseModel):
    """One message: its text, whole or in parts."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[dict[str, Any]]

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, str):
            return self.content
        if any(part.get("type") != "text" for part in self.content):
            raise InputError("messages must be text; pictures and sound are not served")
        return "".join(str(part.get("text", "")) for part in self.content)


class ChatRequest(_Request):
    """A chat completion."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None

    @property
    def turns(self) -> tuple[str | None, list[tuple[str, str]], str]:
        """The system's message, earlier prompts with their replies, and the prompt.

        Raises: InputError unless user and assistant take turns, and the last word is the user's.
        """
        said = [(message.role, message.text) for message in self.messages]
        system = None
        if said[0][0] in ("system", "developer"):
            system = said.pop(0)[1]
        roles = [role for role, _ in said]
        if roles != ["user", "assistant"] * (len(said) // 2) + ["user"]:
            raise InputError(
                "messages must be a system message, if any, then the user's and the assistant's in "
                f"turn, the user's last, got {', '.join(roles) or 'none of them'}"
            )
        texts = [text for _, text in said]
        return system, list(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1]


class CompletionRequest(_Request):
    """A completion of a text, or of several, as texts or token ids."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]  # type: ignore[list-item]
        if not given or len(given) > MOST_PROMPTS:
            raise InputError(f"prompt takes from 1 to {MOST_PROMPTS} texts, got {len(given)}")
        return list(given)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise InputError for what is not served."""
        super().check()
        if self.stream and (self.logprobs is not None or self.echo):
            raise InputError("logprobs and echo are not streamed; leave stream out")
