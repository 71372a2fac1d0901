"""The tokenizer's files of a converted checkpoint."""

import os
import tempfile
import warnings
from pathlib import Path

from pegasusx_ref.checkpoint.file_names import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, TOKENIZERS
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.errors import CheckpointError, OutputError
from pegasusx_ref.files.reading import as_path, read_bytes, reading
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tokenizer import PegasusTokenizer

FILES = (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, *TOKENIZERS)
MAX_SIZE = 2**28  # bytes of a file


def source_tokenizer(source: str | Path, hub: HubOptions) -> dict[str, bytes]:
    """Read the tokenizer's files of a checkpoint byte for byte; a warning if there are none.

    Args:
        source: see `convert`.
        hub: how its name is looked up in the Hub.
    """
    try:
        files = {} if as_path(source).is_file() else _files(source, hub)
        problem = f"{source}: has no {' or '.join(TOKENIZERS)}"
    except CheckpointError as error:
        files, problem = {}, str(error)
    if not files:
        warnings.warn(f"{problem}: converted without a tokenizer; pass one as tokenizer", stacklevel=3)
    return files


def given_tokenizer(name: str | Path, config: PegasusXConfig, hub: HubOptions) -> dict[str, bytes]:
    """Read the files of a tokenizer for a model; a spiece.model alone gets the model's length as a setting.

    Args:
        name: the file, or the folder or Hub name.
        config: of the model.
        hub: how the model is looked up in the Hub; the revision is the model's own.

    Raises:
        CheckpointError: it is missing or corrupt, or has more ids than the model.
    """
    path, hub = as_path(name), {**hub, "revision": None}
    is_file = path.is_file()
    length = config.max_position_embeddings
    tokenizer = PegasusTokenizer(path, length) if is_file else PegasusTokenizer.from_pretrained(name, **hub)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(f"{name}: the tokenizer has {len(tokenizer)} ids, but the model {config.vocab_size}")
    if not is_file:
        return _files(name, hub)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _files(name: str | Path, hub: HubOptions) -> dict[str, bytes]:
    location = locate(name, "tokenizer", hub)
    for folder in filter(None, (location.adapter, location.folder)):
        if any(os.path.lexists(folder / file) for file in TOKENIZERS):
            found = [folder / file for file in FILES if os.path.lexists(folder / file)]
            with reading(folder, "a tokenizer", CheckpointError):
                return {path.name: read_bytes(path, MAX_SIZE) for path in found}
    return {}


def check_no_other(folder: Path, files: dict[str, bytes]) -> None:
    """Check that a folder holds no tokenizer of another kind, which would be read in place of the given files.

    Raises:
        OutputError: it does.
    """
    for name in TOKENIZERS if files else ():
        if name not in files and os.path.lexists(folder / name):
            raise OutputError(f"{folder / name}: belongs to another tokenizer: remove it, or name another folder")
