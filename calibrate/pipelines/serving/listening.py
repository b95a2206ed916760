"""Between the model's thread and the requests that wait for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.requests import Request

from calibrate.common.errors import InputError
from calibrate.common.settings import Sampling
from calibrate.engine.running import Ongoing
from calibrate.engine.sampling import noise_key
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Prompt
from calibrate.pipelines.serving.catalogue import Choice
from calibrate.pipelines.serving.protocol import DEFAULT_TOKENS, ChatRequest, CompletionRequest
from calibrate.pipelines.serving.reply_text import Piece, ReplyText
from calibrate.pipelines.serving.scheduler import Scheduler, Ticket

Result = TypeVar("Result")
Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class End:
    """The end of a reply: why, or what went wrong."""

    reason: Reason
    error: Exception | None = None


class Listener:
    """One reply that a request waits for: its pieces as they come, then its end."""

    def __init__(self, reply: Ongoing, text: ReplyText) -> None:
        self.ticket = Ticket(reply, self._heard, self._ended)
        self._text, self._read, self._over = text, 0, False
        self._events: asyncio.Queue[Piece | End] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def text(self) -> Piece:
        """All that came so far."""
        return self._text.whole

    @property
    def prompt(self) -> Prompt:
        """What it replies to."""
        return self.ticket.reply.prompt

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self.ticket.reply.ids

    async def events(self) -> AsyncIterator[Piece | End]:
        """Pieces as they come; the end is the last."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, End):
                return

    async def until_end(self) -> End:
        """Wait for the end.

        Raises: what went wrong.
        """
        async for event in self.events():
            if isinstance(event, End):
                if event.error is not None:
                    raise event.error
                return event
        raise RuntimeError("a reply must end")

    def cancel(self) -> None:
        """Nobody waits for it any longer."""
        self.ticket.cancelled = True

    def _heard(self) -> None:
        """A token came: in the model's thread."""
        ids = self.ids
        piece, self._read = self._text.add(ids[self._read :]), len(ids)
        if piece != Piece():
            self._put(piece)
        if self._text.stopped:
            self.ticket.cancelled = True
            self._finish(End("stop"))

    def _ended(self, error: Exception | None) -> None:
        """Nothing more comes: in the model's thread."""
        if self._over:
            return
        piece = self._text.finish()
        if piece != Piece():
            self._put(piece)
        reply = self.ticket.reply
        is_cut = len(reply.ids) >= reply.most and not self._text.stopped
        self._finish(End("length" if is_cut else "stop", error))

    def _finish(self, end: End) -> None:
        if not self._over:
            self._over = True
            self._put(end)

    def _put(self, event: Piece | End) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def listen(
    scheduler: Scheduler,
    loaded: LoadedModel,
    request: ChatRequest | CompletionRequest,
    prompts: Sequence[Prompt],
    choice: Choice,
    verbatim: bool,
) -> list[Listener]:
    """Begin the replies that a request asks for, n to each prompt.

    verbatim: of a completion (`ReplyText`).
    Raises: InputError if a prompt and its reply do not fit; Full, Stopped.
    """
    stops, steering = request.stops, choice.steering()
    seed = secrets.randbits(63) if request.seed is None else request.seed
    sampling = _sampling(request, choice.sampling)
    listeners = [
        Listener(
            Ongoing(
                prompt,
                noise_key(seed, prompt.text, k),
                _most_tokens(loaded, request, prompt),
                sampling,
                steering,
            ),
            ReplyText(loaded.tokenizer, prompt.opened, stops, verbatim),
        )
        for prompt in prompts
        for k in range(request.n)
    ]
    scheduler.reply([listener.ticket for listener in listeners])
    return listeners


def _sampling(request: ChatRequest | CompletionRequest, usual: Sampling) -> Sampling | None:
    """How tokens are drawn: as `usual`, unless the request says otherwise.

    Returns: None for the likeliest token each time.
    """
    if request.temperature == 0:
        return None
    temperature = usual.temperature if request.temperature is None else request.temperature
    return Sampling(temperature, usual.top_p if request.top_p is None else request.top_p)


def _most_tokens(
    loaded: LoadedModel, request: ChatRequest | CompletionRequest, prompt: Prompt
) -> int:
    room = loaded.context_length - len(prompt.ids)
    wanted = request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        wanted = request.max_completion_tokens
    if wanted is None:
        wanted = max(min(DEFAULT_TOKENS, room), 1)
    if not 1 <= wanted <= room:
        raise InputError(
            f"prompt and reply must fit the context of {loaded.context_length} tokens together, "
            f"got {len(prompt.ids)} and {wanted}; max_tokens may be from 1 to {max(room, 0)}"
        )
    return wanted


class Gone(Exception):
    """The client has closed the connection."""


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Wait for some work, or until the client closes the connection; its body must have been read.

    Raises: Gone.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise Gone
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _closed(request: Request) -> None:
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = dict(await request.receive())
