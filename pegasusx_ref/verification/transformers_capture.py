"""Every tensor of a live transformers model, under the names of the trace points. [spec 16]"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pegasusx_ref.attention import split_heads
from pegasusx_ref.config import PegasusXConfig
from pegasusx_ref.encoder import is_staggered
from pegasusx_ref.global_local import block_slices
from pegasusx_ref.tensors import to_numpy

# Modules of a layer: what goes in and what comes out, by name of its trace point. An encoder layer calls most of them
# twice, for two streams {s}: for the tokens and then for the global tokens, only out_proj the other way round.
ENCODER_LAYER: dict[str, tuple[str | None, str]] = {
    "self_attn_layer_norm": (None, "{s}.self_attn_layer_norm"),
    "global_self_attn_layer_norm": (None, "globals.self_attn_layer_norm"),
    "self_attn.q_proj": (None, "self_attn.{s}.q_proj"),
    "self_attn.k_proj": (None, "self_attn.{s}.k_proj"),
    "self_attn.v_proj": (None, "self_attn.{s}.v_proj"),
    "self_attn.out_proj": ("self_attn.{s}.context", "self_attn.{s}.out_proj"),
    "final_layer_norm": ("{s}.self_attn_residual", "{s}.final_layer_norm"),
    "fc1": (None, "{s}.fc1"),
    "fc2": ("{s}.activation", "{s}.fc2"),
}
DECODER_LAYER: dict[str, tuple[str | None, str]] = {
    "self_attn_layer_norm": (None, "self_attn_layer_norm"),
    **{f"{a}.{p}_proj": (None, f"{a}.{p}_proj") for a in ("self_attn", "encoder_attn") for p in "qkv"},
    "self_attn.out_proj": ("self_attn.context", "self_attn.out_proj"),
    "encoder_attn_layer_norm": ("self_attn_residual", "encoder_attn_layer_norm"),
    "encoder_attn.out_proj": ("encoder_attn.context", "encoder_attn.out_proj"),
    "final_layer_norm": ("encoder_attn_residual", "final_layer_norm"),
    "fc1": (None, "fc1"),
    "fc2": ("activation", "fc2"),
}


class Softmaxes(TorchFunctionMode):  # type: ignore[misc]
    """Shows the softmaxes to `see`: only attention has any."""

    def __init__(self, see: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "softmax":
            self._see(args[0], result)
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
        self._handles: list[Any] = []
        self._attention: str | None = None  # the place of the attention that is running
        self._softmaxes = count()  # of that attention
        self._num_tokens = 0

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run the model on arrays, and give what was seen by trace-point name."""
        self._num_tokens = inputs["input_ids"].shape[1]
        device = next(self._model.parameters()).device
        ids = {k: torch.from_numpy(v.astype(np.int64)).to(device) for k, v in inputs.items() if v is not None}
        try:
            self._watch_model()
            with torch.no_grad(), Softmaxes(self._softmax):
                self._model(**ids, use_cache=False)
        finally:
            for handle in self._handles:
                handle.remove()
        return self._found

    # --- what is watched

    def _watch_model(self) -> None:
        encoder, decoder = self._model.model.encoder, self._model.model.decoder
        self._after(encoder.embed_global, partial(self._keep, "encoder.embed_global"))
        self._after(self._model.lm_head, partial(self._keep, "lm_head"))
        for side, part, table in (("encoder", encoder, ENCODER_LAYER), ("decoder", decoder, DECODER_LAYER)):
            self._after(part.embed_tokens, partial(self._keep, f"{side}.embed_tokens"))
            # What goes into the first layer, or into the last LayerNorm where there is none.
            self._before(
                part.layers[0] if len(part.layers) else part.layer_norm, partial(self._keep, f"{side}.embeddings")
            )
            for i, layer in enumerate(part.layers):
                self._watch_layer(f"{side}.layers.{i}", layer, table)
            self._after(part.layer_norm, partial(self._keep, f"{side}.layer_norm"))

    def _watch_layer(self, place: str, layer: Any, table: dict[str, tuple[str | None, str]]) -> None:
        if table is ENCODER_LAYER:
            self._before(layer, partial(self._keep, f"{place}.tokens.input"))
            self._before(layer, partial(self._keep, f"{place}.globals.input"), number=1)
            self._after(layer, lambda both: self._keep(f"{place}.tokens.output", both[0]))
            self._after(layer, lambda both: self._keep(f"{place}.globals.output", both[1]))
        else:
            self._before(layer, partial(self._keep, f"{place}.input"))
            self._after(layer, partial(self._keep, f"{place}.output"))
        for path, (goes_in, comes_out) in table.items():
            module = layer.get_submodule(path)
            if goes_in is not None:
                self._before(module, self._by_turns(place, path, goes_in))
            self._after(module, self._by_turns(place, path, comes_out))
        for path in {path.split(".")[0] for path in table if "." in path}:
            attention = layer.get_submodule(path)
            self._handles.append(attention.register_forward_pre_hook(partial(self._enter, f"{place}.{path}")))
            self._handles.append(attention.register_forward_hook(self._leave))

    def _by_turns(self, place: str, path: str, name: str) -> Callable[[Any], None]:
        """Keep a tensor under the name of the stream whose turn it is."""
        calls, streams = count(), ("globals", "tokens") if path.endswith("out_proj") else ("tokens", "globals")
        return lambda tensor: self._keep(f"{place}.{name.format(s=streams[next(calls) % 2])}", tensor)

    def _before(self, module: Any, keep: Callable[[Any], None], number: int = 0) -> None:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            given = [*args, *(kwargs[name] for name in ("hidden_states", "global_hidden_states") if name in kwargs)]
            keep(given[number])

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: Any, keep: Callable[[Any], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda _, __, result: keep(result)))

    def _enter(self, place: str, *_: Any) -> None:
        self._attention, self._softmaxes = place, count()

    def _leave(self, *_: Any) -> None:
        self._attention = None

    def _softmax(self, scores: Any, probs: Any) -> None:
        """Keep scores and weights; an encoder layer attends from the global tokens first, then from the tokens."""
        if self._attention is None:
            return
        part = "" if self._attention.startswith("decoder") else (".global", ".local")[next(self._softmaxes) % 2]
        self._keep(f"{self._attention}{part}.scores", scores)
        self._keep(f"{self._attention}{part}.probs", probs)

    # --- what is kept

    def _keep(self, name: str, tensor: Any) -> None:
        """Keep a tensor without transformers' padding: of the tokens, of a block, of half a block."""
        array = np.array(to_numpy(tensor))  # a copy: what comes next may write into the tensor
        if name.startswith("decoder") or name == "lm_head":
            is_context = name.endswith(".context")
            self._found[name] = split_heads(array, self._config.decoder_attention_heads) if is_context else array
        elif name.endswith(".context"):
            self._keep_encoder_context(name, split_heads(array, self._config.encoder_attention_heads))
        elif ".local." in name:
            self._keep_blocks(name, array)
        elif ".global." in name:
            G = self._config.num_global_tokens
            first = G + self._shift(array.shape[3] - G)
            self._found[name] = array[..., np.r_[:G, first : first + self._num_tokens]]
        elif ".globals." in name or name == "encoder.embed_global":
            self._found[name] = array
        else:
            first = self._shift(array.shape[1])
            self._found[name] = array[:, first : first + self._num_tokens]

    def _shift(self, num_padded: int) -> int:
        """Tell by how much tokens are moved: staggered layers pad them by half a block on both sides."""
        K = self._config.block_size
        return K // 2 if num_padded == -(-self._num_tokens // K) * K + K else 0

    def _slices(self, name: str) -> tuple[list[tuple[int, int]], bool]:
        staggered = is_staggered(self._config, int(name.split(".")[2]))
        return block_slices(self._num_tokens, self._config.block_size, staggered), staggered

    def _keep_encoder_context(self, name: str, heads: np.ndarray) -> None:
        if ".globals." in name:
            self._found[name.replace(".globals.", ".global.")] = heads
            return
        first = self._shift(heads.shape[2])
        for n, (start, stop) in enumerate(self._slices(name)[0]):
            self._found[name.replace(".tokens.", f".local.{n}.")] = heads[:, :, first + start : first + stop]

    def _keep_blocks(self, name: str, padded: np.ndarray) -> None:
        """Cut padded blocks (B, H, N, K, G + K) into slices; another number of blocks is the finding, not an error."""
        K, G = self._config.block_size, self._config.num_global_tokens
        slices, staggered = self._slices(name)
        num_blocks, shift = padded.shape[2], K // 2 if staggered else 0
        for n, (start, stop) in enumerate(slices):
            block, first = divmod(start + shift, K)
            found = padded[:, :, min(block, num_blocks - 1)]
            if num_blocks == -(-self._num_tokens // K) + staggered:
                last = first + stop - start
                found = found[:, :, first:last][..., np.r_[:G, G + first : G + last]]
            self._found[name.replace(".local.", f".local.{n}.")] = found
