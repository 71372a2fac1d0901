"""Faults of activations, residual sums, and the wiring between operations."""

from collections.abc import Callable
from typing import Any

from faults.fault import FINE, LAYER_0, LAYER_1, SUM, Fault
from faults.injection import (
    Injection,
    altered,
    at,
    attribute,
    combined,
    piece,
    returning,
    rewritten,
    torch,
)

gelu = torch.nn.functional.gelu


def bias_last(linear: Any) -> Callable[[Any], Any]:
    return lambda x: torch.relu(x - linear.bias) + linear.bias


def activation(place: str, function: Callable[[Any], Any]) -> Injection:
    """Replace the activation of a layer by a function."""

    def inject(model: Any) -> None:
        module = torch.nn.Identity()
        module.forward = function
        at(model, place).activation_fn = module

    return inject


def starting(layer: str, other: str) -> Injection:
    """Let a layer start with the tokens that another one starts with."""

    def inject(model: Any) -> None:
        found: list[Any] = []
        at(model, other).register_forward_pre_hook(lambda _, args: found.append(args[0]))
        at(model, layer).register_forward_pre_hook(lambda _, args: (found[-1], *args[1:]))

    return inject


ACTIVATIONS = [
    Fault(
        "gelu in place of relu",
        f"{LAYER_0}.tokens.activation",
        attribute(LAYER_0, "activation_fn", torch.nn.GELU()),
        diagnosis="the activation is gelu, not relu",
    ),
    Fault(
        "relu in place of gelu",
        "decoder.layers.0.activation",
        attribute("decoder.layers.0", "activation_fn", torch.nn.ReLU()),
        diagnosis="the activation is relu, not gelu",
        config={"activation_function": "gelu"},
    ),
    Fault(
        "gelu by tanh, not by erf",
        f"{LAYER_1}.tokens.activation",
        attribute(LAYER_1, "activation_fn", torch.nn.GELU(approximate="tanh")),
        diagnosis="the activation is gelu_new, not gelu",
        seen_in=FINE,
        config={"activation_function": "gelu"},
    ),
    Fault(
        "gelu by erf, not by tanh",
        "decoder.layers.1.activation",
        attribute("decoder.layers.1", "activation_fn", torch.nn.GELU()),
        diagnosis="the activation is gelu, not gelu_new",
        seen_in=FINE,
        config={"activation_function": "gelu_new"},
    ),
    Fault(
        "the activation is missing",
        "decoder.layers.1.activation",
        attribute("decoder.layers.1", "activation_fn", torch.nn.Identity()),
        diagnosis="the activation is missing",
    ),
    Fault(
        "quick_gelu in place of gelu",
        "decoder.layers.1.activation",
        activation("decoder.layers.1", lambda x: x * torch.sigmoid(1.702 * x)),
        diagnosis="the activation is quick_gelu, not gelu",
        seen_in=FINE,
        config={"activation_function": "gelu"},
    ),
    Fault(
        "the square of relu",
        f"{LAYER_1}.tokens.activation",
        activation(LAYER_1, lambda x: torch.relu(x) ** 2),
        diagnosis="the activation is the square of relu, not relu",
    ),
    Fault(
        "relu leaks",
        "decoder.layers.0.activation",
        attribute("decoder.layers.0", "activation_fn", torch.nn.LeakyReLU(0.01)),
        diagnosis="the activation is leaky relu with slope 0.01, not relu",
    ),
    Fault(
        "silu in place of relu",
        f"{LAYER_0}.tokens.activation",
        attribute(LAYER_0, "activation_fn", torch.nn.SiLU()),
        diagnosis="the activation is silu, not relu",
    ),
    Fault(
        "the activation is applied twice",
        "decoder.layers.0.activation",
        activation("decoder.layers.0", lambda x: gelu(gelu(x))),
        diagnosis="the activation is applied twice",
        config={"activation_function": "gelu"},
    ),
    Fault(
        "the bias is added after the activation",
        "decoder.layers.1.activation",
        lambda model: activation("decoder.layers.1", bias_last(at(model, "decoder.layers.1.fc1")))(model),
        diagnosis="the bias is added after the activation",
    ),
    Fault(
        "dropout is left on after the activation",
        f"{LAYER_1}.tokens.activation",
        attribute(LAYER_1, "activation_fn", torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.2))),
        diagnosis="dropout is left on, with a rate of 0.2",
    ),
    Fault(
        "relu with slope 1.5",
        "decoder.layers.1.activation",
        activation("decoder.layers.1", lambda x: 1.5 * torch.relu(x)),
        diagnosis="the result is multiplied by 1.5",
    ),
]

STREAMS = [
    Fault(
        "the residual is missing",
        "decoder.layers.0.encoder_attn_residual",
        rewritten("decoder.layers.0", piece(SUM, "", number=1, times=3)),
        diagnosis="the residual is missing",
    ),
    Fault(
        "the update is missing",
        "decoder.layers.1.self_attn_residual",
        rewritten("decoder.layers.1", piece(SUM, "hidden_states = residual", times=3)),
        diagnosis="the update is missing",
    ),
    Fault(
        "the update is subtracted",
        "decoder.layers.0.output",
        rewritten("decoder.layers.0", piece(SUM, "hidden_states = residual - hidden_states", number=2, times=3)),
        diagnosis="the update is subtracted",
    ),
    Fault(
        "the residual is taken after the LayerNorm",
        "decoder.layers.1.output",
        rewritten(
            "decoder.layers.1",
            piece("hidden_states = self.final_layer_norm", "residual = hidden_states = self.final_layer_norm"),
        ),
        diagnosis="the residual is taken after the LayerNorm",
    ),
    Fault(
        "dropout is left on",
        f"{LAYER_0}.tokens.self_attn_residual",
        attribute(LAYER_0, "training", True),
        diagnosis="dropout is left on, with a rate of 0.1",
    ),
    Fault(
        "global tokens are not updated",
        f"{LAYER_0}.globals.output",
        returning(LAYER_0, lambda both, given: (both[0], given["global_hidden_states"])),
        diagnosis="the layer changes nothing: its output is its input",
    ),
    Fault(
        "a layer is left out",
        "decoder.layers.1.output",
        returning("decoder.layers.1", lambda _, given: given["hidden_states"]),
        diagnosis="the layer changes nothing: its output is its input",
    ),
    Fault(
        "the output of the wrong encoder layer",
        "encoder.layer_norm",
        combined("encoder.layer_norm", "input", LAYER_0, lambda x, both: both[0][:, : x.shape[1]]),
        diagnosis=f"its input is {LAYER_0}.tokens.output",
    ),
    Fault(
        "the decoder reads the encoder without its final LayerNorm",
        "decoder.layers.0.encoder_attn.k_proj",
        combined("decoder.layers.0", "encoder_hidden_states", LAYER_1, lambda x, both: both[0][:, : x.shape[1]]),
        diagnosis=f"its input is {LAYER_1}.tokens.output",
    ),
    Fault(
        "the residual of self-attention is added after cross-attention",
        "decoder.layers.1.encoder_attn_residual",
        rewritten(
            "decoder.layers.1",
            piece(
                "residual = hidden_states\n        hidden_states = self.encoder_attn",
                "hidden_states = self.encoder_attn",
            ),
        ),
        diagnosis="the residual is decoder.layers.1.input",
    ),
    Fault(
        "the residual of cross-attention is normalized",
        "decoder.layers.0.encoder_attn_residual",
        rewritten(
            "decoder.layers.0",
            piece("hidden_states = self.encoder_attn_layer", "residual = hidden_states = self.encoder_attn_layer"),
        ),
        diagnosis="the residual is decoder.layers.0.encoder_attn_layer_norm",
    ),
    Fault(
        "the residual of tokens is normalized",
        f"{LAYER_0}.tokens.self_attn_residual",
        rewritten(
            LAYER_0,
            piece("hidden_states = self.self_attn_layer_norm", "residual = hidden_states = self.self_attn_layer_norm"),
        ),
        diagnosis=f"the residual is {LAYER_0}.tokens.self_attn_layer_norm",
    ),
    Fault(
        "the residual is multiplied by sqrt(2)",
        "decoder.layers.0.output",
        rewritten(
            "decoder.layers.0", piece(SUM, "hidden_states = 2**0.5 * residual + hidden_states", number=2, times=3)
        ),
        diagnosis="the residual is multiplied by sqrt(2)",
    ),
    Fault(
        "the residual is added twice",
        f"{LAYER_0}.tokens.output",
        rewritten(LAYER_0, piece(SUM, "hidden_states = 2 * residual + hidden_states", number=1, times=2)),
        diagnosis="the residual is added twice",
    ),
    Fault(
        "the sum is divided by sqrt(2)",
        f"{LAYER_1}.tokens.output",
        rewritten(LAYER_1, piece(SUM, "hidden_states = (residual + hidden_states) / 2**0.5", number=1, times=2)),
        diagnosis="the sum is divided by sqrt(2)",
    ),
    Fault(
        "updates are divided by the root of the number of sublayers",
        f"{LAYER_0}.tokens.output",
        rewritten(LAYER_0, piece(SUM, "hidden_states = residual + hidden_states / 2", number=1, times=2)),
        diagnosis="the update is halved",
    ),
    Fault(
        "updates are multiplied by 0.9, residuals by 1.1",
        "decoder.layers.1.output",
        rewritten(
            "decoder.layers.1", piece(SUM, "hidden_states = 1.1 * residual + 0.9 * hidden_states", number=2, times=3)
        ),
        diagnosis="the residual is multiplied by 1.1 and the update is multiplied by 0.9",
    ),
    Fault(
        "self-attention is added once more, cross-attention not at all",
        "decoder.layers.0.encoder_attn_residual",
        rewritten(
            "decoder.layers.0",
            piece(SUM, "first = hidden_states; hidden_states = residual + hidden_states", times=3),
            piece("hidden_states = residual + hidden_states", "hidden_states = residual + first", number=1, times=3),
        ),
        diagnosis="the update is decoder.layers.0.self_attn.out_proj",
    ),
    Fault(
        "dropout of the embeddings is left on",
        "decoder.embeddings",
        attribute("decoder", "training", True),
        diagnosis="dropout is left on, with a rate of 0.1",
    ),
    Fault(
        "the second layer starts with the embeddings, as the first",
        f"{LAYER_1}.tokens.input",
        starting(LAYER_1, LAYER_0),
        diagnosis="the tensor stored here is encoder.embeddings",
    ),
    Fault(
        "cross-attention reads the encoder's first layer",
        "decoder.layers.0.encoder_attn.k_proj",
        combined("decoder.layers.0", "encoder_hidden_states", LAYER_0, lambda x, both: both[0][:, : x.shape[1]]),
        diagnosis=f"its input is {LAYER_0}.tokens.output",
    ),
    Fault(
        "the encoder's output is normalized twice for the decoder",
        "decoder.layers.0.encoder_attn.k_proj",
        lambda model: altered("decoder", encoder_hidden_states=lambda x: at(model, "encoder.layer_norm").forward(x))(
            model
        ),
        diagnosis="its input is normalized twice",
    ),
]
