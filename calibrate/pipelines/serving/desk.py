"""Takes requests for replies, and answers them, whole or piece by piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from calibrate.common.errors import InputError
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_prompt, encode_text
from calibrate.models.tokens import Prompt
from calibrate.pipelines.serving import answers
from calibrate.pipelines.serving.answers import DONE, Envelope, Usage
from calibrate.pipelines.serving.catalogue import Catalogue, Choice
from calibrate.pipelines.serving.faults import error_facts
from calibrate.pipelines.serving.listening import End, Gone, Listener, listen, unless_gone
from calibrate.pipelines.serving.metrics import Metrics
from calibrate.pipelines.serving.protocol import ChatRequest, CompletionRequest
from calibrate.pipelines.serving.scheduler import Scheduler
from calibrate.pipelines.serving.scoring import require_scorable, score

MOST_BYTES = 1 << 20  # of a request

Body = TypeVar("Body", ChatRequest, CompletionRequest)


class Desk:
    """Takes requests for replies, and answers them."""

    def __init__(self, catalogue: Catalogue, scheduler: Scheduler, metrics: Metrics) -> None:
        self._catalogue, self._scheduler, self._metrics = catalogue, scheduler, metrics

    @property
    def _loaded(self) -> LoadedModel:
        return self._catalogue.loaded

    async def chat(self, request: Request) -> Response:
        """Reply to a conversation."""
        asked = await body_of(request, ChatRequest)
        choice = self._catalogue.choose(asked.model, asked.concept, asked.strength)
        system, history, said = asked.turns
        prompt = encode_prompt(self._loaded, said, system=system, history=history)
        envelope, listeners = Envelope(choice, True), self._listen(asked, [prompt], choice)
        if asked.stream:
            return self._streamed(asked, envelope, listeners)
        ends = await self._ended(request, listeners)
        choices = [
            answers.chat_choice(index, one.text, end.reason)
            for index, (one, end) in enumerate(zip(listeners, ends, strict=True))
        ]
        return JSONResponse(envelope.whole(choices, self._used(choice, listeners)))

    async def complete(self, request: Request) -> Response:
        """Go on with texts."""
        asked = await body_of(request, CompletionRequest)
        choice = self._catalogue.choose(asked.model, asked.concept, asked.strength)
        if asked.logprobs is not None:
            require_scorable(choice)
        prompts = [self._prompt(each) for each in asked.prompts]
        envelope = Envelope(choice, False)
        if asked.max_tokens == 0:
            if not asked.echo:
                raise InputError("max_tokens may be 0 with echo alone")
            listeners, ends = [], []
        else:
            listeners = self._listen(asked, prompts, choice)
            if asked.stream:
                return self._streamed(asked, envelope, listeners)
            ends = await self._ended(request, listeners)
        choices = await self._completions(request, asked, choice, prompts, listeners, ends)
        used = self._used(choice, listeners, prompts)
        return JSONResponse(envelope.whole(choices, used))

    async def _completions(
        self,
        request: Request,
        asked: CompletionRequest,
        choice: Choice,
        prompts: Sequence[Prompt],
        listeners: Sequence[Listener],
        ends: Sequence[End],
    ) -> list[dict[str, Any]]:
        """The replies to each prompt, with their tokens' log-probabilities where asked for."""
        begun = [prompt for prompt in prompts for _ in range(asked.n)]
        replies = [one.ids for one in listeners] or [[] for _ in begun]
        texts = [one.text.answer for one in listeners] or ["" for _ in begun]
        reasons = [end.reason for end in ends] or ["length" for _ in begun]
        wholes = [(*prompt.ids, *ids) for prompt, ids in zip(begun, replies, strict=True)]
        scores = None
        if asked.logprobs is not None:
            loaded, n_likeliest = self._loaded, asked.logprobs
            future = self._scheduler.do(lambda: score(loaded, choice, wholes, n_likeliest))
            scores = await unless_gone(request, asyncio.wrap_future(future))
        choices = []
        for index, (prompt, whole) in enumerate(zip(begun, wholes, strict=True)):
            begin = 0 if asked.echo else len(prompt.ids)
            echoed = prompt.text if asked.echo else ""
            facts = scores and answers.log_prob_facts(self._loaded, whole, scores[index], begin)
            choices.append(
                {
                    "index": index,
                    "text": echoed + texts[index],
                    "logprobs": facts,
                    "finish_reason": reasons[index],
                }
            )
        return choices

    def _prompt(self, given: str | list[int]) -> Prompt:
        if isinstance(given, str):
            ids, text = encode_text(self._loaded, given).ids, given
        else:
            rows = self._loaded.embedding_rows
            if not all(0 <= token < rows for token in given):
                raise InputError(f"token ids must be from 0 to {rows - 1}")
            ids, text = tuple(given), self._loaded.tokenizer.decode(given)
        longest = self._loaded.context_length
        if not 1 <= len(ids) <= longest:
            raise InputError(f"a prompt must have from 1 to {longest} tokens, got {len(ids)}")
        return Prompt(text, ids)

    def _listen(
        self, asked: ChatRequest | CompletionRequest, prompts: Sequence[Prompt], choice: Choice
    ) -> list[Listener]:
        verbatim = isinstance(asked, CompletionRequest)
        return listen(self._scheduler, self._loaded, asked, prompts, choice, verbatim)

    async def _ended(self, request: Request, listeners: Sequence[Listener]) -> list[End]:
        """Wait until all replies are there, one goes wrong, or the client is gone."""
        started = time.perf_counter()
        try:
            waiting = asyncio.gather(*(one.until_end() for one in listeners))
            ends: list[End] = await unless_gone(request, waiting)
        except BaseException as error:
            if isinstance(error, Gone | asyncio.CancelledError):
                self._metrics.gone.inc()
            _leave(listeners)
            raise
        self._metrics.seconds.observe(time.perf_counter() - started)
        return ends

    def _streamed(
        self,
        asked: ChatRequest | CompletionRequest,
        envelope: Envelope,
        listeners: Sequence[Listener],
    ) -> Response:
        stream = self._chunks(envelope, listeners, asked.with_usage)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    async def _chunks(
        self, envelope: Envelope, listeners: Sequence[Listener], with_usage: bool
    ) -> AsyncIterator[bytes]:
        """The replies' pieces as they come. Whoever stops reading frees their places."""
        started, ended = time.perf_counter(), False
        try:
            if envelope.chat:
                for index in range(len(listeners)):
                    yield envelope.chunk(index, None, first=True)
            first = True
            async for index, event in _merged(listeners):
                if first:
                    self._metrics.first.observe(time.perf_counter() - started)
                    first = False
                if not isinstance(event, End):
                    yield envelope.chunk(index, event)
                elif event.error is None:
                    yield envelope.chunk(index, None, event.reason)
                else:
                    yield answers.event(error_facts(event.error)[1])
            used = self._used(envelope.choice, listeners)
            if with_usage:
                yield envelope.usage(used)
            self._metrics.seconds.observe(time.perf_counter() - started)
            ended = True
            yield DONE
        finally:
            if not ended:
                self._metrics.gone.inc()
                _leave(listeners)

    def _used(
        self, choice: Choice, listeners: Sequence[Listener], prompts: Sequence[Prompt] = ()
    ) -> Usage:
        """What replies took; each prompt counts once."""
        counted = prompts or tuple({id(p): p for p in (o.prompt for o in listeners)}.values())
        completion = sum(len(one.ids) for one in listeners)
        self._metrics.tokens.labels(choice.name).inc(completion)
        return Usage(sum(len(prompt.ids) for prompt in counted), completion)


def _leave(listeners: Sequence[Listener]) -> None:
    """Free the places of replies that nobody waits for any longer."""
    for listener in listeners:
        listener.cancel()


async def _merged(listeners: Sequence[Listener]) -> AsyncIterator[tuple[int, Any]]:
    """What several replies send, as it comes, with the place of each."""
    sent: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def forward(index: int, listener: Listener) -> None:
        async for event in listener.events():
            sent.put_nowait((index, event))

    tasks = [asyncio.create_task(forward(*each)) for each in enumerate(listeners)]
    left = len(tasks)
    try:
        while left:
            index, event = await sent.get()
            left -= isinstance(event, End)
            yield index, event
    finally:
        for task in tasks:
            task.cancel()


async def body_of(request: Request, kind: type[Body]) -> Body:
    """The request, read up to its largest size and checked.

    Raises: HTTPException for what is no JSON, or too large; InputError.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "a request must be application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"a request may have at most {MOST_BYTES} bytes")
    try:
        asked = kind.model_validate_json(bytes(content))
    except ValidationError as error:
        raise InputError(_first_fault(error)) from error
    asked.check()
    return asked


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where} is not served"
    return f"{where}: {first['msg']}" if where else str(first["msg"])
