"""Capture of every tensor of a live transformers model, by trace-point name. [spec 16]"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing.trace_points import layer_of
from pegasusx_ref.verification.candidates.transformers_layout import Unpadded

# The trace points of each module's input and output. An encoder layer calls most modules twice, for two streams {s}:
# first for the tokens, then for the global tokens; out_proj is called in the reverse order.
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


class SoftmaxMode(TorchFunctionMode):  # type: ignore[misc]
    """A mode that calls `see` with input and output of every softmax; only attention has any."""

    def __init__(self, see: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "softmax":
            self._see(args[0], result)
        return result


class Call(NamedTuple):
    """A layer's call, to be repeated."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Capture(Mapping[str, np.ndarray]):
    """Tensors of one run of transformers' model: those between layers, and those inside the most recent layer.

    For a long text, the tensors inside all layers do not fit into memory. So the run keeps the inputs of each layer,
    and a layer runs again with hooks when a tensor inside it is read.

    Args:
        model: transformers' `PegasusXForConditionalGeneration`.
        config: its configuration.
        inputs: arrays by name.
    """

    needs_gradients = False

    def __init__(self, model: Any, config: PegasusXConfig, inputs: Mapping[str, Any]) -> None:
        self._model, self._unpadded = model, Unpadded(config, inputs["input_ids"].shape[1])
        self._between: dict[str, np.ndarray] = {}
        self._inside: dict[str, np.ndarray] = {}
        self._captured = self._between  # where new tensors are stored
        self._names: set[str] = set()
        self._calls: dict[str, Call] = {}
        self._current = ""  # the layer whose inner tensors are stored
        self._handles: list[Any] = []
        self._attention: str | None = None  # the name of the attention that is running
        self._softmax_count = count()  # in that attention
        device = next(model.parameters()).device
        ids = {k: torch.from_numpy(v.astype(np.int64)).to(device) for k, v in inputs.items() if v is not None}
        self._run(self._watch_model, partial(model, **ids, use_cache=False))

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._between:
            return self._between[name]
        place = layer_of(name)
        if place != self._current and place in self._calls:
            self._current, self._inside = place, {}
            self._captured = self._inside
            call = self._calls[place]
            self._run(partial(self._watch_modules, place, call.layer), partial(call.layer, *call.args, **call.kwargs))
        return self._inside[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that were captured so far."""
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _run(self, watch: Callable[[], None], what: Callable[[], Any]) -> Any:
        try:
            watch()
            with torch.set_grad_enabled(self.needs_gradients), SoftmaxMode(self._softmax):
                return what()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    # --- hooks

    def _watch_model(self) -> None:
        encoder, decoder = self._model.model.encoder, self._model.model.decoder
        self._after(encoder.embed_global, partial(self._keep, "encoder.embed_global"))
        self._after(self._model.lm_head, partial(self._keep, "lm_head"))
        for side, part in (("encoder", encoder), ("decoder", decoder)):
            self._after(part.embed_tokens, partial(self._keep, f"{side}.embed_tokens"))
            # The input of the first layer, or of the last LayerNorm where there is no layer.
            self._before(
                part.layers[0] if len(part.layers) else part.layer_norm, partial(self._keep, f"{side}.embeddings")
            )
            for i, layer in enumerate(part.layers):
                self._watch_layer(f"{side}.layers.{i}", layer)
            self._after(part.layer_norm, partial(self._keep, f"{side}.layer_norm"))

    def _watch_layer(self, place: str, layer: Any) -> None:
        def keep_call(layer: Any, args: Any, kwargs: Any) -> None:
            self._calls[place] = Call(layer, tuple(map(copied, args)), {k: copied(v) for k, v in kwargs.items()})

        self._handles.append(layer.register_forward_pre_hook(keep_call, with_kwargs=True))
        if place.startswith("encoder"):
            self._before(layer, partial(self._keep, f"{place}.tokens.input"))
            self._before(layer, partial(self._keep, f"{place}.globals.input"), number=1)
            self._after(layer, lambda both: self._keep(f"{place}.tokens.output", both[0]))
            self._after(layer, lambda both: self._keep(f"{place}.globals.output", both[1]))
        else:
            self._before(layer, partial(self._keep, f"{place}.input"))
            self._after(layer, partial(self._keep, f"{place}.output"))

    def _watch_modules(self, place: str, layer: Any) -> None:
        if place.startswith("encoder"):
            self._before(layer.self_attn.q_proj, partial(self._look_up, place))
        table = ENCODER_LAYER if place.startswith("encoder") else DECODER_LAYER
        for path, (input_name, output_name) in table.items():
            module = layer.get_submodule(path)
            if input_name is not None:
                self._before(module, self._keep_by_stream(place, path, input_name))
            self._after(module, self._keep_by_stream(place, path, output_name))
        for path in {path.split(".")[0] for path in table if "." in path}:
            attention = layer.get_submodule(path)
            self._handles.append(attention.register_forward_pre_hook(partial(self._enter, f"{place}.{path}")))
            self._handles.append(attention.register_forward_hook(self._leave))

    def _keep_by_stream(self, place: str, path: str, name: str) -> Callable[[Any], None]:
        """Keep the tensors of alternating calls under the names of the two streams."""
        calls, streams = count(), ("globals", "tokens") if path.endswith("out_proj") else ("tokens", "globals")
        return lambda tensor: self._keep(f"{place}.{name.format(s=streams[next(calls) % 2])}", tensor)

    def _before(self, module: Any, keep: Callable[[Any], None], number: int = 0) -> None:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            inputs = [*args, *(kwargs[name] for name in ("hidden_states", "global_hidden_states") if name in kwargs)]
            keep(inputs[number])

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: Any, keep: Callable[[Any], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda _, __, result: keep(result)))

    def _enter(self, place: str, *_: Any) -> None:
        self._attention, self._softmax_count = place, count()

    def _leave(self, *_: Any) -> None:
        self._attention = None

    def _softmax(self, scores: Any, probs: Any) -> None:
        """Keep scores and probabilities; an encoder layer computes global attention first, then local attention."""
        if self._attention is None:
            return  # in a layer without hooks inside
        part = "" if self._attention.startswith("decoder") else (".global", ".local")[next(self._softmax_count) % 2]
        self._keep(f"{self._attention}{part}.scores", scores)
        self._keep(f"{self._attention}{part}.probs", probs)

    def _look_up(self, place: str, padded: Any) -> None:
        """Find the rows of the tokens in the input of attention."""
        rows = self._inside.get(f"{place}.tokens.self_attn_layer_norm")
        if rows is not None and f"{place}.self_attn.tokens.q_proj" not in self._inside:
            self._unpadded.look_up(place, to_numpy(padded), rows)

    def _keep(self, name: str, tensor: Any) -> None:
        array = np.array(to_numpy(tensor))  # a copy: a later operation may work in place
        for part, cut in self._unpadded.tensors(name, array):
            self._names.add(part)
            self._captured[part] = cut


def copied(value: Any) -> Any:
    """Copy a tensor; return any other value itself."""
    return value.clone() if isinstance(value, torch.Tensor) else value
