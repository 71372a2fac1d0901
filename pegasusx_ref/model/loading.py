"""Loading the weights of a checkpoint folder: none missing, none surplus, shapes right, ties resolved. [spec 14]"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pegasusx_ref.checkpoint import read_tensors
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import EMBEDDING, EMBEDDING_COPIES, parameter_shapes

ROWS_AT_ONCE = 1024


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
    tensors, files = read_tensors(folder, config.extra)
    shapes = parameter_shapes(config, head)
    _check_shapes(tensors, files, shapes | dict.fromkeys(EMBEDDING_COPIES, shapes[EMBEDDING]))
    tensors, config = _resolve_ties(tensors, config, folder)
    names = parameter_shapes(config, head)  # where ties are resolved, a model without a head has none to load
    missing = [name for name in names if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: the weight files lack tensor {missing[0]!r}{more}")
    return {name: tensors[name] for name in names}, config


def _check_shapes(
    tensors: Mapping[str, np.ndarray], files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, tensor in tensors.items():
        if name not in shapes:
            raise CheckpointError(f"{files[name]}: tensor {shown(name)} is not part of this model: compare config.json")
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{files[name]}: tensor {name!r} has shape {tensor.shape}, but config.json implies {shapes[name]}"
            )


def _resolve_ties(
    tensors: dict[str, np.ndarray], config: PegasusXConfig, folder: Path
) -> tuple[dict[str, np.ndarray], PegasusXConfig]:
    """Drop the tied copies of the embedding table; where stored copies differ, the files override the configuration."""
    present = [name for name in (EMBEDDING, *EMBEDDING_COPIES) if name in tensors]
    if not config.tie_word_embeddings or not present:
        return tensors, config
    table = tensors.pop(present[0])
    differing = [name for name in present[1:] if not _are_equal(tensors[name], table)]
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


def _are_equal(x_VD: np.ndarray, y_VD: np.ndarray) -> bool:
    """Compare two tables in chunks of rows, NaN equal to NaN: whole tables would need as much memory again."""
    return all(
        np.array_equal(x_VD[start : start + ROWS_AT_ONCE], y_VD[start : start + ROWS_AT_ONCE], equal_nan=True)
        for start in range(0, len(x_VD), ROWS_AT_ONCE)
    )
