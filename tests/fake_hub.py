"""A Hub on this machine: enough of its protocol for the real client to list, read, create and commit."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0" * 40


class FakeHub:
    """``repos``: name -> {file: bytes}; ``private``: names that were created as such."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.downloaded: list[str] = []
        self.listed = 0  # how often somebody asked which files a repository has


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

        def answer(self, body: bytes | object, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, code: str) -> None:
            self.answer({"error": code}, 404, X_Error_Code=code)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            words = [unquote(w) for w in urlparse(self.path).path.strip("/").split("/")]
            api = words[:2] == ["api", "models"]
            name = "/".join(words[2:4] if api else words[:2])
            if name not in hub.repos:
                return self.missing("RepoNotFound")
            files = hub.repos[name]
            hub.listed += api
            if api and words[4:5] == ["tree"]:
                listed = [{"type": "file", "path": p, "size": len(c), "oid": COMMIT} for p, c in files.items()]
                return self.answer(listed)
            if api:
                siblings = [{"rfilename": p, "size": len(c)} for p, c in files.items()]
                return self.answer({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
            path = "/".join(words[4:])  # owner/name/resolve/REVISION/...
            if path not in files:
                return self.missing("EntryNotFound")
            content = files[path]
            if self.command == "GET":
                hub.downloaded.append(path)
            part = self.headers.get("Range")
            if part:
                first, last = part.removeprefix("bytes=").split("-")
                content = content[int(first) : int(last) + 1 if last else None]
            etag = hashlib.sha1(files[path]).hexdigest()
            return self.answer(content, 206 if part else 200, ETag=f'"{etag}"', Accept_Ranges="bytes")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            words = [unquote(w) for w in urlparse(self.path).path.strip("/").split("/")]
            if words[:3] == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.repos.setdefault(name, {})
                if asked.get("private") or asked.get("visibility") == "private":
                    hub.private.add(name)
                return self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
            if words[-1] == "validate-yaml":  # of the card
                return self.answer({"warnings": [], "errors": []})
            name = "/".join(words[2:4])
            if words[4] == "preupload":
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del hub.repos[name][line["value"]["path"]]
            url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})

    return Handler


@contextmanager
def serving(monkeypatch, tmp_path):
    """The fake Hub, which the real client talks to meanwhile; its cache lies in ``tmp_path``."""
    import huggingface_hub.constants as constants

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
