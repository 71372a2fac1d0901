"""Pairs as token ids, in batches of similar length."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.finetuning.corpus import Corpus
from pegasusx_ref.golden.head import IGNORED_LABEL

WINDOW = 64  # steps whose pairs are sorted by length together


class Example(NamedTuple):
    """A pair as token ids.

    Attributes:
        place: see `Pair`.
        source: ids of the document (T,).
        labels: ids of the summary (L,).
        target: the summary.
    """

    place: int
    source: np.ndarray
    labels: np.ndarray
    target: str


def encode_pairs(
    corpus: Corpus, tokenizer: Any, prefix: str, max_source: int | None, max_target: int | None
) -> tuple[list[Example], list[str]]:
    """Convert pairs to token ids.

    Args:
        corpus: the pairs.
        tokenizer: the model's.
        prefix: stands in front of every document.
        max_source: tokens of a document, the end token included.
        max_target: tokens of a summary, likewise.

    Returns:
        The examples, and notes on rows that were skipped and on texts that were truncated.

    Raises:
        InputError: no pair has tokens.
    """
    examples, num_long, num_skipped, first = [], [0, 0], corpus.num_skipped, corpus.first_skipped
    for place, source, target in corpus.pairs:
        encoded = []
        for part, (text, longest) in enumerate(((prefix + source, max_source), (target, max_target))):
            batch = tokenizer(text, max_length=longest, truncation=True)
            num_long[part] += batch.num_truncated_tokens[0] > 0
            encoded.append(np.array(batch["input_ids"], np.int32))
        if min(map(len, encoded)) < 2:
            num_skipped += 1
            first = first or f"row {place}: a text without tokens"
        else:
            examples.append(Example(place, encoded[0], encoded[1], target))
    if not examples:
        raise InputError(f"{corpus.name}: no pair has tokens ({first})")
    notes = []
    if num_skipped:
        notes.append(f"{corpus.name}: {num_skipped} of {len(examples) + num_skipped} rows are left out; {first}")
    for count, kind, longest in zip(num_long, ("documents", "summaries"), (max_source, max_target), strict=True):
        if count:
            notes.append(f"{corpus.name}: {count} of {len(examples)} {kind} are truncated to {longest} tokens")
    return examples, notes


def collate(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Return the arguments of the module for a batch, padded at the end."""
    source, labels = ([getattr(example, name) for example in examples] for name in ("source", "labels"))
    return {
        "input_ids": _padded(source, 0),
        "attention_mask": _padded([np.ones_like(ids) for ids in source], 0),
        "labels": _padded(labels, IGNORED_LABEL),
    }


def _padded(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    length = max(map(len, rows))
    return np.stack([np.pad(row, (0, length - len(row)), constant_values=value) for row in rows]).astype(np.int64)


def num_labels(examples: Sequence[Example]) -> int:
    """Count the tokens that a loss is taken of."""
    return sum(len(example.labels) for example in examples)


def digest(examples: Sequence[Example]) -> str:
    """Return a checksum of token ids."""
    found = hashlib.sha256()
    for example in examples:
        for ids in (example.source, example.labels):
            found.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return found.hexdigest()[:16]


def by_length(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Sort examples by length, and cut them into batches."""
    ordered = sorted(examples, key=lambda example: (len(example.source), len(example.labels)))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


class Order:
    """Which examples each step takes: a function of the seed and of the step alone.

    An epoch is shuffled and cut into windows; the examples of a window are sorted by length and cut into steps, and the
    steps of the epoch are shuffled. What does not fill a step is left out, others in each epoch.

    Args:
        examples: all of them.
        per_step: examples of a step, of all processes.
        seed: of the random numbers.

    Raises:
        InputError: there are fewer examples than a step takes.
    """

    def __init__(self, examples: Sequence[Example], per_step: int, seed: int) -> None:
        if len(examples) < per_step:
            raise InputError(
                f"{len(examples)} pairs do not fill a step of {per_step} (batch size x accumulated batches x "
                "processes): use a smaller batch"
            )
        self._lengths = np.array([(len(example.labels), len(example.source)) for example in examples])
        self._per_step, self._seed = per_step, seed
        self.steps_per_epoch = len(examples) // per_step
        self._epoch = lru_cache(maxsize=1)(self._draw)

    def rows(self, step: int) -> np.ndarray:
        """Return the numbers of a step's examples, short ones first.

        Args:
            step: number of the step, from 1.
        """
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        rows: np.ndarray = self._epoch(epoch)[place]
        return rows

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        shuffled = rng.permutation(len(self._lengths))[: self.steps_per_epoch * self._per_step]
        size = WINDOW * self._per_step
        windows = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        ordered = np.concatenate([window[np.lexsort(self._lengths[window].T)] for window in windows])
        steps: np.ndarray = rng.permutation(ordered.reshape(self.steps_per_epoch, self._per_step))
        return steps

    def padding(self, batch_size: int) -> float:
        """Return the share of padding among the source tokens of the first epoch.

        Args:
            batch_size: examples that are computed at once.
        """
        lengths = self._lengths[self._epoch(0).reshape(-1, batch_size), 1]
        return float(1 - lengths.sum() / (lengths.max(axis=1).sum() * batch_size))
