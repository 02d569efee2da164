"""A stand-in for the hub: a server on this machine that answers what a push asks, and keeps what it is given."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOKEN = "hf_secret"
_UPLOAD = {"uploadMode": "regular", "shouldIgnore": False}


@dataclass
class StandInHub:
    """What a stand-in is asked for and has.

    Attributes:
        endpoint: its address.
        public: repositories that exist and are public; ``private``: those that are private.
        files: by repository, then by path, as the last commit left them.
        branches: of commits, in their order.
        role: of the token.
        refuses_commits: whether a commit is answered by an error.
    """

    endpoint: str = ""
    public: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    role: str = "write"
    refuses_commits: bool = False

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        path = path.partition("?")[0].strip("/")
        if not path:
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "api/whoami-v2":
            groups = [{"name": "lab", "roleInOrg": "write"}, {"name": "library", "roleInOrg": "read"}]
            return 200, {"name": "me", "orgs": groups, "auth": {"accessToken": {"role": self.role}}}
        if path == "api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "api/repos/create":
            return self._create(json.loads(body))
        return self._of_repository(method, path.split("/"), body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        address = {"url": f"{self.endpoint}/{name}", "id": name}
        if name in self.public | self.private:
            return 409, {"error": "You already created this model repo", **address}
        (self.private if asked.get("visibility") == "private" or asked.get("private") else self.public).add(name)
        return 200, address

    def _of_repository(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        name = "/".join(parts[2:4])
        have = self.files.setdefault(name, {})
        if name not in self.public | self.private:
            return 404, {"error": "Repository not found"}
        match parts[4:]:
            case []:
                return 200, {"id": name, "private": name in self.private, "sha": "0" * 40, "siblings": []}
            case ["tree", *_]:
                return 200, [{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in have]
            case ["branch", branch]:
                return 200, {}
            case ["preupload", _]:
                wanted = json.loads(body)["files"]
                return 200, {"files": [{"path": item["path"], **_UPLOAD} for item in wanted]}
            case ["commit", branch] if method == "POST" and not self.refuses_commits:
                self.branches.append(branch)
                self._commit(have, body)
                return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}
        return 403, {"error": "The hub is full"}

    @staticmethod
    def _commit(have: dict[str, bytes], body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                have[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del have[entry["value"]["path"]]


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[StandInHub]
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, values = self.hub.answer(self.command, self.path, body, self.headers.get("Authorization"))
        text = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound" if "Repository" in text.decode() else "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = _answer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """A stand-in that runs until the block ends."""
    hub = StandInHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
