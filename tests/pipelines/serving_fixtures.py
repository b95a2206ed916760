"""A server of the tiny model on a port of its own, for the tests that talk to one."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import tiny
from patience import PATIENCE, wait_until

from calibrate.pipelines.serving import server
from calibrate.pipelines.serving.scheduler import Scheduler


class Running:
    """A running server: its address, its catalogue, and its thread."""

    def __init__(self, directories, **options):
        self.ready = threading.Event()
        self.failed = None

        def told(catalogue, address):
            self.catalogue, self.address = catalogue, address
            self.ready.set()

        def run():
            try:
                server.serve(directories, port=0, ready=told, **options)
            except Exception as error:
                self.failed = error
                self.ready.set()

        self.thread = threading.Thread(target=run, daemon=True)

    @property
    def port(self):
        return int(self.address.rsplit(":", 1)[1])

    def ask(self, method, path, body=None, headers=None):
        """One request: its status, its headers and what is answered."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        usual = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, sent, {**usual, **(headers or {})})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, answer.headers, json.loads(content) if is_json else content.decode()

    def post(self, body, path="/v1/chat/completions"):
        status, _, facts = self.ask("POST", path, body)
        return status, facts


@contextmanager
def serving(monkeypatch, directories, **options):
    """A server inside the `with`; uvicorn's own signal handling is for main threads alone."""
    servers, schedulers = [], []

    class Kept(server._Server):
        def __init__(self, *given):
            super().__init__(*given)
            servers.append(self)

    def scheduler(*given):
        schedulers.append(Scheduler(*given))
        return schedulers[0]

    monkeypatch.setattr(server, "_Server", Kept)
    monkeypatch.setattr(server, "Scheduler", scheduler)
    running = Running(directories, **options)
    running.thread.start()
    assert running.ready.wait(PATIENCE), "the server never began"
    if running.failed is not None:
        raise running.failed
    running.scheduler = schedulers[0]
    try:
        yield running
    finally:
        servers[0].should_exit = True
        running.thread.join(PATIENCE)
        assert not running.thread.is_alive(), "the server never ended"


def until(holds):
    """Wait for what another thread brings about."""
    wait_until(holds, "what the server should bring about")


def saved(folder, finished, *names):
    """The tiny model, and its calibration under some names."""
    tiny.model("gpt2").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    for name in names:
        finished.result.save(folder / name)
    return folder
