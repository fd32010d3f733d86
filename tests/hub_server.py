"""A model hub on the loopback interface that speaks what huggingface_hub and datasets ask, and fails on demand.

Small files are served by the hub itself after a relative redirect; .parquet, .safetensors and .bin files stand for
large ones and are served by another origin (`localhost`), with the sha256 as their ETag.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".parquet", ".safetensors", ".bin")
CHUNK = 64 * 1024  # bytes of a chunk of chunked storage
PAGE = 4  # entries of a listing per answer, so that every real listing has several
KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Fault:
    """Answer `times` requests (None: all) whose "METHOD path" `pattern` finds with `status`, or do what `act` names."""

    pattern: str
    status: int = 200
    # cut: close in the middle | reset: the same by RST | stall: wait there | hang | page: HTML of something else; or a
    # call
    # to make before the answer
    act: str | Callable[[], object] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = None


class Hub:
    """The repositories, what was asked, and what shall fail. `start` and `stop` may alternate: the port stays."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.chunked = False  # large files lie in chunked (Xet) storage, as on the hub since 2025
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def commit(self, kind: str, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make `files` the content of `branch`; returns the commit."""
        entry = self.repos.setdefault((kind, repo), Repo())
        digest = hashlib.sha1(repr(entry.branches.get(branch)).encode())
        for path in sorted(files):
            digest.update(f"{path} {hashlib.sha1(files[path]).hexdigest()}\n".encode())
        entry.commits[digest.hexdigest()] = dict(files)
        entry.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def tag(self, kind: str, repo: str, name: str, commit: str) -> None:
        self.repos[kind, repo].tags[name] = commit

    def fail(self, pattern: str, status: int = 200, code: str | None = None, **options) -> None:
        """Add a `Fault`; `code` is its X-Error-Code."""
        headers = {**options.pop("headers", {}), **({"X-Error-Code": code} if code else {})}
        self.faults.append(Fault(pattern, status, headers=headers, **options))

    def clear(self) -> None:
        self.repos.clear()
        self.requests.clear()
        self.faults.clear()
        self.chunked = False

    def content(self, sha256: str) -> bytes | None:
        files = [files for repo in self.repos.values() for files in repo.commits.values()]
        return next((c for many in files for c in many.values() if hashlib.sha256(c).hexdigest() == sha256), None)

    def asked(self, pattern: str) -> int:
        """How many requests "METHOD path" `pattern` found."""
        return sum(bool(re.search(pattern, f"{request.method} {request.path}")) for request in self.requests)

    def take(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, line):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def start(self) -> "Hub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        ThreadingHTTPServer.allow_reuse_address = True
        self.stopping.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on, and end those that are open."""
        self.stopping.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                self._open.discard(connection)

    @contextmanager
    def down(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub._open.add(self.connection)

    def finish(self) -> None:
        self.hub._open.discard(self.connection)
        super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        self.hub.requests.append(
            Request(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        self.fault = self.hub.take(f"{self.command} {self.path}")
        if self.fault and self.fault.act == "hang":
            self.hub.stopping.wait(60)
            self.close_connection = True
        elif self.fault and self.fault.act == "page":
            self._send(200, b"<html><body>Sign in to this network</body></html>", {"Content-Type": "text/html"})
        elif self.fault and self.fault.status != 200:
            self._refuse(self.fault.status, self.fault.headers.get("X-Error-Code"), headers=self.fault.headers)
        else:
            if self.fault and callable(self.fault.act):
                self.fault.act()
            self._route(body)

    def _route(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        path, query = parts.path, parse_qs(parts.query)
        if match := re.fullmatch(r"/lfs/(\w+)/(\w+)/(.+?)/-/(\w+)/(.+)", path):
            kind, _, repo, sha, name = match.groups()
            return self._file(self.hub.repos[kind, repo].commits[sha][unquote(name)])
        if match := re.fullmatch(r"/cas/v1/(reconstructions|xorbs)/(\w+)", path):
            return self._chunks(*match.groups())
        if match := re.fullmatch(r"/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/(\w+)/(.+)", path):
            plural, repo, sha, name = match.groups()
            return self._resolve(KINDS[plural], repo, sha, unquote(name), cached=True)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            dataset, repo, revision, name = match.groups()
            return self._resolve("dataset" if dataset else "model", repo, unquote(revision), unquote(name))
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/(.+))?)?", path):
            plural, repo, what, rest = match.groups()
            return self._api(KINDS[plural], repo, what, rest, query, body)
        return self._refuse(404, None)

    def _api(self, kind: str, name: str, what: str | None, rest: str | None, query: dict, body: bytes) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if what == "refs":
            return self._json(
                {"branches": _refs(repo.branches, "heads"), "tags": _refs(repo.tags, "tags"), "converts": []}
            )
        if what == "xet-read-token" and repo.gated:
            return self._gated(kind, name)
        revision, _, folder = (rest or "main").partition("/")
        sha = repo.resolve(unquote(revision))
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[sha]
        if what in (None, "revision"):
            return self._json(
                {
                    "_id": sha[:24],
                    "id": name,
                    "sha": sha,
                    "private": False,
                    "gated": "manual" if repo.gated else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "lastModified": "2024-01-01T00:00:00.000Z",
                    "createdAt": "2024-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }
            )
        if what == "tree":
            entries = _entries(
                files, unquote(folder), query.get("recursive", ["False"])[0].lower() == "true", self.hub.chunked
            )
            if folder and not entries:
                return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            start = int(query.get("cursor", ["0"])[0])
            more = {}
            if start + PAGE < len(entries):
                rest = (
                    f"{self.path.split('?')[0]}?recursive={query.get('recursive', ['False'])[0]}&cursor={start + PAGE}"
                )
                more = {"Link": f'<{self.hub.url}{rest}>; rel="next"'}
            return self._json(entries[start : start + PAGE], more)
        if what == "xet-read-token":
            told = {
                "Cas-Url": f"{self.hub.url}/cas",
                "Access-Token": "key",
                "Token-Expiration": str(int(time.time()) + 3600),
            }
            return self._json({}, {f"X-Xet-{key}": value for key, value in told.items()})
        if what == "paths-info":
            asked = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
            known = [entry for entry in _entries(files, "", True, self.hub.chunked) if entry["path"] in asked]
            return self._json(known)
        return self._refuse(404, None)

    def _resolve(self, kind: str, name: str, revision: str, path: str, cached: bool = False) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if repo.gated:
            return self._gated(kind, name)
        sha = repo.resolve(revision)
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        about = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path not in repo.commits[sha]:
            return self._refuse(404, "EntryNotFound", "Entry not found", about)
        content = repo.commits[sha][path]
        if path.endswith(LARGE):
            place = f"http://localhost:{self.hub.port}/lfs/{kind}/x/{name}/-/{sha}/{quote(path)}"
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if self.hub.chunked:
                route = f"{self.hub.url}/api/{kind}s/{name}/xet-read-token/{sha}"
                linked |= {"X-Xet-Hash": hashlib.sha256(content).hexdigest(), "Link": f'<{route}>; rel="xet-auth"'}
            return self._send(302, b"Found. Redirecting", {**about, **linked, "Location": place})
        etag = {"ETag": f'"{_blob(content)}"'}
        if not cached:
            place = f"/api/resolve-cache/{kind}s/{name}/{sha}/{quote(path)}"
            return self._send(307, b"Temporary Redirect", {**about, **etag, "Location": place})
        return self._file(content, {**about, **etag})

    def _gated(self, kind: str, name: str) -> None:
        status = 403 if self.headers.get("Authorization") else 401
        self._refuse(status, "GatedRepo", f"Access to {kind} {name} is restricted.")

    def _chunks(self, what: str, sha256: str) -> None:
        """A file as chunks, one after another: where they lie, or they themselves."""
        content = self.hub.content(sha256)
        if content is None:
            return self._refuse(404, None)
        parts = [content[i : i + CHUNK] for i in range(0, len(content), CHUNK)]
        sizes = [len(part).to_bytes(3, "little") for part in parts]
        stored = b"".join(b"\0" + size + b"\0" + size + part for size, part in zip(sizes, parts, strict=True))
        if what == "xorbs":
            return self._file(stored)
        chunks = {"start": 0, "end": len(parts)}
        place = {
            "range": chunks,
            "url": f"{self.hub.url}/cas/v1/xorbs/{sha256}",
            "url_range": {"start": 0, "end": len(stored) - 1},
        }
        return self._json(
            {
                "offset_into_first_range": 0,
                "fetch_info": {sha256: [place]},
                "terms": [{"hash": sha256, "unpacked_length": len(content), "range": chunks}],
            }
        )

    def _file(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers, status, whole = {"Accept-Ranges": "bytes", **(headers or {})}, 200, len(content)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), int(match[2] or whole - 1)
            if first >= whole:
                return self._send(416, b"", {"Content-Range": f"bytes */{whole}"})
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{whole}"
        return self._send(status, content, headers)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str | None, message: str = "no", headers: dict | None = None) -> None:
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **told})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.act in ("cut", "reset", "stall"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if self.fault.act == "stall":
                self.hub.stopping.wait(60)
            if self.fault.act == "reset":  # what was sent must arrive first
                time.sleep(0.05)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(content)


def _blob(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _refs(refs: dict[str, str], kind: str) -> list[dict]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]


def _entries(files: dict[str, bytes], folder: str, recursive: bool, chunked: bool) -> list[dict]:
    """What the listing of a folder says: its files, and the folders in between."""
    found: dict[str, dict] = {}
    for path, content in sorted(files.items()):
        if folder and not path.startswith(f"{folder}/"):
            continue
        steps = path.removeprefix(f"{folder}/" if folder else "").split("/")
        for depth in range(1, len(steps)):
            inner = "/".join([folder] * bool(folder) + steps[:depth])
            found[inner] = {"type": "directory", "oid": _blob(inner.encode()), "size": 0, "path": inner}
            if not recursive:
                break
        if len(steps) > 1 and not recursive:
            continue
        found[path] = {"type": "file", "oid": _blob(content), "size": len(content), "path": path}
        if path.endswith(LARGE):
            found[path]["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            if chunked:
                found[path]["xetHash"] = hashlib.sha256(content).hexdigest()
    return list(found.values())
