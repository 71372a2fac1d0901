"""Faults of precision inside linear maps: rounded weights, rounded activations, coarse products."""

from collections.abc import Callable
from typing import Any

from faults.fault import FINE, LAYER_0, LAYER_1, Fault
from faults.injection import Injection, computing, parameter, torch


def multiples(x: Any, largest: int, size: int | None = -1) -> Any:
    """Round to multiples of the largest magnitude of a group of a row, of a row (-1) or of the tensor (None)."""
    groups = x.double().flatten() if size is None else x.double().unflatten(-1, (-1, size if size > 0 else x.shape[-1]))
    step = groups.abs().amax(-1, keepdim=True) / largest
    return ((groups / step).round() * step).reshape(x.shape)


def scaled_to_float8(w: Any) -> Any:
    scale = w.double().abs().max() / 448
    return ((w.double() / scale).to(torch.float8_e4m3fn).double() * scale).to(w.dtype)


def to_tf32(x: Any) -> Any:
    return ((x.float().view(torch.int32) + 0x1000) & -(2**13)).view(torch.float32).double()


def exact_product(module: Any, x: Any, of_input: Callable[[Any], Any], of_weight: Callable[[Any], Any]) -> Any:
    """Multiply changed operands in float64."""
    y = of_input(x).double() @ of_weight(module.weight).double().T
    return (y + (0 if module.bias is None else module.bias.double())).to(x.dtype)


def with_operands(place: str, of_input: Callable[[Any], Any], of_weight: Callable[[Any], Any]) -> Injection:
    return computing(place, lambda module, x: exact_product(module, x, of_input, of_weight))


def unchanged(x: Any) -> Any:
    return x


def summed_in(dtype: Any) -> Callable[[Any, Any], Any]:
    """Multiply with every partial sum rounded."""

    def forward(module: Any, x: Any) -> Any:
        total = torch.zeros(*x.shape[:-1], len(module.weight), dtype=dtype)
        for i in range(x.shape[-1]):
            total = total + (x[..., i, None].to(dtype) * module.weight[:, i].to(dtype))
        return total.to(x.dtype) + (0 if module.bias is None else module.bias)

    return forward


def in_two_parts(module: Any, x: Any) -> Any:
    """Multiply sums of two bfloat16 numbers, without the product of the two small ones."""
    high, w_high = x.bfloat16().double(), module.weight.bfloat16().double()
    low, w_low = (x - high).bfloat16().double(), (module.weight - w_high).bfloat16().double()
    return (high @ w_high.T + high @ w_low.T + low @ w_high.T + module.bias.double()).to(x.dtype)


ROUNDING = [
    Fault(
        "the weight is stored in float16",
        "decoder.layers.0.encoder_attn.v_proj",
        parameter("decoder.layers.0.encoder_attn.v_proj", "weight", lambda w: w.half().to(w.dtype)),
        diagnosis="the weight is rounded to float16",
        seen_in=FINE,
    ),
    Fault(
        "the weight is in int8, with a scale for each row",
        f"{LAYER_0}.tokens.fc1",
        parameter(f"{LAYER_0}.fc1", "weight", lambda w: multiples(w, 127).to(w.dtype)),
        diagnosis="the weight is rounded to int8 with a scale for each row",
    ),
    Fault(
        "the weight is in int8, with one scale",
        "decoder.layers.1.self_attn.out_proj",
        parameter("decoder.layers.1.self_attn.out_proj", "weight", lambda w: multiples(w, 127, None).to(w.dtype)),
        diagnosis="the weight is rounded to int8 with one scale",
    ),
    Fault(
        "the weight is in int4, with a scale for each 32 numbers",
        "decoder.layers.0.fc2",
        parameter("decoder.layers.0.fc2", "weight", lambda w: multiples(w, 7, 32).to(w.dtype)),
        diagnosis="the weight is rounded to int4 with a scale for each 32 numbers",
    ),
    Fault(
        "the weight is in float8 with a scale",
        f"{LAYER_0}.self_attn.tokens.q_proj",
        parameter(f"{LAYER_0}.self_attn.q_proj", "weight", scaled_to_float8),
        diagnosis="the weight is rounded to float8_e4m3 with a scale",
    ),
    Fault(
        "activations are rounded to bfloat16",
        "decoder.layers.1.encoder_attn.q_proj",
        with_operands("decoder.layers.1.encoder_attn.q_proj", lambda x: x.bfloat16(), unchanged),
        diagnosis="its input is rounded to bfloat16",
        seen_in=FINE,
    ),
    Fault(
        "activations are in int8, with a scale for each row",
        "decoder.layers.1.fc2",
        with_operands("decoder.layers.1.fc2", lambda x: multiples(x, 127), unchanged),
        diagnosis="its input is rounded to int8 with a scale for each row",
    ),
    Fault(
        "weights and activations are in int8",
        "decoder.layers.0.self_attn.out_proj",
        with_operands("decoder.layers.0.self_attn.out_proj", lambda x: multiples(x, 127), lambda w: multiples(w, 127)),
        diagnosis="weight and input are rounded to int8 with a scale for each row",
    ),
    Fault(
        "a product in TF32",
        f"{LAYER_1}.tokens.fc1",
        with_operands(f"{LAYER_1}.fc1", to_tf32, to_tf32),
        diagnosis="weight and input are rounded to tf32",
        seen_in=FINE,
    ),
    Fault(
        "a product of bfloat16 numbers in three parts",
        "decoder.layers.0.fc1",
        computing("decoder.layers.0.fc1", in_two_parts),
        diagnosis="the error has the size of products in BF16_BF16_F32_X3",
        seen_in=FINE,
    ),
    Fault(
        "sums in bfloat16",
        "decoder.layers.1.fc1",
        computing("decoder.layers.1.fc1", summed_in(torch.bfloat16)),
        diagnosis="the error has the size of products in BF16_BF16_BF16",  # not in bfloat16, where it is not told apart
    ),
]
