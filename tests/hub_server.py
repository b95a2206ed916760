"""The few routes of the Hugging Face Hub that its own client uses here, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories by name, and who may see them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Files] = {}
        self.private: dict[str, bool] = {}
        self.commits: dict[str, Files] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """create, preupload, commit, info, and files."""

    server: Hub

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{owner}/{asked['name']}"
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.private.setdefault(name, private)
            self._json({"url": f"{self.server.url}/{name}"}, 409 if known else 200)
        elif parts[-2] == "preupload":
            files = json.loads(body)["files"]
            regular = [{"path": one["path"], "uploadMode": "regular"} for one in files]
            self._json({"files": [{**one, "shouldIgnore": False} for one in regular]})
        elif parts[-2] == "commit":
            name = "/".join(parts[2:4])
            files = self.server.repositories[name]
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del files[entry["value"]["path"]]
            made = digest(files)
            self.server.commits[made] = dict(files)
            address = f"{self.server.url}/{name}/commit/{made}"
            self._json({"commitUrl": address, "commitOid": made})
        else:
            self._json({})

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            revision = parts[5] if len(parts) > 5 else "main"
            self._info("/".join(parts[2:4]), revision, as_tree="tree" in parts[4:])
            return
        files = self._files("/".join(parts[:2]), parts[3])
        if files is None:
            self._missing("RepoNotFound")
            return
        content = files.get("/".join(parts[4:]))
        if content is None:
            self._missing("EntryNotFound")
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", digest(files))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _files(self, name: str, revision: str) -> Files | None:
        """What a repository holds, or held at a commit that was made here."""
        return self.server.commits.get(revision) or self.server.repositories.get(name)

    def _info(self, name: str, revision: str, as_tree: bool) -> None:
        files = self._files(name, revision)
        if files is None:
            self._missing("RepoNotFound")
            return
        if as_tree:
            found = [
                {"type": "file", "path": path, "size": len(content), "oid": digest({path: content})}
                for path, content in sorted(files.items())
            ]
            self._json(found)
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        self._json({"id": name, "sha": digest(files), "siblings": siblings, "private": True})

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, facts: Any, status: int = 200) -> None:
        content = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def digest(files: Files) -> str:
    """A commit's name: 40 digits that say what is in it."""
    facts = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    return hashlib.sha1(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the `with`."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
