"""A hub on this machine: resolves files as the Hugging Face hub does, large ones by a redirect to another
host, and fails in the ways that are asked of it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE_BYTES = 10_000
"""Files of this size and more are kept apart, known by their sha256; smaller ones by git's id."""
COMMIT = "c" * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubServer:
    """The hub's files by ``repository/name``, and how it behaves.

    Attributes:
        token: what it wants for anything, where given.
        cut: files sent only up to so many bytes of what was asked for, once each time they are listed.
        sent: what is sent in place of a file.
        statuses: answers to the next requests for bytes, before any are sent.
        ignores_ranges: sends whole files always.
        opaque_etags: says nothing of contents.
        log: every request: method, host, path, range, whether it had a token.
    """

    files: Mapping[str, bytes]
    token: str | None = None
    cut: dict[str, list[int]] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    ignores_ranges: bool = False
    opaque_etags: bool = False
    log: list[tuple[str, str, str, str | None, bool]] = field(default_factory=list)
    url: str = ""

    def fetches(self) -> list[tuple[str, str | None]]:
        """Name and range of each request for bytes that was not redirected."""
        return [
            (path.rpartition("/")[2], asked)
            for method, host, path, asked, _ in self.log
            if method == "GET" and (host == "localhost" or not self._large(path))
        ]

    def _large(self, path: str) -> bool:
        return len(self.files.get(_name(path), b"")) >= LARGE_BYTES


def _name(path: str) -> str:
    """``/owner/repository/resolve/revision/name`` or ``/cdn/owner/repository/name`` as a key of files."""
    owner, repository, *rest = path.removeprefix("/cdn").strip("/").split("/")
    return "/".join([owner, repository, *(rest[2:] if rest[0] == "resolve" else rest)])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._note()
        if self._allowed():
            self._describe(self.hub.files[_name(self.path)])

    def do_GET(self) -> None:
        self._note()
        if not self._allowed():
            return
        name = _name(self.path)
        if not self.path.startswith("/cdn") and self.hub._large(self.path):
            self._describe(self.hub.files[name])
        elif self.hub.statuses:
            self._end(self.hub.statuses.pop(0))
        else:
            self._send(name)

    def _note(self) -> None:
        host = self.headers["Host"].partition(":")[0]
        has_token = "Authorization" in self.headers
        self.hub.log.append((self.command, host, self.path, self.headers["Range"], has_token))

    def _allowed(self) -> bool:
        cdn = self.path.startswith("/cdn")
        if not cdn and self.hub.token and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            self._end(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif _name(self.path) not in self.hub.files:
            self._end(404, {"X-Error-Code": "EntryNotFound"})
        else:
            return True
        return False

    def _describe(self, content: bytes) -> None:
        """Where a file is and what it is, as the hub answers HEAD, and GET for a large file."""
        if not self.hub._large(self.path):
            self._end(200, {"ETag": self._etag(git_id(content)), "X-Repo-Commit": COMMIT}, len(content))
            return
        port = self.server.server_address[1]
        fields = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": self._etag(sha256(content)),
            "Location": f"http://localhost:{port}/cdn/{_name(self.path)}",
        }
        self._end(302, fields)

    def _etag(self, digest: str) -> str:
        return 'W/"of-a-mirror"' if self.hub.opaque_etags else f'"{digest}"'

    def _send(self, name: str) -> None:
        content = self.hub.sent.get(name, self.hub.files[name])
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        start = 0 if self.hub.ignores_ranges else start
        rest = content[start:]
        fields = {} if self.hub.ignores_ranges else {"Content-Range": f"bytes {start}-/{len(content)}"}
        self._end(206 if fields else 200, fields, len(rest))
        cuts = self.hub.cut.get(name)
        if cuts:
            self.wfile.write(rest[: cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def _end(self, status: int, fields: Mapping[str, str] | None = None, length: int = 0) -> None:
        self.send_response(status)
        for key, value in (fields or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def running(hub: HubServer) -> Iterator[HubServer]:
    """The hub, listening at ``hub.url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
