"""Faults of linear maps: weights, biases, inputs."""

from typing import Any

from faults.fault import FINE, LAYER_0, LAYER_1, ROOT, Fault
from faults.injection import (
    altered,
    at,
    borrowed,
    computing,
    for_globals,
    noise,
    nudged,
    parameter,
    reading,
    returning,
    swapped,
    torch,
)

relu = torch.nn.functional.relu


def fused(place: str, parts: str, cut: Any) -> Any:
    """Rearrange the rows of fused projections (P, H, F, D)."""

    def inject(model: Any) -> None:
        modules = [getattr(at(model, place), f"{part}_proj") for part in parts]
        weights = torch.stack([module.weight.detach() for module in modules]).unflatten(1, (4, 8))
        for module, weight in zip(modules, cut(weights), strict=True):
            module.weight = torch.nn.Parameter(weight.reshape(32, 32).clone(), requires_grad=False)

    return inject


def normalized_twice(side: str, norm: str) -> Any:
    """Normalize the input of a module once more."""
    return lambda model: altered(side, input=lambda x: at(model, norm).forward(x))(model)


def in_bfloat16(module: Any, x: Any) -> Any:
    return torch.nn.functional.linear(x.bfloat16(), module.weight.bfloat16(), module.bias.bfloat16()).to(x.dtype)


def truncated_to_bfloat16(module: Any, x: Any) -> Any:
    exact = torch.nn.functional.linear(x.double(), module.weight.double(), module.bias.double()).float()
    return (exact.view(torch.int32) & -(2**16)).view(torch.float32).to(x.dtype)


WEIGHTS = [
    Fault(
        "queries and keys are swapped",
        "decoder.layers.1.self_attn.q_proj",
        swapped("decoder.layers.1.self_attn", "q_proj", "k_proj"),
        diagnosis="the weights of k_proj are used",
    ),
    Fault(
        "a weight is transposed",
        "decoder.layers.0.encoder_attn.out_proj",
        parameter("decoder.layers.0.encoder_attn.out_proj", "weight", lambda w: w.T),
        diagnosis="the weight is transposed",
    ),
    Fault(
        "the bias is missing",
        "decoder.layers.0.fc1",
        parameter("decoder.layers.0.fc1", "bias", torch.zeros_like),
        diagnosis="the bias is missing",
    ),
    Fault(
        "the bias is added twice",
        "decoder.layers.1.fc2",
        parameter("decoder.layers.1.fc2", "bias", lambda bias: 2 * bias),
        diagnosis="the bias is added twice",
    ),
    Fault(
        "one bias is off by 1e-4",
        "decoder.layers.0.fc2",
        nudged("decoder.layers.0.fc2", "bias", (3,), 1e-4),
        diagnosis="the bias differs",
        seen_in=FINE,
    ),
    Fault(
        "one weight is off by 1e-3",
        f"{LAYER_1}.self_attn.tokens.out_proj",
        nudged(f"{LAYER_1}.self_attn.out_proj", "weight", (5, 7), 1e-3),
        diagnosis="the weight differs: another matrix",
    ),
    Fault(
        "one weight matrix is rounded to float8",
        f"{LAYER_1}.tokens.fc2",
        parameter(f"{LAYER_1}.fc2", "weight", lambda w: w.to(torch.float8_e4m3fn).to(w.dtype)),
        diagnosis="the weight is rounded to float8_e4m3",
    ),
    Fault(
        "the weights of another layer",
        "decoder.layers.1.fc1",
        borrowed("decoder.layers.1", "fc1", "decoder.layers.0.fc1"),
        diagnosis="the weights of decoder.layers.0.fc1 are used",
    ),
    Fault(
        "global tokens have a query projection of their own",
        f"{LAYER_1}.self_attn.globals.q_proj",
        for_globals(
            f"{LAYER_1}.self_attn.q_proj",
            lambda m, x: torch.nn.functional.linear(x, (0.2 * noise(m.weight)).to(x.dtype)),
        ),
    ),
    Fault(
        "a product in bfloat16",
        "decoder.layers.1.fc1",
        computing("decoder.layers.1.fc1", in_bfloat16),
        seen_in=FINE,
        diagnosis="its numbers have bfloat16 precision only: computed or stored in bfloat16",
    ),
    Fault(
        "a result is truncated to bfloat16, not rounded",
        "decoder.layers.1.fc2",
        computing("decoder.layers.1.fc2", truncated_to_bfloat16),
        diagnosis="its numbers are truncated to bfloat16, not rounded",
    ),
    Fault(
        "the head is not tied to the embeddings",
        "lm_head",
        parameter("lm_head", "weight", lambda w: 0.2 * noise(w)),
        diagnosis="the weight differs: the head is not tied to the embeddings",
    ),
    Fault(
        "logits have a bias",
        "lm_head",
        lambda model: setattr(at(model, "lm_head"), "bias", torch.nn.Parameter(noise(model.lm_head.weight[:, 0]))),
        diagnosis="a bias is added",
    ),
    Fault(
        "logits are divided by sqrt(D), as in a tied T5",
        "lm_head",
        returning("lm_head", lambda x, _: x / ROOT),
        diagnosis="logits are divided by sqrt(D)",
    ),
    Fault(
        "cross-attention has the weights of self-attention",
        "decoder.layers.0.encoder_attn.q_proj",
        borrowed("decoder.layers.0.encoder_attn", "q_proj", "decoder.layers.0.self_attn.q_proj"),
        diagnosis="the weights of decoder.layers.0.self_attn.q_proj are used",
    ),
    Fault(
        "the decoder has a matrix of the encoder",
        "decoder.layers.1.self_attn.v_proj",
        borrowed("decoder.layers.1.self_attn", "v_proj", f"{LAYER_0}.self_attn.v_proj"),
        diagnosis="the weights of encoder.layers.0.self_attn.v_proj are used",
    ),
    Fault(
        "the bias of another layer",
        "decoder.layers.0.fc1",
        lambda model: setattr(at(model, "decoder.layers.0.fc1"), "bias", at(model, "decoder.layers.1.fc1").bias),
        diagnosis="the bias of decoder.layers.1.fc1 is used",
    ),
    Fault(
        "the bias is subtracted",
        f"{LAYER_1}.tokens.fc1",
        parameter(f"{LAYER_1}.fc1", "bias", lambda bias: -bias),
        diagnosis="the bias is subtracted",
    ),
    Fault(
        "queries, keys and values are cut from a fused matrix as in GPT-NeoX",
        f"{LAYER_0}.self_attn.tokens.q_proj",
        fused(f"{LAYER_0}.self_attn", "qkv", lambda w: w.reshape(4, 3, 8, 32).transpose(0, 1)),
        diagnosis="the fused matrix of q, k, v is cut as (H, 3, F), not (3, H, F)",
    ),
    Fault(
        "the fused matrix of GPT-NeoX is cut in three blocks",
        "decoder.layers.0.self_attn.q_proj",
        fused("decoder.layers.0.self_attn", "qkv", lambda w: w.transpose(0, 1).reshape(3, 4, 8, 32)),
        diagnosis="the fused matrix of q, k, v is cut as (3, H, F), not (H, 3, F)",
    ),
    Fault(
        "keys and values are cut from a fused matrix head by head",
        "decoder.layers.1.encoder_attn.k_proj",
        fused("decoder.layers.1.encoder_attn", "kv", lambda w: w.reshape(4, 2, 8, 32).transpose(0, 1)),
        diagnosis="the fused matrix of k, v is cut as (H, 2, F), not (2, H, F)",
    ),
    Fault(
        "keys are permuted for rotary positions",
        "decoder.layers.1.self_attn.k_proj",
        parameter(
            "decoder.layers.1.self_attn.k_proj",
            "weight",
            lambda w: w.reshape(4, 4, 2, 32).transpose(1, 2).flatten(0, 2),
        ),
        diagnosis="rows of the weight are in the order of rotary halves: even features of a head first",
    ),
    Fault(
        "values are stored as (F, H)",
        "decoder.layers.0.self_attn.v_proj",
        parameter(
            "decoder.layers.0.self_attn.v_proj",
            "weight",
            lambda w: w.unflatten(0, (4, 8)).transpose(0, 1).flatten(0, 1),
        ),
        diagnosis="heads are in the order (F, H), not (H, F)",
    ),
    Fault(
        "out_proj takes heads in the reverse order",
        "decoder.layers.1.self_attn.out_proj",
        parameter("decoder.layers.1.self_attn.out_proj", "weight", lambda w: w.unflatten(1, (4, 8)).flip(1).flatten(1)),
        diagnosis="heads are merged in the reverse order",
    ),
    Fault(
        "logits are multiplied by sqrt(D)",
        "lm_head",
        returning("lm_head", lambda x, _: x * ROOT),
        diagnosis="logits are multiplied by sqrt(D): the head is tied to the scaled embeddings",
    ),
    Fault(
        "logits are divided by a temperature of 0.8",
        "lm_head",
        returning("lm_head", lambda x, _: x / 0.8),
        diagnosis="the result is multiplied by 1.25",
    ),
    Fault(
        "the feed-forward sublayer reads the residual",
        "decoder.layers.1.fc1",
        reading("decoder.layers.1.fc1", "decoder.layers.1.final_layer_norm"),
        diagnosis="its input is decoder.layers.1.encoder_attn_residual",
    ),
    Fault(
        "the feed-forward sublayer normalizes twice",
        "decoder.layers.0.fc1",
        normalized_twice("decoder.layers.0.fc1", "decoder.layers.0.final_layer_norm"),
        diagnosis="its input is normalized twice",
    ),
    Fault(
        "the head reads the decoder without its final LayerNorm",
        "lm_head",
        reading("lm_head", "decoder.layer_norm"),
        diagnosis="its input is decoder.layers.1.output",
    ),
    Fault(
        "queries are of another batch row",
        "decoder.layers.0.self_attn.q_proj",
        altered("decoder.layers.0.self_attn.q_proj", input=lambda x: x.roll(1, 0)),
        diagnosis="its input is of another batch row",
    ),
    Fault(
        "values are projected from what is not normalized",
        "decoder.layers.1.self_attn.v_proj",
        reading("decoder.layers.1.self_attn.v_proj", "decoder.layers.1.self_attn_layer_norm"),
        diagnosis="its input is decoder.layers.1.input",
    ),
    Fault(
        "the activation follows fc2 too",
        "decoder.layers.0.fc2",
        returning("decoder.layers.0.fc2", lambda y, _: relu(y)),
        diagnosis="the activation is applied to the result",
    ),
]
