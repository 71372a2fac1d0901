"""Names of the Hugging Face Hub: their files are downloaded through huggingface_hub, or found in its cache."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pegasusx_ref.checkpoint.hub.files import Kind, absent, absent_in
from pegasusx_ref.errors import CheckpointError, ExtraError, InputError, shown
from pegasusx_ref.files.reading import as_path

_PART = r"\w(?:[\w.-]{0,94}\w)?"
OWNER_AND_NAME = re.compile(f"{_PART}/{_PART}", re.ASCII)


class HubOptions(TypedDict, total=False):
    """How a name is looked up in the Hugging Face Hub.

    Attributes:
        revision: a branch, tag or commit.
        cache_dir: the folder of downloaded files; the Hub's own where None.
        token: of an account, for private and gated models; True for the one stored by `hf auth login`.
        local_files_only: use downloaded files only.
    """

    revision: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


_TYPES: dict[str, tuple[type, ...]] = {
    "revision": (str, type(None)),
    "cache_dir": (str, os.PathLike, type(None)),
    "token": (str, bool, type(None)),
    "local_files_only": (bool,),
}


def check_options(hub: Mapping[str, Any], function: str = "from_pretrained") -> None:
    """Check the options.

    Args:
        hub: the options.
        function: that got them as its other keywords.

    Raises:
        TypeError: an unknown one.
        InputError: a value of another type, or a revision that is a path.
    """
    for name, value in hub.items():
        if name not in _TYPES:
            raise TypeError(f"{function}() got an unexpected keyword argument {shown(name)}")
        if not isinstance(value, _TYPES[name]):
            kinds = " or ".join("None" if t is type(None) else t.__name__ for t in _TYPES[name])
            raise InputError(f"{name}={shown(value)} must be {kinds}")
    if hub.get("cache_dir") is not None:
        as_path(hub["cache_dir"])
    revision = hub.get("revision")
    if revision is not None and (not revision or ".." in revision or revision.startswith("/")):
        raise InputError(f"revision={shown(revision)} must be a branch, tag or commit")


def is_hub_name(name: str | Path) -> bool:
    """Return whether a name that is no file or folder here can be one of the Hub: owner/name."""
    text = os.fspath(name)
    return (
        OWNER_AND_NAME.fullmatch(text) is not None
        and not ("--" in text or ".." in text or text.endswith(".git"))
        and not os.path.lexists(text)
    )


def download(name: str, kind: Kind, hub: HubOptions) -> Path:
    """Download the files of a model or a tokenizer, or find them in the cache, and return their folder. [spec 14.8]

    Args:
        name: a name of the Hub.
        kind: what is going to be read; other files are not downloaded.
        hub: how the name is looked up.

    Raises:
        CheckpointError: the name or a file is unknown, cannot be reached, or arrives damaged.
        ExtraError: huggingface_hub is not installed.
        InputError: see `check_options`.
    """
    check_options(hub)
    try:
        from huggingface_hub import constants
    except ImportError:
        raise ExtraError(
            f"{name}: there is no such folder, and names of the Hugging Face Hub need huggingface_hub: "
            "pip install 'pegasusx-ref[hub]'"
        ) from None
    # Imported here, because most programs read folders only.
    from pegasusx_ref.checkpoint.hub.errors import explained
    from pegasusx_ref.checkpoint.hub.transfer import cached_folder, fetch_all, open_repository

    cache, revision = Path(hub.get("cache_dir") or constants.HF_HUB_CACHE).expanduser(), hub.get("revision") or "main"
    try:
        repository = open_repository(name, revision, cache, hub.get("token"), hub.get("local_files_only", False))
    except Exception as error:  # of huggingface_hub, of its HTTP library, of the system
        failure = explained(error, name, cache, revision)
        folder = cached_folder(name, revision, cache)
        if lacking := absent_in(folder, kind):
            cached = f", and the cache lacks {', '.join(lacking)}" if os.path.lexists(folder) else ""
            raise CheckpointError(f"{name}: {failure.what}{cached}: {failure.remedy}") from error
        if not failure.is_offline_mode:
            warnings.warn(f"{name}: {failure.what}: its files in the cache are used", stacklevel=5)
        return folder
    if lacking := absent(kind, repository.files):
        found = ", ".join(sorted(repository.files)) or "no files"
        raise CheckpointError(f"{name}: this repository has no {', '.join(lacking)}; it has {found}")
    try:
        fetch_all(repository, kind)
        repository.remember(revision)
    except CheckpointError:
        raise
    except Exception as error:
        failure = explained(error, name, cache, revision)
        raise CheckpointError(f"{name}: {failure.what}: {failure.remedy}") from error
    return repository.folder
