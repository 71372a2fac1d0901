"""Which files of a repository are needed to read a model, a tokenizer or a configuration."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pegasusx_ref.checkpoint.file_names import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    ADDED_TOKENS,
    CONFIG,
    GENERATION,
    INDEX,
    PICKLE,
    SAFETENSORS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZERS,
)
from pegasusx_ref.checkpoint.folder import shard_names
from pegasusx_ref.errors import CheckpointError

Kind = Literal["model", "tokenizer", "config"]

WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, PICKLE, PICKLE + INDEX)

# Of each group the first file that exists. The large files come last: where they are, all the others are too.
WANTED: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "config": ((CONFIG,), (GENERATION,), (ADAPTER,)),
    "model": ((CONFIG,), (GENERATION,), (ADAPTER,), ADAPTER_WEIGHTS, WEIGHTS),
    "tokenizer": ((TOKENIZER_CONFIG,), (SPECIAL_TOKENS_MAP,), (ADDED_TOKENS,), (ADAPTER,), TOKENIZERS),
}
# At least one file of each group. An adapter's other files may be those of its base model.
NEEDED: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "config": ((CONFIG, ADAPTER),),
    "model": ((CONFIG, ADAPTER), (*WEIGHTS, *ADAPTER_WEIGHTS)),
    "tokenizer": ((*TOKENIZERS, ADAPTER),),
}


def chosen(kind: Kind, names: Collection[str]) -> list[str]:
    """Choose the files to download: weights in safetensors before pickles, and nothing that is not read.

    Args:
        kind: what is going to be read.
        names: of the repository's files.
    """
    found = ([name for name in group if name in names][:1] for group in WANTED[kind])
    return [name for group in found for name in group]


def shards(index: Path) -> list[str]:
    """Return the weight files that an index names; none where it is damaged, as its reader will say."""
    try:
        return shard_names(index)
    except CheckpointError:
        return []


def absent(kind: Kind, names: Collection[str]) -> list[str]:
    """Return what of a repository's files is needed but absent.

    Args:
        kind: what is going to be read.
        names: of the repository's files.
    """
    return [" or ".join(group) for group in NEEDED[kind] if not any(name in names for name in group)]


def absent_in(folder: Path, kind: Kind) -> list[str]:
    """Return what is needed but absent in a folder of downloaded files; see `absent`."""
    names: list[str] = []
    with suppress(OSError, ValueError):  # no folder, no name of a folder, or not readable
        # A link whose file was removed from the cache does not exist.
        names = [path.name for path in folder.iterdir() if path.exists()]
    indexes = [folder / name for name in chosen(kind, names) if name.endswith(INDEX)]
    return absent(kind, names) + [name for index in indexes for name in shards(index) if name not in names]
