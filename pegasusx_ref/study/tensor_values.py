"""A tensor as text: the corners of its array, and which keys its queries attend to most."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.tracing.trace_points import numbers_in

NUM_KEYS = 4  # listed of each query


class Pieces(NamedTuple):
    """The tokens of a run as pieces of text.

    Attributes:
        source: T pieces.
        target: L pieces, the start token first.
    """

    source: Sequence[str]
    target: Sequence[str]


def format_values(tensor: np.ndarray) -> str:
    """Format the corners of a tensor's first batch row in NumPy's style; a masked score is -inf."""
    shown = np.where(is_masked(tensor[0]), -np.inf, tensor[0])
    with np.printoptions(precision=4, edgeitems=3 if tensor.ndim < 4 else 2, threshold=0, linewidth=120, suppress=True):
        return str(shown)


def is_masked(scores: np.ndarray) -> np.ndarray:
    """Return which scores are masked: those that are the lowest number of their dtype."""
    masked: np.ndarray = scores == np.finfo(scores.dtype).min
    return masked


def attention_lines(
    name: str, tensor: np.ndarray, config: PegasusXConfig, pieces: Pieces, num_queries: int
) -> list[str]:
    """List the keys that the first queries attend to most, by the mean over heads.

    Args:
        name: of the tensor: scores or probs.
        tensor: (B, H, queries, keys); only the first batch row is used.
        config: the model's configuration.
        pieces: the tokens.
        num_queries: how many queries to list.
    """
    queries, keys = queries_and_keys(name, config, pieces)
    mean = np.where(is_masked(tensor[0]), -np.inf, tensor[0]).mean(axis=0)
    lines = [f"mean over {tensor.shape[1]} heads:"]
    for query, weights in list(zip(queries, mean, strict=True))[:num_queries]:
        strongest = np.argsort(-weights, kind="stable")[:NUM_KEYS]
        attended = [f"{keys[x]} {weights[x]:.3g}" for x in strongest if weights[x] > -np.inf and weights[x] != 0]
        lines.append(f"{query} attends to {', '.join(attended)}")
    if len(queries) > num_queries:
        lines.append(f"… and {len(queries) - num_queries} more")
    return lines


def queries_and_keys(name: str, config: PegasusXConfig, pieces: Pieces) -> tuple[list[str], list[str]]:
    """Name the queries and the keys of an attention: the two last axes of its scores and probs.

    Args:
        name: of a tensor of that attention.
        config: the model's configuration.
        pieces: the tokens.
    """
    tokens = [f"token {t} {piece!r}" for t, piece in enumerate(pieces.source)]
    targets = [f"target {i} {piece!r}" for i, piece in enumerate(pieces.target)]
    globals_ = [f"global {g}" for g in range(config.num_global_tokens)]
    parts = name.split(".")
    if "encoder_attn" in parts:
        return targets, tokens
    if parts[0] == "decoder":
        return targets, targets
    if "global" in parts:
        return globals_, globals_ + tokens
    layer, block = numbers_in(name)
    blocks = layer_blocks(config, len(tokens), layer)
    start, stop = blocks[block]
    return tokens[start:stop], globals_ + tokens[start:stop]
