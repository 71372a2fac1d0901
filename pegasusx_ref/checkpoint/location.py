"""Where a checkpoint is: a folder, a repository of the Hugging Face Hub, an adapter and its base model."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

from pegasusx_ref.checkpoint.file_names import ADAPTER, ADAPTER_WEIGHTS, CONFIG, TOKENIZERS
from pegasusx_ref.checkpoint.folder import has_weights
from pegasusx_ref.checkpoint.foreign_folders import FLAX, foreign_content
from pegasusx_ref.checkpoint.hub import HubOptions, Kind, check_options, download, is_hub_name
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.reading import as_path


class Location(NamedTuple):
    """The folders of a checkpoint.

    Attributes:
        folder: holds config.json, the weights and the tokenizer's files.
        adapter: the PEFT folder whose weights are merged into them, if one was named.
    """

    folder: Path
    adapter: Path | None = None


def locate(name: str | Path, kind: Kind, hub: HubOptions) -> Location:
    """Find a checkpoint.

    Args:
        name: a folder, or a name of the Hub such as "google/pegasus-x-base"; a local folder of that name wins. The
            folder of a PEFT adapter leads to that of its base model.
        kind: what is going to be read.
        hub: how the name is looked up in the Hub.

    Raises:
        CheckpointError: it cannot be found or downloaded.
        TypeError: an unknown option.
    """
    check_options(hub)
    folder = _folder(name, kind, hub)
    if not _is_adapter(folder, kind):
        if kind != "tokenizer":
            _check_is_checkpoint(folder)
        return Location(folder)
    if kind == "tokenizer" and any(os.path.lexists(folder / file) for file in TOKENIZERS):
        return Location(folder)
    base = _base(folder, kind, hub)
    if _is_adapter(base, kind):
        raise CheckpointError(
            f"{folder / ADAPTER}: its base model {base} is an adapter too: merge that one with peft's "
            "merge_and_unload() and save it"
        )
    return Location(base, folder)


def _folder(name: str | Path, kind: Kind, hub: HubOptions) -> Path:
    folder = as_path(name)
    if not folder.is_dir() and is_hub_name(name):
        return download(folder.as_posix(), kind, hub)
    return folder


def _check_is_checkpoint(folder: Path) -> None:
    """Refuse a folder with neither configuration nor weights that is known to hold something else.

    Flax checkpoints have no configuration; only a conversion reads them.
    """
    if not os.path.lexists(folder / CONFIG) and not has_weights(folder):
        found = foreign_content(folder)
        if found is not None and FLAX not in found:
            raise CheckpointError(f"{folder}: no checkpoint, but {found}")


def _is_adapter(folder: Path, kind: Kind) -> bool:
    """Return whether a folder is an adapter's; one that holds a whole model too is the model's."""
    if not os.path.lexists(folder / ADAPTER):
        return False
    if not has_weights(folder):
        return True
    if kind == "model" and any(os.path.lexists(folder / file) for file in ADAPTER_WEIGHTS):
        warnings.warn(
            f"{folder}: its adapter is not merged, because the folder holds the weights of a whole model too: move one "
            "of them to a folder of its own",
            stacklevel=4,
        )
    return False


def _base(folder: Path, kind: Kind, hub: HubOptions) -> Path:
    """Find the folder of an adapter's base model: as peft does, or else beside the adapter."""
    from pegasusx_ref.checkpoint.adapters.config import AdapterConfig

    config = AdapterConfig.read(folder / ADAPTER)
    name = config.base_model
    for path in (Path(name), folder / name, folder.parent / name, folder.parent / Path(name).name):
        if any(os.path.lexists(path / file) for file in (CONFIG, ADAPTER)) and not path.samefile(folder):
            return path
    if is_hub_name(name):
        return download(name, kind, {**hub, "revision": config.revision})
    raise CheckpointError(
        f"{folder / ADAPTER}: its base model {shown(name)} is no other folder with a {CONFIG}, neither here nor beside "
        "the adapter: put it there, or write its place into base_model_name_or_path"
    )
