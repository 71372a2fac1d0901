"""Names of the Hub, against a server on this machine: what is asked for, what breaks, and what the messages say."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pegasusx_ref import (
    DEMO_CHECKPOINT,
    CheckpointError,
    InputError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
    pipeline,
)
from pegasusx_ref.checkpoint.hub import Kind, download, is_hub_name, transfer
from pegasusx_ref.cli import main
from pegasusx_ref.errors import ExtraError

# Older versions copy the endpoint when they are imported, so that these tests would ask huggingface.co.
pytest.importorskip("huggingface_hub", "1.0", "huggingface_hub >= 1.0 is not installed: pip install -e '.[hub]'")
from hub_server import COMMIT, HubServer, Refusal, Repository, git_hash, serving
from huggingface_hub import constants

NAME = "owner/tiny-model"
OTHER_COMMIT = "f" * 40
# What no command reads.
UNREAD = ("README.md", ".gitattributes", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "training_args.bin")
INDEX = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server in place of huggingface.co, an empty cache, nobody logged in, and an empty folder to work in."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving() as server:
        use_endpoint(monkeypatch, server.url)
        yield server


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an endpoint that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    use_endpoint(monkeypatch, f"http://127.0.0.1:{port}")


def repository(*names: str) -> Repository:
    """A repository of these files; their content differs, and an index names two shards."""
    contents = {name: f"content of {name}\n".encode() * 200 for name in names}
    return Repository(contents | {n: json.dumps(INDEX).encode() for n in names if n.endswith("index.json")})


def cached() -> set[str]:
    """Return the names of the files that are downloaded."""
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}" / "snapshots"
    return {path.name for path in snapshots.rglob("*") if path.is_file()}


def blobs() -> list[Path]:
    return sorted((Path(constants.HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}" / "blobs").glob("*"))


def failure(kind: Kind = "model", name: str = NAME, **options: Any) -> str:
    """Return the one line that a download fails with, without the name."""
    with pytest.raises(CheckpointError) as caught:
        download(name, kind, options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    return text.removeprefix(f"{name}: ")


SETTINGS = ("config.json", "generation_config.json")
SHARDS = ("part-1.safetensors", "part-2.safetensors")
TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
FILE_SETS: dict[str, tuple[Kind, tuple[str, ...], tuple[str, ...]]] = {
    # name: (kind, files that are read, others beside UNREAD)
    "safetensors": ("model", (*SETTINGS, "model.safetensors"), ("pytorch_model.bin", *TOKENIZER)),
    "bin": ("model", (*SETTINGS, "pytorch_model.bin"), TOKENIZER),
    "safetensors in shards": (
        "model",
        (*SETTINGS, "model.safetensors.index.json", *SHARDS),
        ("pytorch_model.bin", "part-3.safetensors"),
    ),
    "bin in shards": ("model", (*SETTINGS, "pytorch_model.bin.index.json", *SHARDS), ()),
    "whole and in shards": (
        "model",
        (*SETTINGS, "model.safetensors"),
        ("model.safetensors.index.json", *SHARDS),
    ),
    "no generation_config": ("model", ("config.json", "model.safetensors"), ()),
    "adapter": ("model", ("adapter_config.json", "adapter_model.safetensors"), ("adapter_model.bin", *TOKENIZER)),
    "adapter bin": ("model", ("adapter_config.json", "adapter_model.bin"), ()),
    "configuration": ("config", SETTINGS, ("model.safetensors", *TOKENIZER)),
    "adapter's configuration": ("config", ("adapter_config.json",), ("adapter_model.safetensors",)),
    "tokenizer": ("tokenizer", TOKENIZER, (*SETTINGS, "model.safetensors", "tokenizer.json")),
    "tokenizer.json alone": ("tokenizer", ("tokenizer_config.json", "tokenizer.json"), ("model.safetensors",)),
    "spiece.model alone": ("tokenizer", ("spiece.model",), ("model.safetensors",)),
    "adapter's tokenizer": ("tokenizer", ("adapter_config.json",), ("adapter_model.bin",)),
}


@pytest.mark.parametrize(("kind", "read", "others"), FILE_SETS.values(), ids=FILE_SETS)
def test_only_files_that_are_read_are_downloaded_each_once(
    kind: Kind, read: tuple[str, ...], others: tuple[str, ...], hub: HubServer
) -> None:
    hub.repositories[NAME] = found = repository(*read, *others, *UNREAD)
    folder = download(NAME, kind, {})
    assert sorted(hub.downloads()) == sorted(read)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: found.files[name] for name in read}
    hub.requests.clear()
    assert download(NAME, kind, {}) == folder
    assert [request.path for request in hub.requests] == [f"/api/models/{NAME}/revision/main"]


def test_everything_that_takes_a_folder_takes_a_name(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories[NAME] = Repository.of(DEMO_CHECKPOINT)
    options: Any = {"cache_dir": tmp_path / "elsewhere", "revision": "main"}
    assert PegasusXConfig.from_pretrained(NAME, **options) == PegasusXConfig.from_pretrained(DEMO_CHECKPOINT)
    assert hub.downloads() == [*SETTINGS]
    ours = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    assert PegasusTokenizer.from_pretrained(NAME, **options).get_vocab() == ours.get_vocab()
    for kind in (PegasusXModel, PegasusXForConditionalGeneration):
        assert kind.from_pretrained(Path(NAME), **options).config.d_model
    text = "A small library that reads and writes files."
    expected = pipeline("summarization", DEMO_CHECKPOINT)(text)
    hub.repositories["owner/tokenizer"] = Repository.of(DEMO_CHECKPOINT)
    assert pipeline("summarization", NAME, **options)(text) == expected
    assert pipeline("summarization", NAME, tokenizer="owner/tokenizer", **options)(text) == expected
    assert not Path(constants.HF_HUB_CACHE).exists()
    assert sorted(hub.downloads()) == sorted(
        ["config.json", "generation_config.json", "model.safetensors", "spiece.model", "spiece.model"]
    )


def test_local_folder_of_that_name_wins(hub: HubServer) -> None:
    PegasusXConfig.preset("tiny").save_pretrained(NAME)
    assert PegasusXConfig.from_pretrained(NAME).d_model == PegasusXConfig.preset("tiny").d_model
    assert not hub.requests


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "./owner/name", "../owner/name", "/owner/name", "a/b/c", "owner/", "/name", "~/name", "a b/c"),
        *(".owner/name", "owner/.name", "owner/name.", "a--b/c", "a/b..c", "a/b.git", "a/b\n", "é/b", "a/b:c"),
        *("https://hub/a", "a" * 97 + "/b", "-a/b", "a/"),
    ],
)
def test_name_that_cannot_be_of_the_hub_is_a_folder_that_does_not_exist(name: str, hub: HubServer) -> None:
    assert not is_hub_name(name)
    with pytest.raises(CheckpointError, match="the folder does not exist, and it is no owner/name of the Hugging Face"):
        PegasusXConfig.from_pretrained(name)
    assert not hub.requests


def test_file_of_that_name_is_not_looked_up(hub: HubServer) -> None:
    Path("owner").mkdir()
    Path(NAME).write_text("weights")
    with pytest.raises(CheckpointError, match="is a file: pass the folder that contains it"):
        PegasusXConfig.from_pretrained(NAME)
    assert not hub.requests


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExtraError, match=r"there is no such folder.*pip install 'pegasusx-ref\[hub\]'"):
        PegasusXConfig.from_pretrained(NAME)


# Names, revisions, access


def test_unknown_name_may_be_a_mistyped_folder(hub: HubServer) -> None:
    message = failure()
    assert message.startswith(f"neither a folder here nor a public model at {hub.url}: check the spelling")
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("refused", ["refusal", "file_refusal"])
def test_gated_model_says_where_its_terms_are(hub: HubServer, status: int, refused: str) -> None:
    hub.repositories[NAME] = found = repository("config.json", "model.safetensors")
    setattr(found, refused, Refusal(status, "GatedRepo"))
    assert failure().startswith(f"a gated model: accept its terms at {hub.url}/{NAME}, then set HF_TOKEN, pass token=")


def test_token_opens_a_private_model_and_stays_with_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = found = repository("config.json", "model.safetensors")
    found.refusal = Refusal(401, "RepoNotFound")
    assert "if it is private, set HF_TOKEN" in failure()
    assert "if it is private, set HF_TOKEN" in failure(token="of somebody else")
    hub.requests.clear()
    download(NAME, "model", {"token": hub.token})
    sent = {request.token for request in hub.requests if not request.path.startswith("/storage/")}
    assert sent == {f"Bearer {hub.token}"}
    assert {request.token for request in hub.requests if request.path.startswith("/storage/")} == {None}
    monkeypatch.setenv("HF_TOKEN", hub.token)
    download(NAME, "config", {"cache_dir": "another"})
    assert "if it is private" in failure(token=False, cache_dir="a third")


def test_token_that_is_not_stored_is_said(hub: HubServer) -> None:
    assert failure(token=True) == "token=True, but no token is stored: set HF_TOKEN, pass token=, or run hf auth login"


def test_revision_is_a_branch_a_tag_or_a_commit(hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    found.revisions = {"main": COMMIT, "v1": OTHER_COMMIT, "refs/pr/1": OTHER_COMMIT}
    for revision, commit in ((None, COMMIT), ("v1", OTHER_COMMIT), ("refs/pr/1", OTHER_COMMIT), (COMMIT, COMMIT)):
        assert download(NAME, "config", {"revision": revision}).name == commit
        assert download(NAME, "config", {"revision": revision, "local_files_only": True}).name == commit
    assert failure(revision="v9") == f"it has no revision 'v9': choose one of {hub.url}/{NAME}/tree/main"


def test_branch_that_moves_is_followed(hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    download(NAME, "config", {})
    found.files["config.json"], found.revisions = b"new", {"main": OTHER_COMMIT, "old": COMMIT}
    assert (download(NAME, "config", {}) / "config.json").read_bytes() == b"new"
    assert (download(NAME, "config", {"local_files_only": True}) / "config.json").read_bytes() == b"new"
    assert (download(NAME, "config", {"revision": COMMIT}) / "config.json").read_bytes() != b"new"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": 1}, "revision=1 must be str or None"),
        ({"revision": "../../x"}, "revision='../../x' must be a branch, tag or commit"),
        ({"revision": "/etc"}, "revision='/etc' must be"),
        ({"revision": ""}, "revision='' must be"),
        ({"cache_dir": 1}, "cache_dir=1 must be str or PathLike or None"),
        ({"token": 1.0}, "token=1.0 must be str or bool or None"),
        ({"local_files_only": "yes"}, "local_files_only='yes' must be bool"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PegasusXConfig.from_pretrained(DEMO_CHECKPOINT, **options)
    assert str(caught.value).startswith(message)


def test_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'revison'"):
        PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT, revison="main")  # type: ignore[call-arg]


def test_repository_without_weights_says_what_it_has(hub: HubServer) -> None:
    hub.repositories[NAME] = repository("config.json", "flax_model.msgpack")
    assert failure() == (
        "this repository has no model.safetensors or model.safetensors.index.json or pytorch_model.bin or "
        "pytorch_model.bin.index.json or adapter_model.safetensors or adapter_model.bin; it has config.json, "
        "flax_model.msgpack"
    )
    assert failure("tokenizer").startswith("this repository has no spiece.model or tokenizer.json")
    assert not hub.downloads()


# Without network


def offline(monkeypatch: pytest.MonkeyPatch, way: str) -> dict[str, Any]:
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif way == "no network":
        unreachable(monkeypatch)
    return {"local_files_only": way == "local_files_only"}


@pytest.mark.parametrize("way", ["local_files_only", "HF_HUB_OFFLINE"])
def test_what_is_downloaded_needs_no_network(way: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = repository("config.json", "model.safetensors.index.json", *SHARDS, "spiece.model")
    options: Any = offline(monkeypatch, way)
    nothing = "it is not downloaded, and HF_HUB_OFFLINE or local_files_only forbids downloads"
    assert failure(**options) == f"{nothing}: allow them once"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = download(NAME, "model", {})
    hub.requests.clear()
    offline(monkeypatch, way)
    assert download(NAME, "model", options) == folder
    assert failure("tokenizer", **options) == (
        f"{nothing}, and the cache lacks spiece.model or tokenizer.json or adapter_config.json: allow them once"
    )
    (folder / SHARDS[1]).unlink()
    assert failure(**options) == f"{nothing}, and the cache lacks part-2.safetensors: allow them once"
    (folder / "model.safetensors.index.json").unlink()
    assert "the cache lacks model.safetensors or" in failure(**options)
    assert not hub.requests


def test_without_network_the_cache_is_used_and_said(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = repository("config.json")
    folder = download(NAME, "config", {})
    unreachable(monkeypatch)
    with pytest.warns(UserWarning, match="cannot be reached.*: its files in the cache are used") as caught:
        assert download(NAME, "config", {}) == folder
    assert len(caught) == 1
    message = failure("tokenizer")
    assert "cannot be reached" in message
    assert "the cache lacks spiece.model" in message
    assert message.endswith("check the network, then try again: complete files and parts of files are kept")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (Refusal(429), "answers 429, too many requests: wait some minutes; for a higher limit set HF_TOKEN"),
        (Refusal(503), "answers 503: try again later"),
        (Refusal(403), "answers 403, access denied: the token may have expired: set HF_TOKEN"),
    ],
)
def test_server_that_refuses_is_said_and_the_cache_is_used(refusal: Refusal, message: str, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    found.refusal = refusal
    assert failure().startswith(f"{hub.url} {message}")
    found.refusal = None
    download(NAME, "config", {})
    found.refusal = refusal
    with pytest.warns(UserWarning, match=f"answers {refusal.status}"):
        download(NAME, "config", {})


def test_cache_without_links_or_without_blobs_is_used_and_repaired(hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json", "spiece.model")
    folder = download(NAME, "config", {})
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(content)  # as on systems without symbolic links
    for blob in blobs():
        blob.unlink()
    hub.requests.clear()
    assert download(NAME, "config", {}) == folder
    assert not hub.downloads()
    download(NAME, "tokenizer", {})
    for blob in blobs():
        blob.unlink()
    assert "the cache lacks spiece.model" in failure("tokenizer", local_files_only=True)
    assert (download(NAME, "tokenizer", {}) / "spiece.model").read_bytes() == found.files["spiece.model"]


# Transfers that fail


@pytest.mark.parametrize("gives_hashes", [True, False])
def test_server_that_lists_files_but_does_not_give_them_is_said(gives_hashes: bool, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    found.gives_hashes, found.file_refusal = gives_hashes, Refusal(503)
    assert failure("config") == f"{hub.url} answers 503: try again later"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_download_that_breaks_off_is_resumed_at_the_next_call(name: str, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json", "model.safetensors")
    found.cuts[name] = [2500, 0]  # then an error, because newer versions of huggingface_hub try again by themselves
    message = failure()
    assert "broke off" in message or "answers 500" in message
    assert name not in cached()
    found.cuts.clear()
    hub.requests.clear()
    folder = download(NAME, "model", {})
    assert {r.range for r in hub.requests if r.method == "GET" and r.path.endswith(name)} == {"bytes=2000-"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == found.files
    assert not [path for path in blobs() if path.name.endswith(".incomplete")]


@pytest.mark.parametrize("rest", ["longer than the file", "as long as the file, but another", "of another file"])
def test_partial_file_of_something_else_does_no_harm(rest: str, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    content = found.files["config.json"]
    partial = Path(constants.HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}" / "blobs" / git_hash(content)
    partial = partial.with_name(partial.name + ".incomplete")
    partial.parent.mkdir(parents=True)
    lengths = {"longer than the file": len(content) + 1, "of another file": 10}
    partial.write_bytes(b"x" * lengths.get(rest, len(content)))
    if not rest.startswith("longer"):
        assert failure("config").startswith("config.json arrived damaged")
    assert (download(NAME, "config", {}) / "config.json").read_bytes() == content


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("xet", [False, True])
def test_file_with_another_hash_is_refused_and_removed(name: str, xet: bool, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json", "model.safetensors")
    found.xet = xet
    found.damage.add(name)
    message = failure()
    assert message.startswith(f"{name} arrived damaged (its hash is ")
    assert message.endswith(" and was removed: load the model again to download it again")
    assert name not in cached()
    assert not [path for path in blobs() if path.name.endswith(".incomplete")]
    found.damage.clear()
    assert (download(NAME, "model", {}) / name).read_bytes() == found.files[name]


@pytest.mark.parametrize("xet", [False, True])
def test_server_without_hashes_or_with_xet_works(xet: bool, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json", "model.safetensors")
    found.gives_hashes, found.xet = xet, xet
    folder = download(NAME, "model", {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == found.files
    assert not [request for request in hub.requests if "xet" in request.path]


def test_two_threads_download_each_file_once(hub: HubServer) -> None:
    hub.repositories[NAME] = repository("config.json", "model.safetensors")
    threads = [threading.Thread(target=download, args=(NAME, "model", {})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_disk_that_is_full_during_the_download_is_said(hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    storage = Path(constants.HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}"
    (storage / "blobs").mkdir(parents=True)
    (storage / "blobs" / f"{git_hash(found.files['config.json'])}.incomplete").symlink_to("/dev/full")
    assert failure("config") == (
        f"the disk of {constants.HF_HUB_CACHE} is full: make room, or set HF_HOME or cache_dir to another disk"
    )


def test_disk_with_too_little_room_is_said_before_the_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = repository("config.json")
    monkeypatch.setattr(transfer, "free_space", lambda folder: 100)
    assert "is full" in failure("config")
    assert not hub.downloads()


def test_cache_that_cannot_be_written_is_said(hub: HubServer) -> None:
    hub.repositories[NAME] = repository("config.json")
    Path("taken").write_text("a file")
    message = failure("config", cache_dir="taken")
    assert message.startswith("the cache cannot be written (taken/models--owner--tiny-model")
    assert message.endswith("set HF_HOME or cache_dir to a folder of yours")


def test_cache_that_can_only_be_read_is_used(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    folder = download(NAME, "config", {})
    found.revisions["v1"] = COMMIT

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(transfer, "write_text", refuse)
    assert download(NAME, "config", {"revision": "v1"}) == folder


# Servers that answer anything


VALUES: list[Any] = [None, True, 5, -1, 10**30, 1.5, float("nan"), "", "x", "../../outside", "f" * 40, [], {}]
HOSTILE: list[dict[str, Any]] = [
    *({name: value} for name in ("size", "blobId", "lfs", "rfilename") for value in VALUES),
    *({"lfs": {"sha256": digest, "size": 1, "pointerSize": 1}} for digest in (*VALUES, "f" * 64)),
    {"rfilename": "x" * 10**6},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=range(len(HOSTILE)))
def test_list_of_anything_ends_in_an_error_or_in_the_file(
    changes: dict[str, Any], hub: HubServer, tmp_path: Path
) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    content, folder = found.files["config.json"], None
    entry = {"rfilename": "config.json", "size": len(content), "blobId": git_hash(content)} | changes
    found.listing = json.dumps({"id": NAME, "sha": COMMIT, "siblings": [entry]}).encode()
    with suppress(CheckpointError):
        folder = download(NAME, "config", {})
    assert folder is None or (folder / "config.json").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} <= {"here", "cache"}
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("answer", [b"<html>Please log in</html>", b"[]", b"{", b"5", b'{"id": []}', b"[" * 10**5])
def test_answer_that_is_no_list_is_said(answer: bytes, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    found.listing = answer
    assert "cannot be reached or broke off (" in failure("config")


@pytest.mark.parametrize("commit", ["../../outside", "", "0" * 39])
def test_answer_without_a_commit_is_refused(commit: str, hub: HubServer) -> None:
    hub.repositories[NAME] = found = repository("config.json")
    found.revisions["main"] = commit
    assert "broke off (the answer has no commit)" in failure("config")
    assert not Path(constants.HF_HUB_CACHE).exists()


@pytest.mark.parametrize(
    "weight_map", [{"a": "../outside"}, {"a": "/etc/passwd"}, {"a": 1}, [], {"a": "not-there"}, {"a": ".."}, None]
)
def test_index_names_no_path_outside_the_folder(weight_map: Any, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories[NAME] = found = repository("config.json", "model.safetensors.index.json", "../outside")
    found.files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    folder = download(NAME, "model", {})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors.index.json"]
    assert not list(tmp_path.rglob("outside"))


# The command line


@pytest.fixture
def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1,localhost"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | home | {"HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.mark.slow
def test_command_summarizes_with_a_name(hub: HubServer, environment: dict[str, str]) -> None:
    hub.repositories["owner/demo"] = Repository.of(DEMO_CHECKPOINT)
    text = "A small library that reads and writes files.\n"

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pegasusx_ref", "summarize", *arguments]
        return subprocess.run(command, input=text, env=environment | more, capture_output=True, text=True, check=False)

    expected = run()
    found = run("--model", "owner/demo")
    assert (found.returncode, found.stdout) == (0, expected.stdout), found.stderr
    assert sorted(hub.downloads()) == ["config.json", "generation_config.json", "model.safetensors", "spiece.model"]
    found = run("--model", "owner/demo", "--no-progress", HF_HUB_OFFLINE="1")
    assert (found.returncode, found.stdout, found.stderr) == (0, expected.stdout, "")
    found = run("--model", "owner/dmeo")
    assert found.returncode == 2
    assert found.stderr.startswith("Error: owner/dmeo: neither a folder here nor a public model at ")


@pytest.mark.slow
def test_every_other_command_takes_a_name_and_a_revision(hub: HubServer, transformers: Any) -> None:
    hub.repositories["owner/demo"] = found = Repository.of(DEMO_CHECKPOINT)
    found.revisions = {"v1": COMMIT}
    Path("text.txt").write_text("A small library that reads and writes files.")
    model = ("--model", "owner/demo", "--revision", "v1")
    for arguments in (
        ("explain", "lm_head"),
        ("picture", "index-map", "--out", "map.svg"),
        ("picture", "spread", "--out", "spread.svg"),
        ("picture", "cross-attention", "text.txt", "--out", "cross.svg"),
        ("trace", "text.txt", "--max-new-tokens", "3"),
        ("explore", "text.txt", "--max-new-tokens", "3"),
        ("verify", "text.txt", "--target-tokens", "2"),
        ("verify", "--against", "numpy", "--tokens", "20", "--target-tokens", "2"),
    ):
        result = CliRunner().invoke(main, [*arguments, *model])
        assert result.exit_code in (0, 1) if arguments[0] == "verify" else result.exit_code == 0, result.output
        assert not result.stderr.startswith("Error"), result.stderr
        refused = CliRunner().invoke(main, [*arguments, "--revision", "v1"])
        assert "--revision v1 is for a --model of the Hugging Face Hub" in refused.output, refused.output
    assert sorted(hub.downloads()) == ["config.json", "generation_config.json", "model.safetensors", "spiece.model"]


@pytest.mark.parametrize("name", ["./owner/name", "owner/name/", "owner//name"])
def test_path_on_the_command_line_is_no_name(name: str, hub: HubServer) -> None:
    result = CliRunner().invoke(main, ["explain", "--model", name])
    assert result.exit_code == 2
    assert "owner/name/config.json: the folder does not exist" in result.stderr
    assert not hub.requests


@pytest.mark.parametrize(("flag", "shown"), [("--no-progress", False), ("--progress", True)])
def test_progress_of_downloads_is_that_of_the_command(flag: str, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    seen: list[str | None] = []

    def look(*_: Any) -> None:
        seen.append(os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"))
        raise CheckpointError("seen")

    monkeypatch.setattr("pegasusx_ref.cli.verify.locate", look)
    CliRunner().invoke(main, ["verify", flag])
    assert seen == [None if shown else "1"]
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ


def test_a_damaged_reference_leads_nowhere_else(hub: HubServer, tmp_path: Path) -> None:
    """A file of the cache that holds a path in place of a commit is not followed."""
    hub.repositories[NAME] = repository("spiece.model")
    folder = download(NAME, "tokenizer", {})
    for content in ("../../elsewhere", "../" * 8 + "etc", "x" * 10_000):
        (folder.parents[1] / "refs" / "main").write_text(content)
        with pytest.raises(CheckpointError, match="it is not downloaded"):
            download(NAME, "tokenizer", {"local_files_only": True})
