"""Converting a checkpoint: from anything that is read here to a folder as transformers writes it."""

import os
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from pegasusx_ref.backend.quantized import QuantizedMatrix, dense
from pegasusx_ref.checkpoint import PREFIX, write_checkpoint
from pegasusx_ref.checkpoint.bitsandbytes import Form, form_of, kind_of
from pegasusx_ref.checkpoint.file_names import CONFIG, GENERATION
from pegasusx_ref.checkpoint.hub import HubOptions, check_options
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.checkpoint.saving import shard_size
from pegasusx_ref.checkpoint.settings import read_settings
from pegasusx_ref.conversion.casting import cast, checked_dtype
from pegasusx_ref.conversion.checkpoint import Checkpoint
from pegasusx_ref.conversion.tokenizers import check_no_other, given_tokenizer, source_tokenizer
from pegasusx_ref.errors import InputError, OutputError, shown
from pegasusx_ref.files.reading import as_path
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.model import PegasusXForConditionalGeneration, PegasusXModel
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.loading import load_weights
from pegasusx_ref.model.quantization import Quantization, compute_dtype, quantization_entries, quantized
from pegasusx_ref.model.weights import GLOBAL_EMBEDDING


def convert(
    source: str | Path,
    destination: str | Path,
    dtype: Any = None,
    max_shard_size: int | str | None = "5GB",
    *,
    quantize: str | None = None,
    quantize_embedding: bool = False,
    config: PegasusXConfig | str | Path | None = None,
    tokenizer: str | Path | None = None,
    **hub: Unpack[HubOptions],
) -> list[Path]:
    """Convert a checkpoint to a folder that transformers and this package read. [spec 14.10]

    The folder gets config.json, generation_config.json, the weights as safetensors and the tokenizer's files, all of
    them or none. The tensors are read, rounded or quantized, and written one after the other. A quantized source stays
    quantized where neither `dtype` nor `quantize` is given; with a `dtype` alone it is dequantized.

    Args:
        source: whatever `from_pretrained` reads: a folder, a name of the Hugging Face Hub, a LoRA adapter, which is
            merged; or a Flax checkpoint of the paper's own code, a file or its folder.
        destination: the folder, created if it does not exist; it may be the source. Weights of an earlier save in it
            are replaced.
        dtype: of the tensors that are not quantized, "float32", "bfloat16", "float16" or "float64"; each keeps its own
            if None.
        max_shard_size: of a weight file, such as "5GB" or "500MiB"; None for one file.
        quantize: "nf4", "nf4-double", "fp4", "fp4-double" or "int8": quantize the linear layers, from the numbers of
            the source.
        quantize_embedding: quantize the embedding tables too, which transformers does not read.
        config: for a Flax checkpoint, what the shapes of its parameters do not tell: a configuration, a config.json,
            or the name of a preset. As published if None.
        tokenizer: a spiece.model or tokenizer.json, or the folder or Hub name of a tokenizer; that of the source if
            None.
        hub: see `HubOptions`; the revision is that of the source.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: the source is missing, corrupt, belongs to another model, or is quantized otherwise.
        ConfigError: an invalid configuration.
        InputError: an invalid argument, or a number that is too large for the dtype.
        OutputError: a file cannot be written; the destination keeps its old files.
    """
    from pegasusx_ref.checkpoint.flax.reading import flax_file
    from pegasusx_ref.conversion.flax import flax_checkpoint

    folder, dtype, limit = as_path(destination), checked_dtype(dtype), shard_size(max_shard_size)
    quantization = Quantization.requested(quantize, quantize_embedding)
    check_options(hub)
    _check_destination(folder)
    flax = flax_file(as_path(source))
    if flax is None and config is not None:
        raise InputError(f"config={shown(config)} is for Flax checkpoints, and {source} is not one: leave it out")
    found = _checkpoint(source, hub) if flax is None else flax_checkpoint(flax, config)
    others = source_tokenizer(source, hub) if tokenizer is None else given_tokenizer(tokenizer, found.config, hub)
    check_no_other(folder, others)

    forms = converted_forms(found, dtype, quantization)
    stored_dtype = forms[GLOBAL_EMBEDDING].dtype
    kinds = {name: form.kind for name, form in forms.items()}
    entries = quantization_entries(kinds, stored_dtype, found.has_head)
    model_class = PegasusXForConditionalGeneration if found.has_head else PegasusXModel
    settings = {CONFIG: found.config.entries_beside(stored_dtype, model_class.__name__, entries)}
    if found.has_head:
        settings[GENERATION] = dict(found.generation)

    def tensor(name: str) -> Any:
        if kinds[name] is not None:
            return quantized(name, found.tensors[name], kinds[name], source)
        try:
            return cast(name, dense(found.tensors[name], np.float32), forms[name].dtype)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    return write_checkpoint(folder, forms, tensor, PREFIX if found.has_head else "", settings, limit, others)


def converted_forms(found: Checkpoint, dtype: str | None, quantization: Quantization | None) -> dict[str, Form]:
    """Return the form in which each tensor of a checkpoint is going to be stored.

    Args:
        found: the checkpoint.
        dtype: see `convert`.
        quantization: what is quantized.
    """
    main = dtype or found.tensors[GLOBAL_EMBEDDING].dtype.name
    forms = {}
    for name, tensor in found.tensors.items():
        kind = quantization and quantization.kind_for(name, found.has_head)
        if isinstance(tensor, QuantizedMatrix):
            if dtype is None or quantization is not None:
                forms[name] = form_of(tensor, compute_dtype(main))._replace(kind=kind or kind_of(tensor))
            else:
                forms[name] = Form(tensor.shape, main)
        elif kind is not None:
            forms[name] = Form(tensor.shape, compute_dtype(main), kind)
        else:
            forms[name] = Form(tensor.shape, dtype or tensor.dtype.name)
    return forms


def _check_destination(folder: Path) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"{folder}: is a file: name a folder, new or existing")


def _checkpoint(source: str | Path, hub: HubOptions) -> Checkpoint:
    folder, adapter = locate(source, "model", hub)
    config = PegasusXConfig.from_pretrained(folder)
    has_head = config.extra.get("architectures") != [PegasusXModel.__name__]
    tensors, config = load_weights(folder, config, has_head, adapter)
    if os.path.lexists(folder / GENERATION):
        return Checkpoint(config, tensors, read_settings(folder / GENERATION), has_head)
    return Checkpoint(config, tensors, GenerationConfig.from_model_config(config).to_dict(), has_head)
