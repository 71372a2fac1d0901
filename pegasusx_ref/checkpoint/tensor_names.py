"""Names of tensors as training programs write them: the names of this model behind those of its wrappers."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from pegasusx_ref.errors import CheckpointError, shown

PREFIX = "model."
# With one of these every name of this model begins, after "model." in front of those of MODEL_PARTS.
MODEL_PARTS = ("shared", "encoder", "decoder")
HEAD_PARTS = ("lm_head", "final_logits_bias")
LINEAR = ("_proj.weight", "fc1.weight", "fc2.weight")  # the ends of the names of linear layers' matrices
# What torch.compile, DataParallel, FSDP, activation checkpointing and DeepSpeed put around a module.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# What PEFT puts into a module to adapt it.
ADAPTED = ("base_layer", "original_module", "modules_to_save", "lora_A", "lora_B", "lora_embedding_A",
           "lora_embedding_B", "lora_magnitude_vector")  # fmt: skip


def clean_names(path: Path, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Remove the names of wrappers from the names of a file's tensors.

    Args:
        path: the file.
        names: of its tensors.

    Returns:
        Names without ``model.`` and without wrappers, by the full names; and what was removed besides ``model.``.

    Raises:
        CheckpointError: the names begin in several ways, as those of two models do.
    """
    cleaned: dict[str, str] = {}
    wrappers: dict[str, str] = {}  # a tensor by what was removed from its name
    prefixes: dict[str, str] = {}
    head_prefixes: dict[str, str] = {}
    for name in names:
        every = name.split(".")
        wrappers |= {f"{part}.": name for part in every if part in WRAPPERS}
        parts = [part for part in every if part not in WRAPPERS]
        start = next((i for i, part in enumerate(parts) if part in MODEL_PARTS + HEAD_PARTS), None)
        if start is not None:
            prefix = "".join(f"{part}." for part in parts[:start])
            if parts[start] in MODEL_PARTS:
                prefixes[prefix.removesuffix(PREFIX)] = name
            else:
                head_prefixes[prefix] = name
        cleaned[name] = ".".join(parts[start:])
    known = {prefix + end for prefix in prefixes for end in ("", PREFIX)}
    prefixes |= {prefix: name for prefix, name in head_prefixes.items() if prefix not in known}
    if len(prefixes) > 1:
        first, second = islice(prefixes.values(), 2)
        raise CheckpointError(
            f"{path}: tensors {shown(first)} and {shown(second)} belong to two models: save the state dict of one"
        )
    return cleaned, [*wrappers, *filter(None, prefixes)]


def check_not_adapted(path: Path, names: Iterable[str]) -> None:
    """Refuse the weights of a model with an adapter inside, whose scale is not in the file.

    Args:
        path: the file.
        names: of its tensors.

    Raises:
        CheckpointError: an adapter's tensor.
    """
    for name in names:
        if not set(ADAPTED).isdisjoint(name.split(".")):
            raise CheckpointError(
                f"{path}: tensor {shown(name)} belongs to a PEFT adapter that is not merged: save "
                "model.merge_and_unload(), or the adapter alone with model.save_pretrained"
            )
