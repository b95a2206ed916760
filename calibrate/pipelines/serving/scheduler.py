"""The thread that the model runs in, and the queue before it.

Requests wait in a bounded queue, in the order they came. At every step those that there is room for
join the replies under way, whatever strength each has, and replies that nobody waits for any longer
leave. Other work with the model, such as scoring a text, is done between two steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from calibrate.common.errors import CalibrateError, InputError
from calibrate.engine.decoding import end_ids
from calibrate.engine.running import Ongoing, RunningReplies, reply_alone
from calibrate.models.model import LoadedModel, preserving_model_state


class Full(CalibrateError):
    """No more requests can wait."""


class Stopped(CalibrateError):
    """The server ends."""


@dataclass(eq=False)
class Ticket:
    """A reply that somebody waits for.

    heard: called in the scheduler's thread after each token, and at the end, with what went wrong
        if anything did. cancelled: nobody waits any longer; to be set from any thread.
    """

    reply: Ongoing
    heard: Callable[[], None]
    ended: Callable[[Exception | None], None]
    cancelled: bool = False


@dataclass(eq=False)
class _Work:
    """Other work with the model."""

    do: Callable[[], Any]
    future: Future[Any]

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any longer."""
        return self.future.cancelled()


class Scheduler:
    """Runs one model for many requests.

    most_running: replies in the batch at once. most_waiting: requests in the queue.
    """

    def __init__(self, loaded: LoadedModel, most_running: int, most_waiting: int) -> None:
        self._loaded, self._ends = loaded, end_ids(loaded)
        self._together = loaded.capabilities.fast_decoding.works
        self._joins = loaded.capabilities.joining.works
        self._most_running, self._most_waiting = most_running, most_waiting
        self._waiting: deque[Ticket | _Work] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    def stop(self) -> None:
        """End all replies, and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Replies in the batch."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive() and not self._stopping

    def reply(self, tickets: Sequence[Ticket]) -> None:
        """Queue some replies, all or none.

        Raises: Full if there is no room for them; InputError if there never can be; Stopped at the
            end.
        """
        self._queue(tickets)

    def do(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue other work with the model.

        Raises: Full, Stopped.
        """
        future: Future[Any] = Future()
        self._queue([_Work(work, future)])
        return future

    def _queue(self, items: Sequence[Ticket | _Work]) -> None:
        with self._changed:
            if not self.alive:
                raise Stopped("the server ends")
            self._forget_cancelled()
            most = self._most_waiting + self._most_running
            if len(items) > most:
                raise InputError(
                    f"a request must have at most {most} replies, n to each prompt, got "
                    f"{len(items)}; send it in parts, or serve with a larger --queue"
                )
            room = self._most_waiting + max(0, self._most_running - len(self._running))
            if len(self._waiting) + len(items) > room:
                raise Full(
                    f"at most {self._most_waiting} requests may wait, and as many do; try again"
                )
            self._waiting.extend(items)
            self._changed.notify()

    def _forget_cancelled(self) -> None:
        """Drop what nobody waits for any longer, so that it takes nobody's place."""
        self._waiting = deque(item for item in self._waiting if not item.cancelled)

    def _run(self) -> None:
        with preserving_model_state(self._loaded):
            self._replies = self._none_yet()
            while self._wait_for_work():
                fresh = self._admitted(self._most_running if self._together else 1)
                try:
                    if self._together:
                        self._step(fresh)
                    else:
                        self._alone(fresh)
                except Exception as error:  # whoever waits is told, and the next one is served
                    self._fail(error)
                    self._replies = self._none_yet()
        self._abandon()

    def _none_yet(self) -> RunningReplies:
        return RunningReplies(self._loaded, self._ends, self._joins)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._running)
            return not self._stopping

    def _admitted(self, most: int) -> list[Ticket]:
        """Do the work that is next, and return the replies that there is room for."""
        fresh: list[Ticket] = []
        while True:
            with self._changed:
                self._forget_cancelled()
                if not self._waiting:
                    return fresh
                item = self._waiting[0]
                if isinstance(item, Ticket) and len(self._running) >= most:
                    return fresh
                self._waiting.popleft()
            if isinstance(item, _Work):
                self._do(item)
            else:
                self._running.append(item)
                fresh.append(item)

    def _do(self, work: _Work) -> None:
        if work.future.set_running_or_notify_cancel():
            try:
                work.future.set_result(work.do())
            except Exception as error:  # whoever waits for it is told
                work.future.set_exception(error)

    def _step(self, fresh: Sequence[Ticket]) -> None:
        """A token for every reply: the first of fresh ones, the next of the others."""
        wanted = {id(ticket.reply) for ticket in self._running if not ticket.cancelled}
        self._replies.keep(lambda reply: id(reply) in wanted)
        served = set(map(id, self._replies.step()))
        self._hear(lambda ticket: id(ticket.reply) in served)
        joining = [ticket.reply for ticket in fresh if not ticket.cancelled]
        if joining:
            self._replies.begin(joining)
            begun = set(map(id, joining))
            self._hear(lambda ticket: id(ticket.reply) in begun)
        staying = [each for each in self._running if not each.cancelled]
        over = [each for each in staying if each.reply.is_over(self._ends)]
        self._running = [each for each in staying if each not in over]
        for ticket in over:
            ticket.ended(None)

    def _hear(self, chosen: Callable[[Ticket], bool]) -> None:
        for ticket in self._running:
            if chosen(ticket):
                ticket.heard()

    def _alone(self, fresh: Sequence[Ticket]) -> None:
        """The whole reply of a model that our own loop cannot serve."""
        for ticket in fresh:

            def receive(ticket: Ticket = ticket) -> bool:
                ticket.heard()
                return not (ticket.cancelled or self._stopping)

            reply_alone(self._loaded, ticket.reply, self._ends, receive)
            self._running.remove(ticket)
            ticket.ended(None)

    def _fail(self, error: Exception) -> None:
        """What goes wrong ends the replies under way, and no others."""
        ending, self._running = self._running, []
        for ticket in ending:
            ticket.ended(error)

    def _abandon(self) -> None:
        """Tell whoever still waits that the server ends."""
        with self._changed:
            left, self._waiting = [*self._running, *self._waiting], deque()
        for item in left:
            if isinstance(item, Ticket):
                item.ended(Stopped("the server ends"))
            else:
                item.future.cancel()
