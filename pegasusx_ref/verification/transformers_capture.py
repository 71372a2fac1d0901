"""Every tensor of a live transformers model, under the names of the trace points. [spec 16]"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pegasusx_ref.config import PegasusXConfig
from pegasusx_ref.encoder import is_staggered
from pegasusx_ref.global_local import block_slices
from pegasusx_ref.verification.candidates import Inputs, blocks_of, tokens_of

# Modules whose result is a trace point of the same name.
WHOLE = {f"{side}.{part}" for side in ("encoder", "decoder") for part in ("embed_tokens", "layer_norm")}
WHOLE |= {"encoder.embed_global", "lm_head"}


class Softmaxes(TorchFunctionMode):  # type: ignore[misc]
    """Sees the softmaxes of whatever module is running: which only attention has."""

    def __init__(self, capture: "Capture") -> None:
        super().__init__()
        self._capture = capture

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "softmax":
            self._capture.softmax(args[0], result)
        return result


class Capture:
    """One run of transformers' model, watched.

    Args:
        model: transformers' `PegasusXForConditionalGeneration`.
        config: its configuration.
    """

    def __init__(self, model: Any, config: PegasusXConfig) -> None:
        self._model, self._config = model, config
        self._found: dict[str, np.ndarray] = {}
        self._calls: dict[str, int] = defaultdict(int)
        self._attention: str | None = None
        self._num_tokens = 0

    def run(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Run the model on arrays, and give what was seen by trace-point name."""
        ids = inputs["input_ids"]
        assert ids is not None
        self._num_tokens = ids.shape[1]
        handles = [handle for name, module in self._model.named_modules() for handle in self._hooked(name, module)]
        device = next(self._model.parameters()).device
        given = {
            k: torch.from_numpy(np.asarray(v, dtype=np.int64)).to(device) for k, v in inputs.items() if v is not None
        }
        try:
            with torch.no_grad(), Softmaxes(self):
                self._model(**given, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return self._found

    def _hooked(self, name: str, module: Any) -> list[Any]:
        place = name.removeprefix("model.")

        def before(_: Any, args: Any, kwargs: Any) -> None:
            self._enter(place, args, kwargs)

        def after(_: Any, args: Any, kwargs: Any, result: Any) -> None:
            self._leave(place, result)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    # --- what a hook sees

    def _enter(self, place: str, args: Any, kwargs: Any) -> None:
        side, _, inner = place.partition(".")
        part = inner.split(".")
        if inner == "layer_norm" and f"{side}.embeddings" not in self._found:  # there is no layer
            self._keep(f"{side}.embeddings", args[0])
        if part[0] != "layers" or len(part) < 2:
            return
        layer = f"{side}.layers.{part[1]}"
        last = part[-1]
        if len(part) == 2:
            hidden = args[0] if args else kwargs["hidden_states"]
            if side == "encoder":
                global_hidden = args[1] if len(args) > 1 else kwargs["global_hidden_states"]
                if part[1] == "0":
                    self._keep("encoder.embeddings", hidden)
                self._keep(f"{layer}.tokens.input", hidden)
                self._keep(f"{layer}.globals.input", global_hidden)
            else:
                if part[1] == "0":
                    self._keep("decoder.embeddings", hidden)
                self._keep(f"{layer}.input", hidden)
            return
        if last in ("self_attn", "encoder_attn"):
            self._attention = place
        if not args:
            return
        if side == "encoder":
            stream = ("tokens", "globals")[self._calls[place] % 2]
            if last == "out_proj":  # the global tokens come first here
                self._context(layer, int(part[1]), args[0], is_global=stream == "tokens")
            elif last == "final_layer_norm":
                self._keep(f"{layer}.{stream}.self_attn_residual", args[0])
            elif last == "fc2":
                self._keep(f"{layer}.{stream}.activation", args[0])
        elif last == "out_proj":
            self._keep(f"{layer}.{part[2]}.context", args[0], heads=self._config.decoder_attention_heads)
        elif last == "encoder_attn_layer_norm":
            self._keep(f"{layer}.self_attn_residual", args[0])
        elif last == "final_layer_norm":
            self._keep(f"{layer}.encoder_attn_residual", args[0])
        elif last == "fc2":
            self._keep(f"{layer}.activation", args[0])

    def _leave(self, place: str, result: Any) -> None:
        side, _, inner = place.partition(".")
        part = inner.split(".")
        last = part[-1]
        number, self._calls[place] = self._calls[place], self._calls[place] + 1
        if place in WHOLE:
            self._keep(place, result)
        elif part[0] != "layers":
            return
        elif len(part) == 2:
            layer = f"{side}.layers.{part[1]}"
            if side == "encoder":
                self._keep(f"{layer}.tokens.output", result[0])
                self._keep(f"{layer}.globals.output", result[1])
            else:
                self._keep(f"{layer}.output", result)
        elif last in ("self_attn", "encoder_attn"):
            self._attention = None
        elif side == "decoder":
            if last not in ("activation_fn",):
                self._keep(place, result)
        else:
            self._encoder_part(f"{side}.layers.{part[1]}", int(part[1]), part[2:], number, result)

    def _encoder_part(self, layer: str, index: int, part: list[str], number: int, result: Any) -> None:
        stream = ("tokens", "globals")[number % 2]
        last = part[-1]
        if last == "self_attn_layer_norm":  # called twice where the global tokens have none of their own
            self._keep(f"{layer}.{stream}.{last}", result)
        elif last == "global_self_attn_layer_norm":
            self._keep(f"{layer}.globals.self_attn_layer_norm", result)
        elif last in ("q_proj", "k_proj", "v_proj", "out_proj"):
            if last == "out_proj":
                stream = ("globals", "tokens")[number % 2]
            self._keep(f"{layer}.self_attn.{stream}.{last}", result, shift=self._shift(result.shape[1]))
        elif last in ("final_layer_norm", "fc1", "fc2"):
            self._keep(f"{layer}.{stream}.{last}", result)

    def softmax(self, scores: Any, probs: Any) -> None:
        """Take the scores and the weights of the attention that is running."""
        if self._attention is None:
            return
        place = self._attention
        side, _, index = place.split(".")[:3]
        number = self._calls[f"{place}.softmax"]
        self._calls[f"{place}.softmax"] += 1
        for what, tensor in (("scores", scores), ("probs", probs)):
            if side == "decoder":
                self._keep(f"{place}.{what}", tensor)
            elif number % 2 == 0:
                self._global(f"{place}.global.{what}", tensor)
            else:
                for name, block in blocks_of(array_of(tensor), self._config, int(index), self._num_tokens).items():
                    self._found[f"{place}.{name}.{what}"] = block

    # --- what is kept

    def _shift(self, num_padded: int) -> int:
        """Tell by how much tokens are moved: staggered layers pad them by half a block on both sides."""
        K = self._config.block_size
        return K // 2 if num_padded == -(-self._num_tokens // K) * K + K else 0

    def _keep(self, name: str, tensor: Any, shift: int = 0, heads: int | None = None) -> None:
        array = array_of(tensor)
        if heads is not None:
            B, L, D = array.shape
            array = array.reshape(B, L, heads, D // heads).swapaxes(1, 2)
        elif name.startswith("encoder.") and ".globals." not in name and "embed_global" not in name:
            array = tokens_of(array, self._num_tokens, shift)
        self._found[name] = array

    def _global(self, name: str, tensor: Any) -> None:
        array = array_of(tensor)
        G = self._config.num_global_tokens
        shift = self._shift(array.shape[3] - G)
        columns = np.r_[0:G, G + shift : G + shift + self._num_tokens]
        self._found[name] = array[..., columns]

    def _context(self, layer: str, index: int, tensor: Any, is_global: bool) -> None:
        array = array_of(tensor)
        B, X, D = array.shape
        H = self._config.encoder_attention_heads
        heads = array.reshape(B, X, H, D // H).swapaxes(1, 2)
        if is_global:
            self._found[f"{layer}.self_attn.global.context"] = heads
            return
        shift = self._shift(X)
        heads = heads[:, :, shift : shift + self._num_tokens]
        slices = block_slices(self._num_tokens, self._config.block_size, is_staggered(self._config, index))
        for n, (start, stop) in enumerate(slices):
            self._found[f"{layer}.self_attn.local.{n}.context"] = heads[:, :, start:stop]


def array_of(tensor: Any) -> np.ndarray:
    """Copy a tensor to the host; halves become float32, exactly."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return np.array(tensor.cpu().numpy(), copy=True)
