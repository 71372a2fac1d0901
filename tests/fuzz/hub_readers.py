"""Names of the Hub: damage to the cache of downloaded files, and servers that answer nonsense."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from fuzz.mutations import SPECIAL, Damage, damage_bytes, damaged_json
from fuzz.oracle import Wrong
from fuzz.readers import Reader, make_checkpoint, model
from hub_server import COMMIT, FILE, Handler, HubServer, Repository, serving

from pegasusx_ref import PegasusTokenizer, PegasusXForConditionalGeneration

NAME = "owner/tiny-model"
STORAGE = "models--owner--tiny-model"
SECRET = "secret"  # beside the cache: nothing may read it
SHARDS = ("part-0", "part-1")


def make_files(folder: Path) -> None:
    """Write a checkpoint that is sharded, and a folder beside it that holds another one."""
    folder.mkdir()
    make_checkpoint(folder / "files")
    make_checkpoint(folder / SECRET)


def make_cache(folder: Path) -> None:
    """Write a cache as huggingface_hub does: blobs, and links to them by name."""
    make_files(folder)
    storage = folder / "cache" / STORAGE
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    (storage / "blobs").mkdir()
    snapshot = storage / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted((folder / "files").iterdir())):
        shutil.copy(path, storage / "blobs" / f"{i:040}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:040}")


# --- the cache -------------------------------------------------------------------------------------------------------

REFS = (
    f"../../../{SECRET}",
    f"../snapshots/{COMMIT}",
    "..",
    ".",
    "",
    "/etc",
    "/",
    "\0",
    "x" * 5000,
    f"{COMMIT}\n",
    COMMIT.upper(),
    "f" * 40,
    "\x1b[31m",
    "é",
    f"{COMMIT}/../../../../{SECRET}",
    f"{COMMIT}/.",
    "main",
    "../refs",
    "\udcff",
    "~",
    "a/b/c",
)


def reference(put: Callable[[Path], Any]) -> Damage:
    """Change refs/main of a cache."""

    def damage(rng: Random, path: Path) -> None:
        (ref := path / STORAGE / "refs" / "main").unlink()
        put(ref)

    return damage


def written(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(text.encode("utf-8", "surrogateescape"))


def damage_files(rng: Random, path: Path) -> None:
    """Replace files, links and folders of a cache by others."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        entries = sorted(
            entry for entry in path.rglob("*") if entry.is_symlink() or not entry.is_dir() or rng.random() < 0.3
        )
        if not entries:
            return
        entry, kind = rng.choice(entries), rng.randrange(6)
        if not os.path.lexists(entry.parent) or not entry.parent.is_dir():
            continue
        if kind == 0 and entry.is_file() and not entry.is_symlink() and entry.stat().st_size < 2**20:
            damage_bytes(rng, entry)
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        if kind in (1, 2):
            SPECIAL[rng.choice(list(SPECIAL))](entry)
        elif kind == 3:
            targets = (
                "../" * 4 + f"{SECRET}/{entry.name}",
                "../../refs",
                "../../blobs",
                "/",
                "..",
                entry.name,
                "../../blobs/x",
                f"../../blobs/{rng.randrange(6):040}",
            )
            entry.symlink_to(rng.choice(targets))
        elif kind == 4:
            entry.write_bytes(rng.choice((b"", b"{}", b"x", COMMIT.encode())))


CACHE: dict[str, Damage] = {
    "files": damage_files,
    **{f"reference {text[:60]!a}".replace("/", "|"): reference(written(text)) for text in REFS},
    **{f"reference: {name}": reference(put) for name, put in SPECIAL.items()},
}


@contextmanager
def hub(place: Path, url: str | None) -> Iterator[None]:
    """Use a cache and a server in place of the user's, nobody logged in; no server for None."""
    from huggingface_hub import constants

    settings: dict[str, Any] = {
        "HF_HUB_OFFLINE": url is None,
        "HF_HUB_CACHE": str(place / "cache"),
        "HF_TOKEN_PATH": str(place / "cache" / "no-token"),
        "ENDPOINT": url or "http://127.0.0.1:9",
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "DOWNLOAD_CHUNK_SIZE": 1000,
    }
    variables = {
        name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    }
    variables["NO_PROXY"] = "127.0.0.1,localhost"
    with (
        patch.multiple(constants, **settings),
        patch.dict(os.environ, variables, clear=True),
        patch("huggingface_hub.file_download.time.sleep", lambda seconds: None),
    ):
        yield


def read_cached(place: Path) -> PegasusXForConditionalGeneration:
    with hub(place, None):
        found = PegasusXForConditionalGeneration.from_pretrained(NAME)
        PegasusTokenizer.from_pretrained(NAME)
        return found


def use_downloaded(place: Path, found: PegasusXForConditionalGeneration, is_exact: bool = False) -> None:
    """Compare with the model that was put there, unless a file of it was damaged."""
    for name, tensor in found.state_dict().items():
        if is_exact and not np.array_equal(tensor, model().state_dict()[name]):
            raise Wrong(f"tensor {name}")


# --- servers ---------------------------------------------------------------------------------------------------------


class Nonsense(Handler):
    """Answers as `answers` of its server says."""

    def do_GET(self) -> None:
        rules: dict[str, Any] = self.server.answers  # type: ignore[attr-defined]
        match = FILE.fullmatch(self.path)
        rule = rules.get("file" if match or self.path.startswith("/storage/") else "list")
        if rule is None or rng_of(self.server).random() < rules.get("chance", 0):
            super().do_GET()
            return
        if rule == "redirects":
            self.send(302, {"Location": f"{self.server.url}{self.path}"})
        elif rule == "redirect outside":
            self.send(302, {"Location": rules["location"]})
        elif rule == "close":
            self.close_connection = True
        elif rule == "raw":
            self.wfile.write(base64.b64decode(rules["raw"]))
            self.close_connection = True
        else:
            self.send_response(rules["status"])
            for name, value in rules["headers"]:
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(base64.b64decode(rules["body"]))
            self.close_connection = True


def rng_of(server: Any) -> Random:
    found: Random = server.rng
    return found


INFO: dict[str, Any] = {
    "id": NAME,
    "sha": COMMIT,
    "siblings": [],
    "private": False,
    "gated": False,
    "tags": ["a"],
    "config": {},
}
FILE_NAMES = (
    "../evil",
    "/etc/evil",
    "..",
    "",
    "a/../../evil",
    "\0",
    "x" * 5000,
    "\x1b[31m",
    "\ud800",
    "config.json/x",
    "config.json",
    1,
    None,
    ["a"],
    f"../../../{SECRET}/config.json",
    "C:\\x",
    "model.safetensors.index.json",
    "~",
    "CONFIG.JSON",
)
HASHES = ("../../../../evil", "0" * 40, "0" * 64, "x", "", None, 1, "f" * 5000, "/etc/passwd", "A" * 40)
SIZES = (0, -1, 1, 2**31, 2**63, 2**70, 10**400, "1", 1.5, None, True, [1])
STATUSES = (
    100,
    101,
    200,
    201,
    204,
    206,
    300,
    301,
    304,
    307,
    308,
    400,
    401,
    403,
    404,
    410,
    416,
    418,
    429,
    500,
    502,
    503,
    504,
    999,
)
LOCATIONS = (
    "file:///etc/passwd",
    "/",
    "//",
    "ftp://127.0.0.1/x",
    "http://127.0.0.1:1/x",
    "\x7f",
    "http://[",
    "x" * 5000,
    "",
    "gopher://x",
    "http://localhost:99999/x",
    "data:text/plain,x",
    "https://127.0.0.1:1/x",
    "http://user:pass@127.0.0.1:1/",
)
HEADERS = (
    *(("Content-Length", size) for size in ("0", "-1", "1", "99999999999999", "x", "1e3", "")),
    ("Transfer-Encoding", "chunked"),
    *(
        ("ETag", tag)
        for tag in ('"../../../evil"', '""', "", '"' + "x" * 3000 + '"', '"/etc/passwd"', 'W/"x"', '"' + "0" * 64 + '"')
    ),
    *(("X-Linked-Etag", tag) for tag in ('"../../evil"', '"0"', "")),
    *(("X-Linked-Size", size) for size in ("-1", "x", "99999999999")),
    *(("X-Repo-Commit", commit) for commit in ("../../../evil", "", "main", "x" * 3000, "/etc", "f" * 40)),
    *(("X-Error-Code", code) for code in ("RepoNotFound", "GatedRepo", "EntryNotFound", "RevisionNotFound", "x", "")),
    *(("Content-Range", value) for value in ("bytes 0-0/1", "bytes 5-9/3", "x", "bytes */0")),
    ("Content-Encoding", "gzip"),
    *(("Location", location) for location in LOCATIONS if location.isprintable()),
    ("Retry-After", "0"),
    ("Retry-After", "x"),
    ("X-Xet-Hash", "0" * 64),
    ("X-Xet-Refresh-Route", "/x"),
    ("Link", '<x>; rel="xet-auth"'),
    ("X-Error-Message", "x" * 3000),
    ("Content-Type", "text/html"),
    ("X-Request-Id", "\x1b[31m"),
    ("X-Error-Message", "a \x1b[31m b"),
)
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"x",
    b"<html>",
    b"\xff" * 100,
    b"[" * 100_000,
    b'{"sha": 1}',
    b"0\r\n\r\n",
    b"ffffffff\r\nx",
    b"1" * 5000,
)
RAW = (
    b"",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\0" * 1000,
    b"HTTP/9.9 200\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"x" * 100_000,
    b"HTTP/1.1 200 OK\r\n" + b"A" * 200_000,
    b"HTTP/1.1 \xff\r\n\r\n",
    b"HTTP/1.1 200 OK\nA\n\n",
    b"SSH-2.0-x\r\n",
)


def damage_answers(rng: Random, path: Path) -> None:
    """Let the server answer something else to requests for the list or for files."""
    place = rng.choice(("list", "file", "file"))
    rule = rng.choice(("redirects", "redirect outside", "close", "raw", "answer", "answer", "answer", "answer"))
    rules: dict[str, Any] = {place: rule, "chance": rng.choice((0, 0, 0.5)), "location": rng.choice(LOCATIONS)}
    rules |= {"raw": base64.b64encode(rng.choice(RAW)).decode(), "body": base64.b64encode(rng.choice(BODIES)).decode()}
    status = 200 if rng.random() < 0.4 else rng.choice(STATUSES)
    rules |= {"status": status, "headers": rng.sample(HEADERS, rng.randrange(6)), "seed": rng.randrange(2**32)}
    path.write_text(json.dumps(rules))


def damage_listing(rng: Random, path: Path) -> None:
    """Damage the list of files: names, sizes, hashes, the commit, or any entry."""
    names = sorted(file.name for file in (path.parent / "files").iterdir())
    siblings: list[Any] = [{"rfilename": name, "size": 10, "blobId": "0" * 40} for name in names]
    for entry in siblings:
        file = path.parent / "files" / entry["rfilename"]
        entry |= sibling(file) if rng.random() < 0.8 else {}
    info = INFO | {"siblings": siblings}
    for _ in range(rng.choice((0, 1, 2))):
        entry, kind = rng.choice(siblings), rng.randrange(6)
        if kind == 0:
            entry["rfilename"] = rng.choice(FILE_NAMES)
        elif kind == 1:
            entry["size"] = rng.choice(SIZES)
        elif kind == 2:
            entry["blobId"] = rng.choice(HASHES)
        elif kind == 3:
            entry["lfs"] = rng.choice(
                ({"size": rng.choice(SIZES), "sha256": rng.choice(HASHES), "pointerSize": 1}, {}, [], 1, "x", None)
            )
        elif kind == 4:
            info["sha"] = rng.choice(
                (*HASHES, "../../../evil", COMMIT.upper(), f"{COMMIT}\n", f"{COMMIT}/..", [COMMIT])
            )
        else:
            siblings.append({"rfilename": rng.choice(FILE_NAMES), "size": 1, "blobId": rng.choice(HASHES)})
    text = damaged_json(rng, info) if rng.random() < 0.5 else json.dumps(info)
    path.write_text(json.dumps({"listing": text}))


def sibling(file: Path) -> dict[str, Any]:
    from hub_server import git_hash

    return {"size": file.stat().st_size, "blobId": git_hash(file.read_bytes())}


def damage_shards(rng: Random, path: Path) -> None:
    """Serve an index in place of the weights, with names of files that are elsewhere."""
    folder = path.parent / "files"
    weights = folder / "model.safetensors"
    names = [rng.choice((*(n for n in FILE_NAMES if n), "part-0")) for _ in range(3)]
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights.rename(folder / "part-0")
    (folder / ".gitattributes").write_text("x")


SERVER: dict[str, Damage] = {
    "answers": damage_answers,
    "listing": damage_listing,
    "shards": damage_shards,
    "none": lambda rng, path: None,
}


class Server(HubServer):
    """A server of nonsense."""

    answers: dict[str, Any]
    rng: Random


def read_served(place: Path) -> PegasusXForConditionalGeneration:
    rules = json.loads((place / "answers.json").read_text())
    (place / "cache").mkdir()
    repository = Repository.of(place / "files")
    if "listing" in rules:
        repository.listing = rules["listing"].encode("utf-8", "surrogatepass")
    with serving() as server, hub(place, server.url):
        server.RequestHandlerClass = Nonsense
        server.answers, server.rng = rules, Random(rules.get("seed", 0))  # type: ignore[attr-defined]
        server.repositories[NAME] = repository
        before = listed(place)
        try:
            found = PegasusXForConditionalGeneration.from_pretrained(NAME)
            PegasusTokenizer.from_pretrained(NAME)
            return found
        finally:
            if written := listed(place) ^ before:
                raise Wrong(f"written outside the cache: {sorted(written)}")


def listed(place: Path) -> set[Path]:
    """List all files but those of the cache."""
    return {path for path in place.rglob("*") if place / "cache" not in (path, *path.parents)}


def make_served(folder: Path) -> None:
    make_files(folder)
    (folder / "answers.json").write_text("{}")


READERS: dict[str, Reader] = {
    "hub cache": Reader(make_cache, read_cached, use_downloaded, {"cache": CACHE}, 1.0, "cache", NAME),
    "hub server": Reader(
        make_served, read_served, partial(use_downloaded, is_exact=True), {"answers.json": SERVER}, 0.7, "", NAME
    ),
}
