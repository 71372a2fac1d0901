"""Downloading files of the Hub into huggingface_hub's cache, resumed after a break, and checked by their hashes."""

import errno
import hashlib
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegasusx_ref.checkpoint.file_names import INDEX
from pegasusx_ref.checkpoint.hub.files import Kind, chosen, shards
from pegasusx_ref.errors import CheckpointError
from pegasusx_ref.files.reading import open_regular, read_bytes
from pegasusx_ref.files.writing import write_text

COMMIT = re.compile("[0-9a-f]{40}")
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
TIMEOUT = 10  # seconds, for the list of files
MAX_REFERENCE = 64  # bytes of a file that holds a commit


@dataclass(frozen=True)
class Repository:
    """A commit of a repository.

    Attributes:
        name: owner/name.
        commit: of the revision.
        files: by name; each has its size, blob_id and lfs, or None where the server does not say.
        cache: the cache folder.
        token: of an account.
    """

    name: str
    commit: str
    files: dict[str, Any]
    cache: Path
    token: str | bool | None

    @property
    def folder(self) -> Path:
        """Return the folder of this commit's downloaded files."""
        return _storage(self.name, self.cache) / "snapshots" / self.commit

    def remember(self, revision: str) -> None:
        """Write down the commit of the revision, for calls without network."""
        storage = _storage(self.name, self.cache)
        with suppress(OSError):  # a cache that can only be read
            if self.commit not in (revision, _known_commit(storage, revision)):
                write_text(storage / "refs" / revision, self.commit)


def _storage(name: str, cache: Path) -> Path:
    return cache / f"models--{name.replace('/', '--')}"


def open_repository(
    name: str, revision: str, cache: Path, token: str | bool | None, local_files_only: bool
) -> Repository:
    """Ask the Hub for the commit of a revision, and for its files with their hashes.

    Raises:
        Exception: of huggingface_hub; see `explained`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import FileMetadataError, OfflineModeIsEnabled

    if local_files_only:
        raise OfflineModeIsEnabled
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT, token=token)
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise FileMetadataError("the answer has no commit")
    return Repository(name, info.sha, {str(file.rfilename): file for file in info.siblings or ()}, cache, token)


def cached_folder(name: str, revision: str, cache: Path) -> Path:
    """Return the folder of a revision's downloaded files, whether or not it exists."""
    storage = _storage(name, cache)
    return storage / "snapshots" / (_known_commit(storage, revision) or revision)


def _known_commit(storage: Path, revision: str) -> str | None:
    """Return the commit of a revision that the cache has; a damaged file may have a path out of the cache instead."""
    with suppress(OSError, ValueError):
        commit = read_bytes(storage / "refs" / revision, MAX_REFERENCE).decode("ascii")
        return commit if COMMIT.fullmatch(commit) else None
    return None


def fetch_all(repository: Repository, kind: Kind) -> None:
    """Download the files that are read, unless they are in the cache; errors as for `fetch`."""
    for file_name in chosen(kind, repository.files):
        path = fetch(repository, file_name)
        if file_name.endswith(INDEX):
            for shard in shards(path):
                if shard in repository.files:  # otherwise the reader of the index says so
                    fetch(repository, shard)


def fetch(repository: Repository, file_name: str) -> Path:
    """Download a file unless it is in the cache, and return its path.

    Raises:
        CheckpointError: the file that arrived has another hash; it is removed.
        Exception: of huggingface_hub; see `explained`.
    """
    from huggingface_hub import hf_hub_download

    file, path = repository.files[file_name], repository.folder / file_name
    if not path.exists():
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        if digest and file.size is not None and DIGEST.fullmatch(digest):
            _fetch_blob(repository, file_name, file.size, digest)
        # Finds the blob and links it; downloads it by itself from a server that does not give hashes.
        hf_hub_download(
            repository.name, file_name, revision=repository.commit, cache_dir=repository.cache, token=repository.token
        )
    return path


def _fetch_blob(repository: Repository, file_name: str, size: int, digest: str) -> None:
    """Download a file to its place in the cache, which is named by its hash.

    hf_hub_download begins at zero after a break, and compares sizes only.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    storage = _storage(repository.name, repository.cache)
    blob, lock = storage / "blobs" / digest, repository.cache / ".locks" / storage.name / f"{digest}.lock"
    partial = blob.with_name(f"{digest}.incomplete")
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        with partial.open("ab") as stream:
            if stream.tell() > size:
                stream.truncate(0)
                stream.seek(0)
            if size - stream.tell() > free_space(blob.parent):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            http_get(
                hf_hub_url(repository.name, file_name, revision=repository.commit),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(token=repository.token) | {"Accept-Encoding": "identity"},
                expected_size=size,
                displayed_filename=file_name,
            )
        if (found := _digest(partial, digest)) != digest:
            partial.unlink()
            raise CheckpointError(
                f"{repository.name}: {file_name} arrived damaged (its hash is {found}, the Hub's {digest}) and was "
                "removed: load the model again to download it again"
            )
        partial.replace(blob)


def free_space(folder: Path) -> int:
    """Return the free space of a folder's disk in bytes."""
    return shutil.disk_usage(folder).free


def _digest(path: Path, like: str) -> str:
    """Compute the hash of a file: SHA-256 as of Git LFS, or SHA-1 as of git's own blobs, whichever is as long."""
    with open_regular(path) as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        header = b"blob %d\0" % os.fstat(file.fileno()).st_size
        return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()
