"""A small stand-in for the Hugging Face hub's API, for the real client: repositories of models and data in memory.

As huggingface_hub 2.4 asks without hf_xet. To write: POST /api/repos/create, GET /api/models/<id>, preupload, LFS batch
with the transfer "basic", and one commit of NDJSON. To read: the tree of a repository, and files with ranges.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

from tests.support.site import serving

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_canary"


@dataclass
class Repository:
    """One repository; those of data are called datasets/owner/name."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class Hub(ThreadingHTTPServer):
    """The server; `fails` is a status that every upload is answered with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fails = 0

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, which the client asks with a token that it takes."""
    with serving(Hub()) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Read from HF_ENDPOINT when the library is imported, which other tests have done.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        files = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""

    def _route(self, method: str) -> None:
        path, hub = urlsplit(self.path).path, self.server
        body = self._body()
        hub.asked.append(f"{method} {path}")
        if method == "PUT" and path.startswith("/lfs/"):
            hub.stored[path.removeprefix("/lfs/")] = body
            return self._send(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            said = "Invalid credentials in Authorization header"  # other words would say: no such repository
            return self._send(401, {"error": said}, {"X-Error-Message": said})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if method == "POST" and hub.fails:
            return self._send(hub.fails, {"error": "no"})
        for pattern, answer in (
                (r"/api/([^/]+/[^/]+/[^/]+)", self._info), (r"/api/([^/]+/[^/]+/[^/]+)/revision/.+", self._info),
                (r"/api/([^/]+/[^/]+/[^/]+)/tree/.+", self._tree),
                (r"/((?:datasets/)?[^/]+/[^/]+)/resolve/.+", self._file),
                (r"/api/models/([^/]+/[^/]+)/preupload/main", self._modes),
                (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
                (r"/api/models/([^/]+/[^/]+)/commit/main", self._commit)):
            if found := re.fullmatch(pattern, path):
                repository = hub.repositories.get(found[1].removeprefix("models/"))
                if repository is None:
                    return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return answer(found[1], repository, body)
        return self._send(404, {"error": f"{method} {path} is not part of this stand-in"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        private = asked.get("private", asked.get("visibility") == "private")
        self.server.repositories.setdefault(name, Repository(bool(private)))
        self._send(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def _info(self, name: str, repository: Repository, _: bytes) -> None:
        siblings = [{"rfilename": file} for file in repository.files]
        self._send(200, {"id": name, "modelId": name, "private": repository.private, "sha": COMMIT,
                         "siblings": siblings, "tags": []})

    def _tree(self, name: str, repository: Repository, _: bytes) -> None:
        """All files below a folder; the client makes folders of their paths."""
        folder = unquote(urlsplit(self.path).path.partition("/tree/")[2]).partition("/")[2]
        below = {path: data for path, data in repository.files.items() if not folder or path.startswith(f"{folder}/")}
        if not below:
            self._no_entry()
            return
        depth, is_deep = folder.count("/") + bool(folder), "recursive=true" in self.path.lower()
        folders = {"/".join(path.split("/")[:level]) for path in below
                   for level in range(depth + 1, path.count("/") + 1) if is_deep or level == depth + 1}
        files = [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                 for path, data in below.items() if is_deep or path.count("/") == depth]
        self._send(200, [*files, *({"type": "directory", "path": path, "size": 0, "oid": "0"} for path in folders)])

    def _file(self, _: str, repository: Repository, __: bytes) -> None:
        """A file, or the range that is asked for."""
        path = unquote(urlsplit(self.path).path.partition("/resolve/")[2]).partition("/")[2]
        data = repository.files.get(path)
        if data is None:
            self._no_entry()
            return
        mark = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send_bytes(200, data, mark)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send_bytes(206, data[first:last + 1], {**mark, **span})

    def _no_entry(self) -> None:
        self._send(404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"})

    def _modes(self, _: str, __: Repository, body: bytes) -> None:
        files = [{"path": one["path"], "shouldIgnore": False,
                  "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".gguf")) else "regular"}
                 for one in json.loads(body)["files"]]
        self._send(200, {"files": files})

    def _batch(self, _: str, __: Repository, body: bytes) -> None:
        objects = [{"oid": one["oid"], "size": one["size"],
                    "actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}}
                   for one in json.loads(body)["objects"]]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    repository.commits.append(value["summary"])
                case "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    data = self.server.stored[value["oid"]]
                    assert hashlib.sha256(data).hexdigest() == value["oid"]
                    repository.files[value["path"]] = data
        self._send(200, {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT,
                         "success": True})

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
