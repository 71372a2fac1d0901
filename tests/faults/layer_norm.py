"""Faults of LayerNorm."""

from typing import Any

from faults.fault import FINE, LAYER_0, LAYER_1, SUM, Fault
from faults.injection import (
    all_of,
    attribute,
    borrowed,
    combined,
    computing,
    for_globals,
    normalizing,
    parameter,
    piece,
    rewritten,
    torch,
)


def norm(module: Any, x: Any) -> Any:
    return torch.nn.functional.layer_norm(x, (32,), module.weight, module.bias, module.eps)


def in_one_pass(x: Any, eps: float) -> Any:
    mean = x.float().mean(-1, keepdim=True)
    variance = (x.float() ** 2).mean(-1, keepdim=True) - mean**2
    return (x - x.mean(-1, keepdim=True)) / (variance.double() + eps).sqrt()


LAYER_NORM = [
    Fault(
        "eps is 1e-6",
        f"{LAYER_1}.tokens.final_layer_norm",
        attribute(f"{LAYER_1}.final_layer_norm", "eps", 1e-6),
        diagnosis="LayerNorm's eps is 1e-06, not 1e-05",
        seen_in=FINE,
    ),
    Fault(
        "eps is 1e-12, as in the paper's code",
        f"{LAYER_0}.globals.self_attn_layer_norm",
        attribute(f"{LAYER_0}.global_self_attn_layer_norm", "eps", 1e-12),
        diagnosis="LayerNorm's eps is 1e-12, not 1e-05",
        config={"init_std": 3e-4},  # activations so small that eps matters
    ),
    Fault(
        "eps is added outside the square root",
        "decoder.layers.1.encoder_attn_layer_norm",
        normalizing(
            "decoder.layers.1.encoder_attn_layer_norm",
            lambda x, eps: (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + eps),
        ),
        diagnosis="eps is added outside the square root",
        seen_in=FINE,
    ),
    Fault(
        "the variance is divided by n - 1",
        "decoder.layers.1.final_layer_norm",
        normalizing(
            "decoder.layers.1.final_layer_norm",
            lambda x, eps: (x - x.mean(-1, True)) / (x.var(-1, correction=1, keepdim=True) + eps).sqrt(),
        ),
        diagnosis="the variance is divided by n - 1",
    ),
    Fault(
        "the mean is not subtracted (RMSNorm)",
        f"{LAYER_1}.tokens.self_attn_layer_norm",
        normalizing(
            f"{LAYER_1}.self_attn_layer_norm", lambda x, eps: x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()
        ),
        diagnosis="the mean is not subtracted",
    ),
    Fault(
        "LayerNorm without its weight",
        f"{LAYER_1}.globals.self_attn_layer_norm",
        parameter(f"{LAYER_1}.global_self_attn_layer_norm", "weight", torch.ones_like),
        diagnosis="LayerNorm has no scale",
    ),
    Fault(
        "LayerNorm without its bias",
        "decoder.layer_norm",
        parameter("decoder.layer_norm", "bias", torch.zeros_like),
        diagnosis="LayerNorm has no shift",
    ),
    Fault(
        "the final LayerNorm is missing",
        "encoder.layer_norm",
        attribute("encoder", "layer_norm", torch.nn.Identity()),
        diagnosis="LayerNorm is missing",
    ),
    Fault(
        "global tokens share the tokens' LayerNorm",
        f"{LAYER_0}.globals.self_attn_layer_norm",
        borrowed(LAYER_0, "global_self_attn_layer_norm", f"{LAYER_0}.self_attn_layer_norm"),
        diagnosis="the weights of self_attn_layer_norm are used",
    ),
    Fault(
        "global tokens have a feed-forward LayerNorm of their own",
        f"{LAYER_0}.globals.final_layer_norm",
        for_globals(f"{LAYER_0}.final_layer_norm", lambda m, x: torch.nn.functional.layer_norm(x, (32,))),
        diagnosis="LayerNorm has neither scale nor shift: weights of its own that were not loaded?",
    ),
    Fault(
        "post-LN: the residual sum is normalized, not the input of attention",
        "decoder.layers.0.self_attn_layer_norm",
        rewritten(
            "decoder.layers.0",
            piece("hidden_states = self.self_attn_layer_norm(hidden_states)", ""),
            piece(SUM, "hidden_states = self.self_attn_layer_norm(residual + hidden_states)", times=3),
        ),
        diagnosis="LayerNorm follows the residual sum (post-LN), where it should precede the sublayer (pre-LN)",
    ),
    Fault(
        "LayerNorm is applied twice",
        "decoder.layers.0.final_layer_norm",
        computing("decoder.layers.0.final_layer_norm", lambda m, x: norm(m, norm(m, x))),
        diagnosis="LayerNorm is applied twice",
    ),
    Fault(
        "the LayerNorm of another layer",
        "decoder.layers.1.encoder_attn_layer_norm",
        borrowed("decoder.layers.1", "encoder_attn_layer_norm", "decoder.layers.0.encoder_attn_layer_norm"),
        diagnosis="the weights of decoder.layers.0.encoder_attn_layer_norm are used",
    ),
    Fault(
        "the decoder ends with the encoder's last LayerNorm",
        "decoder.layer_norm",
        borrowed("decoder", "layer_norm", "encoder.layer_norm"),
        diagnosis="the weights of encoder.layer_norm are used",
    ),
    Fault(
        "the scale is 1 + weight, as in Gemma",
        "decoder.layers.0.self_attn_layer_norm",
        parameter("decoder.layers.0.self_attn_layer_norm", "weight", lambda w: w + 1),
        diagnosis="the scale is 1 + weight: the weight is that of Gemma",
    ),
    Fault(
        "the weight is stored as in Gemma, less 1",
        f"{LAYER_0}.tokens.final_layer_norm",
        parameter(f"{LAYER_0}.final_layer_norm", "weight", lambda w: w - 1),
        diagnosis="the scale is weight - 1: the weight is stored as in Gemma",
    ),
    Fault(
        "the shift is subtracted",
        "decoder.layers.1.self_attn_layer_norm",
        parameter("decoder.layers.1.self_attn_layer_norm", "bias", lambda bias: -bias),
        diagnosis="the shift is subtracted",
    ),
    Fault(
        "the variance is not rooted",
        f"{LAYER_0}.tokens.self_attn_layer_norm",
        normalizing(
            f"{LAYER_0}.self_attn_layer_norm",
            lambda x, eps: (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + eps),
        ),
        diagnosis="the root of the variance is missing",
    ),
    Fault(
        "each head is normalized apart",
        "decoder.layers.0.encoder_attn_layer_norm",
        normalizing(
            "decoder.layers.0.encoder_attn_layer_norm",
            lambda x, eps: torch.nn.functional.layer_norm(x.unflatten(-1, (4, 8)), (8,), eps=eps).flatten(-2),
        ),
        diagnosis="each head is normalized apart",
    ),
    Fault(
        "LayerNorm's weights are stored in bfloat16",
        "encoder.layer_norm",
        all_of(
            parameter("encoder.layer_norm", "weight", lambda w: w.bfloat16().to(w.dtype)),
            parameter("encoder.layer_norm", "bias", lambda b: b.bfloat16().to(b.dtype)),
        ),
        diagnosis="its weights are rounded to bfloat16",
        seen_in=FINE,
    ),
    Fault(
        "LayerNorm in float32, inside a float64 run",
        f"{LAYER_0}.tokens.final_layer_norm",
        normalizing(
            f"{LAYER_0}.final_layer_norm",
            lambda x, eps: torch.nn.functional.layer_norm(x.float(), (32,), eps=eps).double(),
        ),
        diagnosis="the error has the size of rounding in float32",
        seen_in=("float64",),
    ),
    Fault(
        "the variance is E[x^2] - E[x]^2 in float32, inside a float64 run",
        "decoder.layers.1.final_layer_norm",
        normalizing("decoder.layers.1.final_layer_norm", in_one_pass),
        diagnosis="the variance is E[x^2] - E[x]^2, whose digits cancel in float32",
        seen_in=("float64",),
    ),
    Fault(
        "LayerNorm reads a normalized stream",
        "decoder.layers.1.final_layer_norm",
        combined(
            "decoder.layers.1.final_layer_norm",
            "input",
            "decoder.layers.1.encoder_attn_layer_norm",
            lambda _, normed: normed,
        ),
        diagnosis="its input is decoder.layers.1.encoder_attn_layer_norm",
    ),
]
