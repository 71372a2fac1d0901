"""The strongest keys of every query, in a few bytes each."""

from typing import NamedTuple, Self

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig

MOST_BYTES = 7_000_000  # of all keys; base64 adds a third, and the page stays below 10 MB
MOST_KEYS = 12  # of a token in its block
TEXT_FACTOR = 4  # the few queries that read the whole text keep this many times the keys


class KeyCounts(NamedTuple):
    """How many keys are kept of each query.

    Attributes:
        block: of a token, in its block.
        globals: of a token, among the global tokens.
        text: of a global token and of a decode step, in the whole text.
    """

    block: int
    globals: int
    text: int

    @classmethod
    def of(cls, block: int) -> Self:
        """Derive all three counts from the first."""
        return cls(block, max(1, block // TEXT_FACTOR), block * TEXT_FACTOR)

    def num_bytes(self, config: PegasusXConfig, num_tokens: int, num_steps: int) -> int:
        """Compute the bytes of all keys of a text.

        Args:
            config: of the model.
            num_tokens: T.
            num_steps: the most tokens of the summary.
        """
        G = config.num_global_tokens
        of_token = self.block * key_bytes(config.block_size) + self.globals * key_bytes(G) + 1
        of_global = self.text * key_bytes(num_tokens) + 1
        of_step = self.text * key_bytes(num_tokens)
        per_encoder_layer = num_tokens * of_token + G * of_global
        return config.encoder_layers * per_encoder_layer + config.decoder_layers * num_steps * of_step


def key_counts_that_fit(config: PegasusXConfig, num_tokens: int, num_steps: int) -> KeyCounts:
    """Choose the largest counts whose keys take at most `MOST_BYTES`.

    Args:
        config: of the model.
        num_tokens: T.
        num_steps: the most tokens of the summary.

    Raises:
        InputError: one key of each token takes more.
    """
    for block in range(MOST_KEYS, 0, -1):
        counts = KeyCounts.of(block)
        if counts.num_bytes(config, num_tokens, num_steps) <= MOST_BYTES:
            return counts
    raise InputError(
        f"{num_tokens} tokens in {config.encoder_layers} layers do not fit on a page of 10 MB: explore fewer tokens"
    )


def key_bytes(num_keys: int) -> int:
    """Compute the bytes of one of `num_keys` keys: its index, its weight, its head."""
    return np.min_scalar_type(num_keys - 1).itemsize + 2


class TopKeys:
    """The strongest keys of many queries, layer by layer; a query with fewer keys is filled with keys of weight 0.

    Args:
        num_layers: number of layers.
        num_queries: queries in a layer.
        num_keys: keys that a query may attend to, which determines the integer type of their indices.
        count: keys kept of a query.
    """

    def __init__(self, num_layers: int, num_queries: int, num_keys: int, count: int) -> None:
        shape = (num_layers, num_queries, count)
        self.keys = np.zeros(shape, np.min_scalar_type(num_keys - 1))
        self.weights = np.zeros(shape, np.uint8)
        self.heads = np.zeros(shape, np.uint8)

    def add(self, layer: int, start: int, probs_HLX: np.ndarray) -> None:
        """Keep the strongest keys of consecutive queries.

        Args:
            layer: of the queries.
            start: index of the first query.
            probs_HLX: the weights of X keys in each head.
        """
        count = min(self.keys.shape[2], probs_HLX.shape[2])
        kept = np.s_[layer, start : start + probs_HLX.shape[1], :count]
        self.keys[kept], weights, self.heads[kept] = top_keys(probs_HLX, count)
        self.weights[kept] = quantize(weights)


def top_keys(probs_HLX: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the keys with the largest mean weights over heads.

    Args:
        probs_HLX: the weights of X keys for L queries in H heads.
        count: how many to find, at most X.

    Returns:
        The keys of every query (L, count), the largest weight first and of equal weights the first key; their mean
        weights; and the head with the largest weight of each.
    """
    mean_LX = probs_HLX.mean(axis=0)
    keys = np.sort(np.argpartition(mean_LX, -count, axis=1)[:, -count:], axis=1)
    order = np.argsort(-np.take_along_axis(mean_LX, keys, axis=1), axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, axis=1)
    heads = np.take_along_axis(probs_HLX, keys[None], axis=2).argmax(axis=0)
    return keys, np.take_along_axis(mean_LX, keys, axis=1), heads


def quantize(weights: np.ndarray) -> np.ndarray:
    """Quantize the square roots of weights in [0, 1] to bytes: among 640 keys many weights are below 1/255.

    The error of a restored weight w is at most (2 sqrt(w) + 1/510) / 510.
    """
    in_bytes: np.ndarray = np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)
    return in_bytes
