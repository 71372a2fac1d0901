"""Faults in stored tensors: layouts, names, precision."""

import numpy as np

from faults.fault import FINE, LAYER_0, LAYER_1, Fault
from pegasusx_ref.golden.attention import split_heads


def with_number(x: np.ndarray, number: float) -> np.ndarray:
    x = x.copy()
    x[0, 2, 5] = number
    return x


def with_row(x: np.ndarray, number: float) -> np.ndarray:
    x = x.copy()
    x[0, 2] = number
    return x


def in_int8(x: np.ndarray) -> np.ndarray:
    step = np.abs(x).max() / 127
    return np.asarray(np.rint(x / step) * step)


STORED = [
    Fault(
        "batch rows are swapped",
        f"{LAYER_0}.self_attn.tokens.out_proj",
        dump=lambda x, _: x[::-1],
        diagnosis="batch rows are in the reverse order",
    ),
    Fault(
        "another layer's tensor",
        f"{LAYER_1}.tokens.fc1",
        dump=lambda _, tensors: tensors[f"{LAYER_0}.tokens.fc1"],
        diagnosis=f"the tensor stored here is {LAYER_0}.tokens.fc1",
    ),
    Fault(
        "scores under the name of probabilities",
        "decoder.layers.0.encoder_attn.probs",
        dump=lambda _, tensors: tensors["decoder.layers.0.encoder_attn.scores"],
        diagnosis="the tensor stored here is decoder.layers.0.encoder_attn.scores",
    ),
    Fault(
        "rows are off by one token",
        "encoder.layer_norm",
        dump=lambda x, _: np.roll(x, 1, axis=1),
        diagnosis="rows are one position too late",
    ),
    Fault(
        "the time axis precedes the batch axis",
        "decoder.layers.0.final_layer_norm",
        dump=lambda x, _: x.swapaxes(0, 1),
        diagnosis="the axis of positions precedes the batch axis",
    ),
    Fault(
        "heads are not merged: (B, H, T, F) in the shape (B, T, D)",
        "decoder.layers.0.self_attn.q_proj",
        dump=lambda x, _: split_heads(x, 4).reshape(x.shape),
        diagnosis="heads are not merged: (B, H, T, F) in the shape (B, T, D)",
    ),
    Fault(
        "a number is NaN",
        "decoder.layers.0.fc1",
        dump=lambda x, _: with_number(x, np.nan),
        diagnosis="a number is NaN: at (0, 2, 5)",
    ),
    Fault(
        "a number has the wrong sign",
        "decoder.layers.1.fc2",
        dump=lambda x, _: with_number(x, -x[0, 2, 5]),
        diagnosis="a number has the wrong sign: at (0, 2, 5)",
    ),
    Fault(
        "stored as float16",
        "decoder.layers.1.encoder_attn_residual",
        dump=lambda x, _: x.astype(np.float16).astype(x.dtype),
        seen_in=FINE,
        diagnosis="its numbers have float16 precision only: computed or stored in float16",
    ),
    Fault(
        "large numbers saturate",
        f"{LAYER_0}.tokens.fc1",
        dump=lambda x, _: x.clip(-2, 2),
        diagnosis="its numbers are clipped at -2 and at 2",
    ),
    Fault(
        "negative numbers are lost",
        "decoder.layers.0.encoder_attn.q_proj",
        dump=lambda x, _: x.clip(0),
        diagnosis="its numbers are clipped at 0",
    ),
    Fault(
        "a row is infinite",
        f"{LAYER_0}.globals.fc2",
        dump=lambda x, _: with_row(x, np.inf),
        diagnosis="numbers are infinite: the first is at (0, 2, 0)",
    ),
    Fault(
        "the tensor was never written",
        "decoder.layers.1.self_attn.v_proj",
        dump=lambda x, _: np.zeros_like(x),
        diagnosis="all its numbers are 0",
    ),
    Fault(
        "the result of fc2 under the name of out_proj",
        "decoder.layers.1.encoder_attn.out_proj",
        dump=lambda _, tensors: tensors["decoder.layers.1.fc2"],
        diagnosis="the tensor stored here is decoder.layers.1.fc2",
    ),
    Fault(
        "the input of another layer",
        "decoder.layers.1.input",
        dump=lambda _, tensors: tensors["decoder.embeddings"],
        diagnosis="the tensor stored here is decoder.embeddings",
    ),
    Fault(
        "each batch row is the next one's",
        "decoder.layers.0.self_attn_residual",
        dump=lambda x, _: np.roll(x, -1, axis=0),
        diagnosis="batch rows are one too early",
    ),
    Fault(
        "features are in the reverse order",
        f"{LAYER_1}.globals.final_layer_norm",
        dump=lambda x, _: x[..., ::-1],
        diagnosis="features are in the reverse order",
    ),
    Fault(
        "column-major order",
        f"{LAYER_0}.globals.fc1",
        dump=lambda x, _: x.ravel(order="F").reshape(x.shape),
        diagnosis="its axes are (D, T, B) in the shape (B, T, D)",
    ),
    Fault(
        "channels first",
        "decoder.layers.1.fc2",
        dump=lambda x, _: x.swapaxes(1, 2),
        diagnosis="its axes are (B, D, T), not (B, T, D)",
    ),
    Fault(
        "heads are an axis: (B, H, T, F)",
        f"{LAYER_1}.self_attn.globals.k_proj",
        dump=lambda x, _: split_heads(x, 4),
        diagnosis="heads are not merged: its axes are (B, H, T, F)",
    ),
    Fault(
        "stored in int8",
        "decoder.layers.0.fc2",
        dump=lambda x, _: in_int8(x.astype(np.float64)),
        diagnosis="its numbers are stored in int8 with one scale",
    ),
]
