"""What is kept of attention: of every query the keys that it weighs most, in a few bytes."""

from typing import NamedTuple, Self

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig

MOST_BYTES = 7_000_000  # of all samples; base64 makes a third more of them, and the page is to stay below 10 MB
MOST_KEYS = 12  # of a token in its block
WIDER = 4  # so many times the keys for queries that see the whole text; there are few of them


class Counts(NamedTuple):
    """How many keys are kept of each query.

    Attributes:
        block: of a token, in its block.
        globals: of a token, among the global tokens.
        text: of a global token and of a decoder step, in the whole text.
    """

    block: int
    globals: int
    text: int

    @classmethod
    def of(cls, block: int) -> Self:
        """Derive all three from the first."""
        return cls(block, max(1, block // WIDER), block * WIDER)

    def num_bytes(self, config: PegasusXConfig, num_tokens: int, num_steps: int) -> int:
        """Count what all samples of a text take.

        Args:
            config: of the model.
            num_tokens: T.
            num_steps: tokens of the summary at the most.
        """
        G = config.num_global_tokens
        of_token = self.block * key_bytes(config.block_size) + self.globals * key_bytes(G) + 1
        of_global = self.text * key_bytes(num_tokens) + 1
        of_step = self.text * key_bytes(num_tokens)
        per_encoder_layer = num_tokens * of_token + G * of_global
        return config.encoder_layers * per_encoder_layer + config.decoder_layers * num_steps * of_step


def counts_that_fit(config: PegasusXConfig, num_tokens: int, num_steps: int) -> Counts:
    """Choose how many keys are kept, so that the page stays small.

    Args:
        config: of the model.
        num_tokens: T.
        num_steps: tokens of the summary at the most.

    Raises:
        InputError: not even one key a token fits.
    """
    for block in range(MOST_KEYS, 0, -1):
        counts = Counts.of(block)
        if counts.num_bytes(config, num_tokens, num_steps) <= MOST_BYTES:
            return counts
    raise InputError(
        f"{num_tokens} tokens in {config.encoder_layers} layers do not fit on a page of 10 MB: explore fewer tokens"
    )


def key_bytes(num_keys: int) -> int:
    """Count the bytes of a key among so many: its number, its weight, its head."""
    return np.min_scalar_type(num_keys - 1).itemsize + 2


class Sample:
    """The strongest keys of many queries, layer by layer; keys of weight 0 fill what a query does not have.

    Args:
        num_layers: layers.
        num_queries: queries a layer.
        num_keys: keys that a query may see, which decides how wide their numbers are.
        count: keys kept of a query.
    """

    def __init__(self, num_layers: int, num_queries: int, num_keys: int, count: int) -> None:
        shape = (num_layers, num_queries, count)
        self.keys = np.zeros(shape, np.min_scalar_type(num_keys - 1))
        self.weights = np.zeros(shape, np.uint8)
        self.heads = np.zeros(shape, np.uint8)

    def add(self, layer: int, start: int, probs_HLX: np.ndarray) -> None:
        """Keep the strongest keys of some queries.

        Args:
            layer: that they belong to.
            start: the first query's number.
            probs_HLX: the weights of X keys in each head.
        """
        count = min(self.keys.shape[2], probs_HLX.shape[2])
        kept = np.s_[layer, start : start + probs_HLX.shape[1], :count]
        self.keys[kept], weights, self.heads[kept] = strongest(probs_HLX, count)
        self.weights[kept] = quantized(weights)


def strongest(probs_HLX: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the keys with the largest weights on the average over heads.

    Args:
        probs_HLX: the weights of X keys for L queries in H heads.
        count: how many to find, X at the most.

    Returns:
        Of every query so many keys, the largest weight first, among equals the first key; their weights on the average;
        and the head that weighs each of them most.
    """
    mean_LX = probs_HLX.mean(axis=0)
    keys = np.sort(np.argpartition(mean_LX, -count, axis=1)[:, -count:], axis=1)
    order = np.argsort(-np.take_along_axis(mean_LX, keys, axis=1), axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, axis=1)
    heads = np.take_along_axis(probs_HLX, keys[None], axis=2).argmax(axis=0)
    return keys, np.take_along_axis(mean_LX, keys, axis=1), heads


def quantized(weights: np.ndarray) -> np.ndarray:
    """Put weights between 0 and 1 into bytes, as square roots: among 640 keys many weigh less than 1/255.

    A weight w comes back with an error of at most (2 sqrt(w) + 1/510) / 510.
    """
    in_bytes: np.ndarray = np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)
    return in_bytes
