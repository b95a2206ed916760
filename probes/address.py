"""A chat server reached by the OpenAI interface, and messages for its failures.

Requests that fail for want of a connection, by a timeout or for lack of capacity are retried, each
time after a longer pause. The key comes from OPENAI_API_KEY and goes to the server only: no message
repeats it, nor what a server says about keys.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from calibrate.common.errors import InputError

TIMEOUT = 60.0  # seconds
RETRIES = 4  # after half a second, 1, 2 and 4 seconds
NO_KEY = "none"  # sent where there is no key; local servers ignore it
SHOWN = 120  # characters of a server's answer that a message repeats
EXAMPLE = "http://localhost:8080/v1"
OPTIONAL = ("max_tokens", "temperature")  # what newer models refuse
THOUGHT = 2048  # tokens for a thought before an answer in words, where it counts
TOLD = ("id", "root", "meta")  # of an entry of /models: name, files, and what these hold
AGAIN = "what it answered so far is kept, so start the same command again once it does"


class NoLogProbabilities(Exception):
    """The server refuses to return log-probabilities."""


def check_address(url: str | None) -> str:
    """Return the address of a server: `url`, else that in OPENAI_BASE_URL.

    Raises: InputError if it is missing, malformed or holds a secret, or if the client is not
        installed.
    """
    address = url or os.environ.get("OPENAI_BASE_URL")
    if not address:
        raise InputError(
            f"a judge openai:MODEL needs its server's address, and got none; give --judge-url, "
            f"such as {EXAMPLE}, or set OPENAI_BASE_URL"
        )
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = None
    if valid and (parts.username or parts.password or parts.query or parts.fragment):
        raise InputError(
            f"--judge-url must hold nothing secret: no user, password or query, as for "
            f"{parts.hostname}; set OPENAI_API_KEY to the key"
        )
    if not valid:
        raise InputError(f"--judge-url must be an address such as {EXAMPLE}, got {address!r}")
    if importlib.util.find_spec("openai") is None:
        raise InputError(
            "asking a server needs its client: pip install 'steering-calibrate[openai]'"
        )
    return address.rstrip("/")


@contextmanager
def connected(
    url: str, model: str, timeout: float = TIMEOUT, retries: int = RETRIES
) -> Iterator[Server]:
    """Connect to a model at an address inside the `with`; threads may share it."""
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY") or NO_KEY
    with OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries) as client:
        yield Server(url, model, timeout, retries, client)


def served(url: str, model: str) -> str:
    """What the server at an address says of a model beside its name; empty if nothing.

    Raises: InputError if it cannot be reached.
    """
    with connected(url, model) as server:
        return server.facts()


@dataclass(frozen=True, eq=False)
class Server:
    """A model at an address.

    timeout: seconds for one answer. retries: of one request. client: of the OpenAI package.
    What the model once refused of OPTIONAL is not sent to it again.
    """

    url: str
    model: str
    timeout: float
    retries: int
    client: Any = field(repr=False)
    _refused: set[str] = field(default_factory=set, init=False, repr=False)

    def reply(self, prompt: str, max_tokens: int, top_logprobs: int = 0) -> Any:
        """Return the model's greedy reply, a `choice` of the interface.

        A model that refuses `max_tokens` is given it by its newer name, in which a thought counts,
        and one that refuses a temperature of 0 is left its own.
        Raises: NoLogProbabilities if the server refuses those; InputError for any other failure.
        """
        import openai

        without = frozenset(self._refused)
        options = _options(max_tokens, top_logprobs, without)
        message: Any = {"role": "user", "content": prompt}
        try:
            answer: Any = self.client.chat.completions.create(
                model=self.model, messages=[message], **options
            )
            choice = answer.choices[0]
            if not isinstance(choice.message.content, str | None):
                raise TypeError
            return choice
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if top_logprobs and "logprobs" in str(error):
                raise NoLogProbabilities from None
            refused = {name for name in OPTIONAL if name in str(error)} - without
            if refused:
                self._refused.update(refused)
                return self.reply(prompt, max_tokens, top_logprobs)
            raise InputError(self._why(error)) from None
        except openai.OpenAIError as error:  # from None: its request holds the key
            raise InputError(self._why(error)) from None
        except (AttributeError, TypeError, IndexError, ValueError):
            raise InputError(
                f"{self.url} must speak the OpenAI interface, and answers with something else; "
                "check --judge-url, which as a rule ends in /v1"
            ) from None

    def facts(self) -> str:
        """What the server says of the model beside the name it is asked by; empty if nothing.

        A server of one model takes any name. When it says that a model was made is left out: for
        many servers that is the time at which they are asked.
        Raises: InputError if it cannot be reached.
        """
        import openai

        try:
            listed = [entry.to_dict() for entry in self.client.models.list().data or ()]
        except openai.APIConnectionError as error:
            raise InputError(self._why(error)) from None
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            return ""
        named = listed if len(listed) == 1 else [e for e in listed if e.get("id") == self.model]
        told = [{fact: entry[fact] for fact in TOLD if entry.get(fact)} for entry in named]
        more = [facts for facts in told if facts != {"id": self.model}]
        return json.dumps(more, sort_keys=True) if more else ""

    def _why(self, error: Exception) -> str:
        """The failure and the way out, on one line."""
        import openai

        tries = f"{self.retries + 1} tries"
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{self.url} must answer within {self.timeout:g} s, and did not in {tries}; {AGAIN}"
            )
        if isinstance(error, openai.APIConnectionError):
            return f"{self.url} cannot be reached ({tries}); start the server; {AGAIN}"
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            wrong = "refuses the key" if os.environ.get("OPENAI_API_KEY") else "wants a key"
            return f"{self.url} {wrong} ({status}); set OPENAI_API_KEY to one that it takes"
        if status == 404:
            return (
                f"{self.url} has no model {self.model!r} (404); name one that {self.url}/models "
                "lists, or check --judge-url, which as a rule ends in /v1"
            )
        if status == 429:
            return f"{self.url} has no room for more requests (429, {tries}); {AGAIN}"
        if status is not None and status >= 500:
            return f"{self.url} fails ({status}, {tries}); look at its log; {AGAIN}"
        said = self._excerpt(error)
        return f"{self.url} does not take the question ({said}); name another model or server"

    def _excerpt(self, error: Exception) -> str:
        """The beginning of a server's message, without the key, which it may repeat."""
        message = " ".join(str(error).split())
        key = os.environ.get("OPENAI_API_KEY")
        return (message.replace(key, "…") if key else message)[:SHOWN]


def _options(max_tokens: int, top_logprobs: int, without: frozenset[str]) -> dict[str, Any]:
    """The options of a request, without those that the model refuses."""
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
    if top_logprobs:
        options |= {"logprobs": True, "top_logprobs": top_logprobs}
    elif "max_tokens" in without:
        max_tokens += THOUGHT
    if "max_tokens" in without:
        options["max_completion_tokens"] = max_tokens
    return {name: value for name, value in options.items() if name not in without}
