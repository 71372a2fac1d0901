"""Loading the weights of a checkpoint folder: none missing, none surplus, shapes right, ties resolved. [spec 14]"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pegasusx_ref.checkpoint import read_tensors
from pegasusx_ref.errors import CheckpointError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import EMBEDDING, EMBEDDING_COPIES, parameter_shapes


def load_weights(folder: Path, config: PegasusXConfig, head: bool) -> tuple[dict[str, np.ndarray], PegasusXConfig]:
    """Read the weights of a checkpoint folder and check that they are this model's, all of them. [spec 14.6]

    Args:
        folder: see `read_tensors`.
        config: the model's configuration.
        head: the model has a language-model head (`PegasusXForConditionalGeneration`).

    Returns:
        Tensors in the dtypes of the files, by name without the ``model.`` prefix and without tied copies. And the
        configuration, with tie_word_embeddings off where the files contradict it.

    Raises:
        CheckpointError: a file is missing or corrupt, or a tensor missing, surplus or misshapen.
    """
    tensors, files = read_tensors(folder)
    tensors, config = _resolve_ties(tensors, config, folder)
    if not head:
        tensors.pop("lm_head.weight", None)
    _check(tensors, files, folder, parameter_shapes(config, head))
    return tensors, config


def _resolve_ties(
    tensors: dict[str, np.ndarray], config: PegasusXConfig, folder: Path
) -> tuple[dict[str, np.ndarray], PegasusXConfig]:
    """Drop the tied copies of the embedding table; where stored copies differ, the files override the configuration."""
    present = [name for name in (EMBEDDING, *EMBEDDING_COPIES) if name in tensors]
    if not config.tie_word_embeddings or not present:
        return tensors, config
    table = tensors.pop(present[0])
    differing = [name for name in present[1:] if not np.array_equal(tensors[name], table, equal_nan=True)]
    for name in set(present[1:]) - set(differing):
        del tensors[name]
    tensors[EMBEDDING] = table
    if not differing:
        return tensors, config
    warnings.warn(
        f"{folder}: {', '.join(differing)} differ from {present[0]} although config.json ties them: each is used as "
        "stored, as in transformers (set tie_word_embeddings=false)",
        stacklevel=4,
    )
    for name in EMBEDDING_COPIES:
        tensors.setdefault(name, table)
    return tensors, config.replace(tie_word_embeddings=False)


def _check(
    tensors: Mapping[str, np.ndarray], files: Mapping[str, Path], folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, tensor in tensors.items():
        path = files.get(name, folder)
        if name not in shapes:
            raise CheckpointError(f"{path}: tensor {name!r} is not part of this model: compare config.json")
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tensor.shape}, but config.json implies {shapes[name]}"
            )
    missing = [name for name in shapes if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: the weight files lack tensor {missing[0]!r}{more}")
