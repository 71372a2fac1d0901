"""Faults of backward passes: for each, the gradient that `verify` must flag first, and how it is computed wrongly."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.golden import attention, embedding, feed_forward, head
from pegasusx_ref.golden.attention import merge_heads, split_heads
from pegasusx_ref.golden.global_local import block_bounds

D, H, V, SCALE, SMOOTHING = 32, 4, 256, 8**-0.5, 0.1


class Run(Protocol):
    """What a fault is computed from: the backward pass that it happens in."""

    ids: Mapping[str, np.ndarray]  # input_ids, decoder_input_ids, labels

    def __call__(self, name: str) -> np.ndarray:
        """Return a tensor or a gradient that the pass has computed."""

    def weight(self, name: str) -> np.ndarray:
        """Return a parameter."""


Change = Callable[[np.ndarray, Run], Any]  # from the right gradient, and the pass


class GradientFault(NamedTuple):
    """One injected bug of a backward pass.

    Attributes:
        name: the fault in words.
        where: the gradient that is computed wrongly, and must be flagged first.
        change: computes it.
        config: settings that differ from `fault_table.CONFIG`.
        label_smoothing: of the loss.
    """

    name: str
    where: str
    change: Change
    config: Mapping[str, Any] = {}
    label_smoothing: float = 0.0


def rounded_to(dtype: str, array: np.ndarray) -> Any:
    return array.astype(numpy_dtype(dtype)).astype(np.float64)


def times(factor: float) -> Change:
    return lambda right, _: factor * right


def zero(right: np.ndarray, _: Run) -> Any:
    return 0 * right


def transposed(right: np.ndarray, _: Run) -> Any:
    return right.T


def stored_as(dtype: str) -> Change:
    return lambda right, _: rounded_to(dtype, right)


def clipped(right: np.ndarray, _: Run) -> Any:
    size = np.abs(right).max() / 2
    return np.clip(right, -size, size)


# --- the loss


def counted(run: Run) -> Any:
    return run.ids["labels"] != -100


def with_loss(
    labels: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    smoothing: float = 0.0,
    factor: Callable[[Run], Any] = lambda _: 1.0,
) -> Change:
    """Compute the gradient of other labels, with another smoothing, or multiply the right one."""
    return lambda _, run: (
        head.cross_entropy_backward(run("lm_head"), labels(run.ids["labels"]), smoothing) * factor(run)
    )


def by_text(run: Run) -> Any:
    """Turn the mean over all labels into the mean of the means of texts."""
    n = counted(run)
    return (n.sum() / n.sum(axis=1) / len(n))[:, None, None]


def smoothed_over(classes: int) -> Change:
    def change(_: np.ndarray, run: Run) -> Any:
        logits, labels = run("lm_head"), run.ids["labels"]
        probs, is_label = np.exp(head.log_softmax(logits)), labels[:, :, None] == np.arange(V)
        wanted = (1 - SMOOTHING) * is_label + SMOOTHING / classes * (is_label == 0 if classes < V else 1)
        return np.where(counted(run)[:, :, None], probs - wanted, 0) / counted(run).sum()

    return change


def only_labels(_: np.ndarray, run: Run) -> Any:
    is_label = run.ids["labels"][:, :, None] == np.arange(V)
    return is_label * (-1.0 / counted(run).sum())


# --- linear maps


def rows_of(x: np.ndarray) -> Any:
    return x.reshape(-1, x.shape[-1])


def product(run: Run, upstream: str, x: str) -> Any:
    """Return a weight's gradient by one use."""
    return rows_of(run(f"{upstream}.grad")).T @ rows_of(run(x))


def weight_gradient(upstream: str, x: str) -> Change:
    return lambda _, run: product(run, upstream, x)


def of_first_text(upstream: str, x: str) -> Change:
    return lambda _, run: run(f"{upstream}.grad")[0].T @ run(x)[0]


def per_token(upstream: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Compute a bias's gradient from the gradients of all tokens."""
    return lambda _, run: change(rows_of(run(f"{upstream}.grad")))


def accumulated_in(dtype: str, upstream: str, x: str) -> Change:
    def change(_: np.ndarray, run: Run) -> Any:
        total = np.zeros(())
        for grad, row in zip(rows_of(run(f"{upstream}.grad")), rows_of(run(x)), strict=True):
            total = rounded_to(dtype, total + np.outer(grad, row))
        return total

    return change


# --- LayerNorm


def layer_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    eps: float = 1e-5,
    through_mean: float = 1.0,
    through_deviation: float = 1.0,
    inverse: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> Any:
    centered = x - x.mean(axis=-1, keepdims=True)
    root = inverse(1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps))
    normed, scaled = centered * root, grad * weight
    mean, deviation = scaled.mean(axis=-1, keepdims=True), (scaled * normed).mean(axis=-1, keepdims=True)
    return root * (scaled - through_mean * mean - through_deviation * normed * deviation)


def layer_norm(place: str, x: str, after: str, module: str, backward: Callable[..., np.ndarray]) -> Change:
    """Compute the gradient of a residual sum with a wrong LayerNorm.

    Args:
        place: of the trace points.
        x: the LayerNorm's input.
        after: what the residual goes on to.
        module: of the parameters.
        backward: the wrong LayerNorm's.
    """
    norm = module.rpartition(".")[2].replace("global_", "")

    def change(_: np.ndarray, run: Run) -> Any:
        through = backward(run(f"{place}.{norm}.grad"), run(f"{place}.{x}"), run.weight(f"{module}.weight"))
        return run(f"{place}.{after}.grad") + through

    return change


def in_decoder(backward: Callable[..., np.ndarray]) -> Change:
    return layer_norm(
        "decoder.layers.1", "encoder_attn_residual", "output", "decoder.layers.1.final_layer_norm", backward
    )


def in_encoder(stream: str, backward: Callable[..., np.ndarray]) -> Change:
    place, module = f"encoder.layers.1.{stream}", "encoder.layers.1.final_layer_norm"
    return layer_norm(place, "self_attn_residual", "output", module, backward)


def without_weight(grad: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Any:
    return layer_norm_backward(grad, x, np.ones_like(weight))


def unbiased(grad: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Any:
    return layer_norm_backward(grad, x, weight, through_mean=D / (D - 1), through_deviation=D / (D - 1))


def times_input(_: np.ndarray, run: Run) -> Any:
    grad = run("decoder.layers.0.self_attn_layer_norm.grad") * run("decoder.layers.0.input")
    return grad.sum(axis=(0, 1))


# --- activations


def sigmoid(x: np.ndarray) -> Any:
    return 1 / (1 + np.exp(-x))


def approximate_gelu_slope(x: np.ndarray) -> Any:
    s = sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1 - s)


def slope(place: str, function: Callable[[np.ndarray], np.ndarray], at: str = "fc1") -> Change:
    return lambda _, run: run(f"{place}.activation.grad") * function(run(f"{place}.{at}"))


# --- attention


def softmax_without_sum(place: str) -> Change:
    return lambda _, run: run(f"{place}.probs.grad") * run(f"{place}.probs")


def softmax_with(place: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Compute a softmax's gradient from other probabilities."""
    return lambda _, run: attention.softmax_backward(run(f"{place}.probs.grad"), change(run(f"{place}.probs")))


def without_mask(place: str, keys: str) -> Change:
    """Compute a softmax's gradient from probabilities that were computed again, without the mask."""

    def change(_: np.ndarray, run: Run) -> Any:
        q, k = (split_heads(run(f"{place}.{name}"), H) for name in ("q_proj", keys))
        probs = attention.softmax(SCALE * q @ k.swapaxes(2, 3))
        return attention.softmax_backward(run(f"{place}.probs.grad"), probs)

    return change


def encoder_keys(
    run: Run, layer: int, what: str, blocks: Callable[[list[Any]], list[Any]] = lambda x: x, from_globals: bool = True
) -> Any:
    """Collect gradients of the encoder's keys, "k", or values, "v", of global tokens and tokens (B, G + T, D).

    Args:
        run: the pass.
        layer: its number.
        what: "k" or "v".
        blocks: selects among (number, start, stop) those that are collected from.
        from_globals: whether global queries are collected from too.
    """
    place, G = f"encoder.layers.{layer}.self_attn", 4
    T = run(f"{place}.tokens.q_proj").shape[1]
    q = split_heads(run(f"{place}.tokens.q_proj"), H)
    global_q = split_heads(run(f"{place}.globals.q_proj"), H)

    def collected(part: str, queries: np.ndarray) -> Any:
        if what == "v":
            return run(f"{place}.{part}.probs").swapaxes(2, 3) @ run(f"{place}.{part}.context.grad")
        return run(f"{place}.{part}.scores.grad").swapaxes(2, 3) @ queries * SCALE

    total = np.zeros((len(q), H, G + T, D // H))
    if from_globals:
        total += collected("global", global_q)
    numbered = [(n, *bounds) for n, bounds in enumerate(block_bounds(T, 8, layer % 2 == 1))]
    for n, start, stop in blocks(numbered):
        seen = np.r_[:G, G + start : G + stop]
        total[:, :, seen] += collected(f"local.{n}", q[:, :, start:stop])
    return merge_heads(total)


def global_keys(layer: int, what: str, **how: Any) -> Change:
    return lambda _, run: encoder_keys(run, layer, what, **how)[:, :4]


def token_keys(layer: int, what: str, **how: Any) -> Change:
    return lambda _, run: encoder_keys(run, layer, what, **how)[:, 4:]


def unstaggered(right: np.ndarray, run: Run) -> Any:
    """Shift the gradients of a staggered layer's keys by half a block, as if its blocks were those of other layers."""
    return np.roll(right, 4, axis=1)


def heads_reversed(right: np.ndarray, _: Run) -> Any:
    return merge_heads(split_heads(right, H)[:, ::-1])


def interleaved(right: np.ndarray, _: Run) -> Any:
    return right.reshape(*right.shape[:2], H, -1).swapaxes(2, 3).reshape(right.shape)


# --- residual streams


def from_names(*names: str) -> Change:
    """Add up other gradients."""
    return lambda _, run: sum((run(f"{name}.grad") for name in names), np.zeros(()))


def of_encoder(*maps: str) -> Change:
    """Collect the gradients of the encoder's output from some of the cross-attention's maps."""
    return lambda _, run: sum(
        (run(f"decoder.layers.{name}.grad") @ run.weight(f"decoder.layers.{name}.weight") for name in maps),
        np.zeros(()),
    )


# --- the embedding table


def look_up(
    run: Run,
    side: str,
    scale: float = D**0.5,
    padding_id: int | None = 0,
) -> Any:
    ids = run.ids["input_ids" if side == "encoder" else "decoder_input_ids"]
    return embedding.embed_tokens_backward(run(f"{side}.embed_tokens.grad"), ids, V, scale, padding_id)


def of_head(run: Run) -> Any:
    return product(run, "lm_head", "decoder.layer_norm")


def table(*uses: Callable[[Run], np.ndarray]) -> Change:
    return lambda _, run: sum((use(run) for use in uses), np.zeros(()))


def of_source(run: Run, **how: Any) -> Any:
    return look_up(run, "encoder", **how)


def of_target(run: Run, **how: Any) -> Any:
    return look_up(run, "decoder", **how)


def overwriting(run: Run) -> Any:
    found = np.zeros((V, D))
    found[run.ids["input_ids"]] += run("encoder.embed_tokens.grad") * D**0.5
    found[0] = 0
    return found


def without_padding_row(right: np.ndarray, _: Run) -> Any:
    return np.where(np.arange(V)[:, None] == 0, 0, right)


def of_some_texts(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda _, run: change(run("encoder.embed_global.grad"))


L0, L1, E0, E1 = (f"{side}.layers.{i}" for side in ("decoder", "encoder") for i in (0, 1))
FFN0, NORMED0 = f"{L0}.fc1", f"{L0}.final_layer_norm"

LOSS = [
    GradientFault(
        "the sum over labels in place of the mean", "lm_head.grad", with_loss(factor=lambda run: counted(run).sum())
    ),
    GradientFault(
        "the mean over all positions, those of -100 too",
        "lm_head.grad",
        with_loss(factor=lambda run: counted(run).mean()),
    ),
    GradientFault("the mean of the texts' means", "lm_head.grad", with_loss(factor=by_text)),
    GradientFault(
        "labels of -100 count as the padding id", "lm_head.grad", with_loss(lambda x: np.where(x == -100, 0, x))
    ),
    GradientFault(
        "labels of the padding id are skipped", "lm_head.grad", with_loss(lambda x: np.where(x == 0, -100, x))
    ),
    GradientFault("labels are shifted by one position", "lm_head.grad", with_loss(lambda x: np.roll(x, 1, axis=1))),
    GradientFault("the loss scale is not undone", "lm_head.grad", times(1024)),
    GradientFault("label smoothing is ignored", "lm_head.grad", with_loss(), label_smoothing=SMOOTHING),
    GradientFault(
        "label smoothing over V - 1 classes", "lm_head.grad", smoothed_over(V - 1), label_smoothing=SMOOTHING
    ),
    GradientFault(
        "label smoothing over 8 more classes", "lm_head.grad", smoothed_over(V + 8), label_smoothing=SMOOTHING
    ),
    GradientFault("the softmax's share of the loss is missing", "lm_head.grad", only_labels),
    GradientFault("gradients of logits are clipped", "lm_head.grad", clipped),
    GradientFault("gradients of logits are bfloat16", "lm_head.grad", stored_as("bfloat16")),
]
LINEAR = [
    GradientFault("the bias has no gradient", f"{L1}.fc1.bias.grad", zero),
    GradientFault("the bias's gradient is a mean over tokens", f"{E0}.fc2.bias.grad", times(1 / 87)),
    GradientFault(
        "the bias's gradient is that of the first token", f"{L0}.fc2.bias.grad", per_token(f"{L0}.fc2", lambda x: x[0])
    ),
    GradientFault("the weight's gradient is transposed", f"{L1}.encoder_attn.q_proj.weight.grad", transposed),
    GradientFault("the weight's gradient is a mean over texts", f"{L0}.fc1.weight.grad", times(1 / 3)),
    GradientFault(
        "the weight's gradient is that of the first text", f"{L0}.fc1.weight.grad", of_first_text(FFN0, NORMED0)
    ),
    GradientFault("the weight's gradient is added twice", f"{E1}.fc1.weight.grad", times(2)),
    GradientFault("the average of two steps is half", f"{E1}.fc2.weight.grad", times(0.5)),
    GradientFault("the loss scale is not undone in one weight", f"{L0}.fc2.weight.grad", times(65536)),
    GradientFault(
        "the weight's gradient is accumulated in bfloat16",
        f"{L0}.fc1.weight.grad",
        accumulated_in("bfloat16", FFN0, NORMED0),
    ),
    GradientFault(
        "the weight's gradient is accumulated in float16",
        f"{L0}.encoder_attn.k_proj.weight.grad",
        accumulated_in("float16", f"{L0}.encoder_attn.k_proj", "encoder.layer_norm"),
    ),
    GradientFault(
        "the weight's gradient is stored in bfloat16", f"{E0}.self_attn.out_proj.weight.grad", stored_as("bfloat16")
    ),
    GradientFault(
        "the weight's gradient is that of the input before LayerNorm",
        f"{L0}.fc1.weight.grad",
        weight_gradient(FFN0, f"{L0}.encoder_attn_residual"),
    ),
    GradientFault(
        "the weight's gradient of the cross-attention is that of the target",
        f"{L1}.encoder_attn.q_proj.weight.grad",
        weight_gradient(f"{L1}.encoder_attn.q_proj", f"{L1}.self_attn_layer_norm"),
    ),
    GradientFault(
        "the global tokens' use of a weight is overwritten",
        f"{E0}.self_attn.q_proj.weight.grad",
        weight_gradient(f"{E0}.self_attn.tokens.q_proj", f"{E0}.tokens.self_attn_layer_norm"),
    ),
    GradientFault(
        "the tokens' use of a weight is overwritten",
        f"{E1}.self_attn.v_proj.weight.grad",
        weight_gradient(f"{E1}.self_attn.globals.v_proj", f"{E1}.globals.self_attn_layer_norm"),
    ),
    GradientFault(
        "a weight of the feed-forward sublayer has no gradient of global tokens",
        f"{E0}.fc1.weight.grad",
        weight_gradient(f"{E0}.tokens.fc1", f"{E0}.tokens.final_layer_norm"),
    ),
    GradientFault(
        "the input's gradient uses the transposed weight",
        f"{L1}.self_attn.context.grad",
        lambda _, run: split_heads(
            run(f"{L1}.self_attn.out_proj.grad") @ run.weight(f"{L1}.self_attn.out_proj.weight").T, H
        ),
    ),
    GradientFault("the gradient of one map has the wrong sign", f"{L0}.encoder_attn.q_proj.grad", times(-1)),
]
LAYER_NORM = [
    GradientFault(
        "LayerNorm's mean passes nothing back",
        f"{L1}.encoder_attn_residual.grad",
        in_decoder(partial(layer_norm_backward, through_mean=0.0)),
    ),
    GradientFault(
        "LayerNorm's deviation passes nothing back",
        f"{E1}.tokens.self_attn_residual.grad",
        in_encoder("tokens", partial(layer_norm_backward, through_deviation=0.0)),
    ),
    GradientFault(
        "both are constants in LayerNorm",
        f"{E1}.tokens.self_attn_residual.grad",
        in_encoder("tokens", partial(layer_norm_backward, through_mean=0.0, through_deviation=0.0)),
    ),
    GradientFault(
        "eps is 1e-6 in LayerNorm's backward pass",
        f"{L1}.encoder_attn_residual.grad",
        in_decoder(partial(layer_norm_backward, eps=1e-6)),
        {"init_std": 0.02},  # small activations, so that eps matters
    ),
    GradientFault(
        "eps is missing in LayerNorm's backward pass",
        f"{E1}.tokens.self_attn_residual.grad",
        in_encoder("tokens", partial(layer_norm_backward, eps=0.0)),
    ),
    GradientFault("LayerNorm's means are divided by n - 1", f"{L1}.encoder_attn_residual.grad", in_decoder(unbiased)),
    GradientFault(
        "LayerNorm's backward pass without its scale", f"{L1}.encoder_attn_residual.grad", in_decoder(without_weight)
    ),
    GradientFault(
        "LayerNorm's deviation is stored in bfloat16",
        f"{L1}.encoder_attn_residual.grad",
        in_decoder(partial(layer_norm_backward, inverse=partial(rounded_to, "bfloat16"))),
    ),
    GradientFault(
        "LayerNorm's scale collects from inputs that are not normalized",
        f"{L0}.self_attn_layer_norm.weight.grad",
        times_input,
    ),
    GradientFault("LayerNorm's shift has no gradient", f"{L1}.final_layer_norm.bias.grad", zero),
    GradientFault("LayerNorm's shift collects a mean", "decoder.layer_norm.bias.grad", times(1 / 45)),
    GradientFault(
        "the tokens' LayerNorm collects from the global tokens",
        f"{E1}.self_attn_layer_norm.bias.grad",
        per_token(f"{E1}.globals.self_attn_layer_norm", lambda x: x.sum(axis=0)),
    ),
    GradientFault(
        "a shared LayerNorm has no gradient of global tokens",
        f"{E0}.final_layer_norm.bias.grad",
        per_token(f"{E0}.tokens.final_layer_norm", lambda x: x.sum(axis=0)),
    ),
]
GELU = {"activation_function": "gelu"}
ACTIVATIONS = [
    GradientFault(
        "the slope of gelu's tanh form for gelu", f"{L1}.fc1.grad", slope(L1, feed_forward.gelu_tanh_slope), GELU
    ),
    GradientFault(
        "the slope of gelu for its tanh form",
        f"{L1}.fc1.grad",
        slope(L1, feed_forward.gelu_slope),
        {"activation_function": "gelu_new"},
    ),
    GradientFault(
        "gelu's slope by a sigmoid", f"{E1}.tokens.fc1.grad", slope(f"{E1}.tokens", approximate_gelu_slope), GELU
    ),
    GradientFault(
        "gelu's slope without the density", f"{L1}.fc1.grad", slope(L1, lambda x: feed_forward.gelu(x) / x), GELU
    ),
    GradientFault(
        "gelu's slope at its result", f"{L1}.fc1.grad", slope(L1, feed_forward.gelu_slope, "activation"), GELU
    ),
    GradientFault("silu's slope is a sigmoid", f"{L1}.fc1.grad", slope(L1, sigmoid), {"activation_function": "silu"}),
    GradientFault("relu's slope is 1", f"{E0}.tokens.fc1.grad", slope(f"{E0}.tokens", np.ones_like)),
    GradientFault("relu's slope is 0.01 below 0", f"{L0}.fc1.grad", slope(L0, lambda x: np.where(x > 0, 1, 0.01))),
]
ATTENTION = [
    GradientFault(
        "the softmax's sum is not subtracted", f"{L1}.self_attn.scores.grad", softmax_without_sum(f"{L1}.self_attn")
    ),
    GradientFault(
        "the softmax's sum is not subtracted in one block",
        f"{E1}.self_attn.local.1.scores.grad",
        softmax_without_sum(f"{E1}.self_attn.local.1"),
    ),
    GradientFault(
        "the softmax's sum is not subtracted for global queries",
        f"{E0}.self_attn.global.scores.grad",
        softmax_without_sum(f"{E0}.self_attn.global"),
    ),
    GradientFault(
        "probabilities are bfloat16 in the backward pass",
        f"{L0}.encoder_attn.scores.grad",
        softmax_with(f"{L0}.encoder_attn", partial(rounded_to, "bfloat16")),
    ),
    GradientFault(
        "the source's mask is forgotten in the backward pass",
        f"{L1}.encoder_attn.scores.grad",
        without_mask(f"{L1}.encoder_attn", "k_proj"),
    ),
    GradientFault(
        "the causal mask is forgotten in the backward pass",
        f"{L0}.self_attn.scores.grad",
        without_mask(f"{L0}.self_attn", "k_proj"),
    ),
    GradientFault("the scale of queries is forgotten", f"{L1}.encoder_attn.q_proj.grad", times(1 / SCALE)),
    GradientFault("the scale of keys is applied twice", f"{L1}.self_attn.k_proj.grad", times(SCALE)),
    GradientFault(
        "the scale of the encoder's queries is forgotten", f"{E1}.self_attn.tokens.q_proj.grad", times(1 / SCALE)
    ),
    GradientFault(
        "global keys collect from one block only",
        f"{E1}.self_attn.globals.k_proj.grad",
        global_keys(1, "k", blocks=lambda x: x[:1]),
    ),
    GradientFault(
        "global values are overwritten by the last block",
        f"{E0}.self_attn.globals.v_proj.grad",
        global_keys(0, "v", blocks=lambda x: x[-1:]),
    ),
    GradientFault(
        "global keys collect from global queries only",
        f"{E0}.self_attn.globals.k_proj.grad",
        global_keys(0, "k", blocks=lambda x: []),
    ),
    GradientFault(
        "tokens' keys collect from no global query",
        f"{E0}.self_attn.tokens.k_proj.grad",
        token_keys(0, "k", from_globals=False),
    ),
    GradientFault(
        "the last block's values have no gradient",
        f"{E0}.self_attn.tokens.v_proj.grad",
        token_keys(0, "v", blocks=lambda x: x[:-1]),
    ),
    GradientFault("staggering is ignored in the backward pass", f"{E1}.self_attn.tokens.k_proj.grad", unstaggered),
    GradientFault("heads are in reverse order", f"{L0}.self_attn.v_proj.grad", heads_reversed),
    GradientFault("heads are interleaved", f"{E0}.self_attn.globals.q_proj.grad", interleaved),
    GradientFault("keys have no gradient", f"{L0}.encoder_attn.k_proj.grad", zero),
]
STREAMS = [
    GradientFault(
        "the residual passes nothing back",
        f"{L0}.self_attn_residual.grad",
        lambda right, run: right - run(f"{L0}.encoder_attn_residual.grad"),
    ),
    GradientFault(
        "a sublayer passes nothing back", f"{L1}.self_attn_residual.grad", from_names(f"{L1}.encoder_attn_residual")
    ),
    GradientFault(
        "the residual counts twice",
        f"{E0}.tokens.self_attn_residual.grad",
        lambda right, run: right + run(f"{E0}.tokens.output.grad"),
    ),
    GradientFault(
        "the residual of global tokens passes nothing back",
        f"{E0}.globals.self_attn_residual.grad",
        lambda right, run: right - run(f"{E0}.globals.output.grad"),
    ),
    GradientFault("the gradient stops at the global tokens", f"{E1}.globals.self_attn_layer_norm.grad", zero),
    GradientFault("the gradient stops at the encoder", "encoder.layer_norm.grad", zero),
    GradientFault(
        "the encoder collects from the last decoder layer only",
        "encoder.layer_norm.grad",
        of_encoder("1.encoder_attn.k_proj", "1.encoder_attn.v_proj"),
    ),
    GradientFault(
        "the encoder collects from values only",
        "encoder.layer_norm.grad",
        of_encoder("0.encoder_attn.v_proj", "1.encoder_attn.v_proj"),
    ),
    GradientFault(
        "queries pass nothing back",
        f"{L1}.self_attn_layer_norm.grad",
        lambda right, run: right - run(f"{L1}.self_attn.q_proj.grad") @ run.weight(f"{L1}.self_attn.q_proj.weight"),
    ),
]
TABLE = [
    GradientFault("the table's gradient is that of the head", "shared.weight.grad", table(of_head)),
    GradientFault("the table's gradient is that of the source", "shared.weight.grad", table(of_source)),
    GradientFault("the table's gradient without the head", "shared.weight.grad", table(of_source, of_target)),
    GradientFault("the table's gradient without the target", "shared.weight.grad", table(of_source, of_head)),
    GradientFault("repeated tokens overwrite each other", "shared.weight.grad", table(overwriting, of_target, of_head)),
    GradientFault(
        "look-ups of the padding id have a gradient",
        "shared.weight.grad",
        table(of_source, partial(of_target, padding_id=None), of_head),
    ),
    GradientFault("the padding id has no gradient of the head", "shared.weight.grad", without_padding_row),
    GradientFault(
        "the embedding's scale is forgotten",
        "shared.weight.grad",
        table(partial(of_source, scale=1.0), partial(of_target, scale=1.0), of_head),
    ),
    GradientFault(
        "the embedding's scale counts for the head too",
        "shared.weight.grad",
        lambda right, run: right + (D**0.5 - 1) * of_head(run),
    ),
    GradientFault(
        "global tokens collect from the first text", "encoder.embed_global.weight.grad", of_some_texts(lambda x: x[0])
    ),
    GradientFault(
        "global tokens collect a mean over texts",
        "encoder.embed_global.weight.grad",
        of_some_texts(lambda x: x.mean(axis=0)),
    ),
    GradientFault("global tokens' embeddings are scaled", "encoder.embed_global.weight.grad", times(D**0.5)),
]
GRADIENT_FAULTS = [*LOSS, *LINEAR, *LAYER_NORM, *ACTIVATIONS, *ATTENTION, *STREAMS, *TABLE]
