"""A small server of the OpenAI interface, which answers as a test wants it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # a status, and what is sent: JSON, or text as it is


@dataclass
class Heard:
    """Where a server is, and what it was sent."""

    url: str = ""
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def answering(
    reply: Callable[[dict[str, Any]], Reply],
    takes: float = 0.0,
    models: Callable[[], Reply] = lambda: (404, {}),
) -> Iterator[Heard]:
    """Serve inside the `with`. takes: seconds for each answer. models: says which it has."""
    heard, lock = Heard(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                heard.prompts.append(body["messages"][0]["content"])
                heard.bodies.append(body)
                heard.keys.add(self.headers["Authorization"])
                heard.at_once += 1
                heard.most_at_once = max(heard.at_once, heard.most_at_once)
            time.sleep(takes)
            status, content = reply(body)
            with lock:
                heard.at_once -= 1
            self._send(status, content)

        def do_GET(self) -> None:
            self._send(*models())

        def _send(self, status: int, content: Any) -> None:
            is_text = isinstance(content, str)
            sent = (content if is_text else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if is_text else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that no longer waits

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    heard.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()


def said(text: str, top: dict[str, float] | None = None) -> Reply:
    """An answer, with the log-probabilities of likely first tokens if `top` gives them."""
    logprobs = None
    if top is not None:
        likely = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        first = {**likely[0], "top_logprobs": likely} if likely else {}
        logprobs = {"content": [first] if likely else []}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": logprobs,
    }
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, {**answer, "choices": [choice]}


def listed(*entries: dict[str, Any]) -> Reply:
    """The models of a server, as it lists them."""
    return 200, {"object": "list", "data": [{"object": "model", **entry} for entry in entries]}


def refused(status: int, message: str = "no") -> Reply:
    """An error, as servers tell it."""
    return status, {"error": {"message": message, "type": "error", "code": None}}
