"""The yes/no judge at an address: any server that speaks the OpenAI interface.

Several questions are asked at a time. P(yes) comes from the log-probabilities of the answer's first
token if the server returns them; otherwise it is 1 or 0, by the answer's first word. Behind one
address there may be several servers, of which some return none: a server is asked for words alone
only as long as no answer had log-probabilities.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from calibrate.common.errors import CalibrateWarning
from probes.address import RETRIES, TIMEOUT, NoLogProbabilities, Server, connected
from probes.asking import QUESTION, Answer, Asked, first_word, probability_of_yes, settled

AT_ONCE = 8  # questions in flight
LIKELY = 20  # next tokens requested, as many as OpenAI returns
WORDS = 8  # tokens of an answer whose first word is read


@dataclass(frozen=True, eq=False)
class OpenAIQuestion(Asked):
    """Asks a model on a server.

    url: of the interface, as a rule ending in /v1. question: has places for {text} and {concept}.
    at_once: questions in flight. timeout: seconds for one answer. retries: of one question.
    """

    model: str
    url: str
    question: str = QUESTION
    at_once: int = AT_ONCE
    timeout: float = TIMEOUT
    retries: int = RETRIES
    _told: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _untold: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """The address, the model's name, and what else the server says of it.

        A server of one's own may have another model the next time, behind the same name.
        Raises: InputError if it cannot be reached.
        """
        with connected(self.url, self.model, self.timeout, self.retries) as server:
            facts = server.facts()
        return f"openai {self.url} {self.model} {facts}".rstrip()

    def answers(self, prompts: Sequence[str]) -> Iterator[tuple[int, float | None]]:
        """Yield each prompt's index and P(yes), as the answers come.

        Raises: InputError if the server fails, after all answers it gave were yielded; or if it
            answers neither yes nor no.
        """
        return settled(self._as_they_come(prompts), f"openai:{self.model}")

    def _as_they_come(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        failure: BaseException | None = None
        with (
            ThreadPoolExecutor(self.at_once) as pool,
            connected(self.url, self.model, self.timeout, self.retries) as server,
        ):
            asked = {pool.submit(self._ask, server, one): i for i, one in enumerate(prompts)}
            try:
                for future in as_completed(asked):
                    if future.cancelled():
                        continue
                    if future.exception() is None:
                        yield asked[future], future.result()
                        continue
                    failure = failure or future.exception()
                    for other in asked:
                        other.cancel()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    @property
    def _in_words(self) -> bool:
        """Whether answers came without log-probabilities, and none with them."""
        return self._untold.locked() and not self._told.is_set()

    def _ask(self, server: Server, prompt: str) -> Answer:
        answer = None if self._in_words else self._by_first_token(server, prompt)
        if answer is not None:
            self._told.set()
            return answer
        text = server.reply(prompt, WORDS).message.content or ""
        word = first_word(text)
        if word not in ("yes", "no"):
            return text
        if self._untold.acquire(blocking=False):  # once, whichever thread comes first
            warnings.warn(self._why_words(), CalibrateWarning, stacklevel=2)
        return float(word == "yes")

    def _why_words(self) -> str:
        if self._told.is_set():
            return (
                f"{self.url} leaves the log-probabilities out of some answers: these count as 1 "
                "for yes and 0 for no, and nothing between"
            )
        return (
            f"{self.url} tells no log-probabilities: its judge says 1 for yes and 0 for no, and "
            "nothing between"
        )

    def _by_first_token(self, server: Server, prompt: str) -> Answer | None:
        """P(yes), or the answer if it is neither; None without log-probabilities."""
        try:
            choice: Any = server.reply(prompt, 1, LIKELY)
            likely = [(one.token, one.logprob) for one in choice.logprobs.content[0].top_logprobs]
            score = probability_of_yes(likely)
        except (NoLogProbabilities, AttributeError, TypeError, IndexError):
            return None
        if not likely:
            return None
        return str(likely[0][0]) if score is None else score
