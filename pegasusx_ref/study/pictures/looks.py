"""What the pictures of attention are drawn from: one layer's probabilities for one text, recorded as the model runs."""

from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.tracing import record


def local_attention_of(
    model: PegasusXForConditionalGeneration, input_ids: Any, layer: int
) -> tuple[list[np.ndarray], Blocks]:
    """Run the encoder on one text and keep what one layer's tokens attend to.

    Args:
        model: on any backend that computes probabilities where they are asked for.
        input_ids: of one text (1, T), without padding.
        layer: of the encoder, from 0.

    Returns:
        Probabilities (H, S, G+S) for each block, and the blocks.

    Raises:
        InputError: no such layer, or ids that the model cannot take.
    """
    check_layer(layer, model.config.encoder_layers, "encoder")
    place = f"encoder.layers.{layer}.self_attn.local"
    with record(f"{place}.*.probs") as trace:
        model.encode(input_ids)
    num_tokens = np.shape(input_ids)[1]
    blocks = layer_blocks(model.config, num_tokens, layer)
    return [model.ops.to_numpy(trace[f"{place}.{n}.probs"])[0] for n in range(len(blocks))], blocks


def cross_attention_of(
    model: PegasusXForConditionalGeneration, input_ids: Any, target_ids: Any, layer: int, head: int | None = None
) -> np.ndarray:
    """Run the model on one text and its summary and keep where one decoder layer looked for each token.

    Args:
        model: on any backend that computes probabilities where they are asked for.
        input_ids: of one text (1, T), without padding.
        target_ids: what was written, the start token first (1, L + 1), as `generate` returns it.
        layer: of the decoder, from 0.
        head: which one; None takes the mean of all.

    Returns:
        Probabilities (L, T): row l is of the step that wrote token l + 1.

    Raises:
        InputError: no such layer or head, or ids that the model cannot take.
    """
    check_layer(layer, model.config.decoder_layers, "decoder")
    check_head(head, model.config.decoder_attention_heads)
    with record(f"decoder.layers.{layer}.encoder_attn.probs") as trace:
        model(input_ids, decoder_input_ids=np.asarray(target_ids)[:, :-1])
    (probs,) = trace.values()
    of_heads: np.ndarray = model.ops.to_numpy(probs)[0]
    of_one: np.ndarray = of_heads.mean(axis=0) if head is None else of_heads[head]
    return of_one


def check_layer(layer: int, num_layers: int, stack: str) -> None:
    """Refuse a layer that there is none of.

    Raises:
        InputError: as it says.
    """
    if not 0 <= layer < num_layers:
        raise InputError(f"layer={layer} does not exist: the {stack}'s layers are 0 to {num_layers - 1}")


def check_head(head: int | None, num_heads: int) -> None:
    """Refuse a head that there is none of; None stands for all.

    Raises:
        InputError: as it says.
    """
    if head is not None and not 0 <= head < num_heads:
        raise InputError(f"head={head} does not exist: heads are 0 to {num_heads - 1}")
