"""Loading the weights of a checkpoint folder: none missing, none surplus, shapes right, ties resolved. [spec 14]"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.checkpoint import read_tensors
from pegasusx_ref.checkpoint.tensor_names import LINEAR
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.quantization import TABLES
from pegasusx_ref.model.weights import EMBEDDING, EMBEDDING_COPIES, LOGITS_BIAS, has_logits_bias, parameter_shapes

ROWS_AT_ONCE = 1024


def load_weights(
    folder: Path, config: PegasusXConfig, head: bool, adapter: Path | None = None
) -> tuple[dict[str, Any], PegasusXConfig]:
    """Read the weights of a checkpoint folder and check that they are this model's, all of them. [spec 14.6]

    Args:
        folder: see `read_tensors`.
        config: the model's configuration.
        head: the model has a language-model head (`PegasusXForConditionalGeneration`).
        adapter: a PEFT folder whose weights are merged into these.

    Returns:
        Tensors in the dtypes of the files, quantized ones as `QuantizedMatrix`, by name without the ``model.`` prefix
        and without tied copies. And the configuration, corrected where the files contradict it: tie_word_embeddings,
        vocab_size, final_logits_bias.

    Raises:
        CheckpointError: a file is missing or corrupt, or a tensor missing, surplus or misshapen; or an adapter for
            quantized weights.
    """
    tensors, files = read_tensors(folder, config.extra)
    tensors, config = _checked(tensors, files, config, head, folder)
    if adapter is not None:
        from pegasusx_ref.checkpoint.adapters.files import read_adapter
        from pegasusx_ref.checkpoint.adapters.merge import changes

        if any(isinstance(tensor, QuantizedMatrix) for tensor in tensors.values()):
            raise CheckpointError(
                f"{adapter}: its base model {folder} is quantized, which cannot be merged: write the place of the "
                "original into base_model_name_or_path, or that of the base converted with --dtype float32"
            )
        changed = read_adapter(adapter)
        tied = TABLES if config.tie_word_embeddings else ()
        new = changes(changed, tensors, tied)
        tensors, config = _checked(tensors | new, files | dict.fromkeys(new, changed.path), config, head, adapter)
    return {name: tensors[name] for name in parameter_shapes(config, head)}, config


def _checked(
    tensors: dict[str, Any], files: Mapping[str, Path], config: PegasusXConfig, head: bool, folder: Path
) -> tuple[dict[str, Any], PegasusXConfig]:
    """Check that the tensors are the model's, all of them, and correct what the configuration says otherwise."""
    config = _with_vocabulary(tensors, config, folder)
    tensors, config = _with_logits_bias(tensors, config)
    shapes = parameter_shapes(config)
    _check_shapes(tensors, files, shapes | dict.fromkeys(TABLES, shapes[EMBEDDING]))
    tensors, config = _resolve_ties(tensors, config, folder)
    missing = [name for name in parameter_shapes(config, head) if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: the weight files lack tensor {missing[0]!r}{more}")
    return tensors, config


def _with_vocabulary(tensors: Mapping[str, Any], config: PegasusXConfig, folder: Path) -> PegasusXConfig:
    """Take the vocabulary's size from the tables where they have more rows than config.json says.

    So do tables that were extended by tokens, or padded to a multiple, without writing config.json again. A model of
    the size in config.json would refuse the ids of added tokens.
    """
    rows = {tensors[name].shape[0] for name in TABLES if name in tensors and len(tensors[name].shape) == 2}
    if len(rows) != 1 or (size := rows.pop()) <= config.vocab_size:
        return config
    with reading(folder, "a checkpoint", CheckpointError):
        larger = config.replace(vocab_size=size)
    warnings.warn(
        f"{folder}: the embedding tables have {size} rows, config.json says vocab_size={config.vocab_size}: used as "
        f"vocab_size={size} (write it into config.json)",
        stacklevel=5,
    )
    return larger


def _with_logits_bias(tensors: dict[str, Any], config: PegasusXConfig) -> tuple[dict[str, Any], PegasusXConfig]:
    """Keep the bias of the logits only where it is not zero: published checkpoints have zeros, transformers none."""
    bias = tensors.get(LOGITS_BIAS)
    if isinstance(bias, QuantizedMatrix):  # of one row
        return tensors, config
    if bias is not None and bias.shape[:1] == (1,):
        bias = bias.reshape(bias.shape[1:])
    tensors = {name: tensor for name, tensor in tensors.items() if name != LOGITS_BIAS}
    if bias is not None and (bias.ndim != 1 or bias.any()):
        tensors[LOGITS_BIAS] = bias
    is_kept = LOGITS_BIAS in tensors
    if bias is None or is_kept == has_logits_bias(config):
        return tensors, config
    return tensors, config.replace(extra=config.extra | {LOGITS_BIAS: is_kept})


def _check_shapes(tensors: Mapping[str, Any], files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, tensor in tensors.items():
        if name not in shapes:
            raise CheckpointError(f"{files[name]}: tensor {shown(name)} is not part of this model: compare config.json")
        if tensor.shape != shapes[name]:
            hint = " (it is transposed)" if tensor.shape == shapes[name][::-1] else ""
            raise CheckpointError(
                f"{files[name]}: tensor {name!r} has shape {tensor.shape}, but config.json implies {shapes[name]}{hint}"
            )
        if isinstance(tensor, QuantizedMatrix) and not name.endswith(LINEAR) and name not in TABLES:
            raise CheckpointError(
                f"{files[name]}: tensor {name!r} is quantized, but only linear layers and embedding tables can be"
            )


def _resolve_ties(
    tensors: dict[str, Any], config: PegasusXConfig, folder: Path
) -> tuple[dict[str, Any], PegasusXConfig]:
    """Drop the tied copies of the embedding table; where stored copies differ, the files override the configuration."""
    present = [name for name in TABLES if name in tensors]
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
        stacklevel=5,
    )
    for name in EMBEDDING_COPIES:
        tensors.setdefault(name, table)
    return tensors, config.replace(tie_word_embeddings=False)


def _are_equal(x_VD: Any, y_VD: Any) -> bool:
    """Compare two tables in chunks of rows, NaN equal to NaN: whole tables would need as much memory again."""
    return all(
        np.array_equal(_rows(x_VD, rows), _rows(y_VD, rows), equal_nan=True)
        for rows in (slice(start, start + ROWS_AT_ONCE) for start in range(0, x_VD.shape[0], ROWS_AT_ONCE))
    )


def _rows(x_VD: Any, rows: slice) -> Any:
    return x_VD.dequantized(rows) if isinstance(x_VD, QuantizedMatrix) else x_VD[rows]
