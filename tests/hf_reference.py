"""The same model in transformers."""

from types import ModuleType
from typing import Any

import numpy as np

from pegasusx_ref import PegasusXForConditionalGeneration


def hf_reference(transformers: ModuleType, model: PegasusXForConditionalGeneration) -> Any:
    """Build transformers' model in float64 with the configuration and the weights of ours."""
    import torch

    config = model.config
    hf_model = transformers.PegasusXForConditionalGeneration(transformers.PegasusXConfig(**config.to_dict()))
    weights = {
        name if name == "lm_head.weight" else f"model.{name}": torch.from_numpy(np.array(tensor))
        for name, tensor in model.state_dict().items()
    }
    hf_model.double()
    missing, unexpected = hf_model.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    assert not unexpected
    assert set(missing) <= (tied if config.tie_word_embeddings else set())
    for module in hf_model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps  # transformers has no key for it
    return hf_model.eval()


def eager_hf_reference(transformers: ModuleType, model: PegasusXForConditionalGeneration, dtype: str) -> Any:
    """Build transformers' model in a dtype, with eager attention, whose steps can be captured."""
    import torch

    hf_model = hf_reference(transformers, model)
    hf_model.set_attn_implementation("eager")
    return hf_model.to(getattr(torch, dtype))


def to_torch(array: np.ndarray | None) -> Any:
    import torch

    return None if array is None else torch.from_numpy(array)


def run(hf_model: Any, **arrays: Any) -> Any:
    """Call transformers' model with arrays, without gradients."""
    import torch

    with torch.no_grad():
        return hf_model(**{k: to_torch(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()})
