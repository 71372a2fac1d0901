"""A server on this machine that speaks the Hub's HTTP paths, for huggingface_hub."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".model", ".msgpack")  # in Git LFS, which another host serves
API = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Request(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    range: str | None
    token: str | None


class Refusal(NamedTuple):
    """An answer in place of a repository's content."""

    status: int
    error_code: str = ""


@dataclass
class Repository:
    """A repository.

    Attributes:
        files: contents by name.
        revisions: commits by branch or tag.
        refusal: the answer to requests without the token.
        file_refusal: the same for files only; of a gated model, everybody may see the list.
        gives_hashes: whether the list of files has sizes and hashes.
        xet: whether the large files claim to be in Xet storage.
        cuts: by file name, how many bytes the next answers hold before the connection breaks.
        damage: files whose first byte arrives changed.
        listing: the answer in place of the list of files.
    """

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    refusal: Refusal | None = None
    file_refusal: Refusal | None = None
    gives_hashes: bool = True
    xet: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)
    damage: set[str] = field(default_factory=set)
    listing: bytes | None = None

    @classmethod
    def of(cls, folder: Path) -> "Repository":
        """Serve the files of a folder."""
        return cls({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})


class HubServer(ThreadingHTTPServer):
    """Repositories by name, and the requests so far."""

    daemon_threads = True
    token = "hf_secret"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """Return the names of the files whose content was sent, in their order."""
        return [r.path.rpartition("/")[2] for r in self.requests if r.method == "GET" and FILE.fullmatch(r.path)]


class Handler(BaseHTTPRequestHandler):
    """Answers as huggingface.co does."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent apart, and the second would wait 40 ms
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path  # a revision's slashes are quoted
        token = self.headers.get("Authorization")
        self.server.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        if match := API.fullmatch(path):
            self.answer_list(*map(unquote, match.groups()))
        elif match := FILE.fullmatch(path):
            self.answer_file(*map(unquote, match.groups()))
        elif path.startswith("/storage/"):
            name, _, file_name = path.removeprefix("/storage/").rpartition("/")
            self.send_file(self.server.repositories[name], file_name)
        else:
            self.send(404)

    def repository(self, name: str, revision: str, is_file: bool = False) -> Repository | None:
        """Find a repository and check the token and the revision; where it answers with an error, return None."""
        found = self.server.repositories.get(name)
        refusal = found and ((found.file_refusal if is_file else None) or found.refusal)
        may_read = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if found is None:
            self.send(404, {"X-Error-Code": "RepoNotFound"})
        elif isinstance(refusal, Refusal) and not may_read:
            self.send(refusal.status, {"X-Error-Code": refusal.error_code})
        elif revision not in {*found.revisions, *found.revisions.values()}:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def answer_list(self, name: str, revision: str) -> None:
        if found := self.repository(name, revision):
            siblings = [self.sibling(found, file_name) for file_name in found.files]
            info = {"id": name, "sha": found.revisions.get(revision, revision), "siblings": siblings}
            self.send(200, {"Content-Type": "application/json"}, found.listing or json.dumps(info).encode())

    def sibling(self, found: Repository, file_name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": file_name}
        if found.gives_hashes:
            content = found.files[file_name]
            entry |= {"size": len(content), "blobId": git_hash(content)}
            if file_name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
        return entry

    def answer_file(self, name: str, revision: str, file_name: str) -> None:
        if not (found := self.repository(name, revision, is_file=True)):
            return
        commit = {"X-Repo-Commit": found.revisions.get(revision, revision)}
        if file_name not in found.files:
            self.send(404, commit | {"X-Error-Code": "EntryNotFound"})
        elif file_name.endswith(LARGE):
            content = found.files[file_name]
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            if found.xet:
                linked |= {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{self.server.url}/xet-read-token"}
            storage = f"http://localhost:{self.server.server_port}/storage/{name}/{file_name}"
            self.send(302, commit | linked | {"Location": storage})
        else:
            self.send_file(found, file_name, commit | {"ETag": f'"{git_hash(found.files[file_name])}"'})

    def send_file(self, found: Repository, file_name: str, headers: dict[str, str] | None = None) -> None:
        content, start = found.files[file_name], 0
        if file_name in found.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
        headers = (headers or {}) | {"Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = found.cuts.get(file_name, []) if self.command == "GET" else []
        cut = cuts.pop(0) if cuts else None
        if cut == 0:
            self.send(500)
        else:
            self.send(206 if start else 200, headers, content[start:], cut)

    def send(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", cut: int | None = None
    ) -> None:
        """Send an answer; with `cut`, close the connection after that many bytes of its body."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def git_hash(content: bytes) -> str:
    """Return the name of a blob in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[HubServer]:
    """Run a server until the block ends."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
