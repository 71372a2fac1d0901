"""Training batches: pieces of text to copy, or descriptions with their synopses."""

import random
from collections.abc import Iterator

import sentencepiece
import torch
from torch import Tensor

OFFSET = 103  # Pegasus' special tokens: sentencepiece id i > 1 becomes i + 103
NUM_COMMON = 400  # the most frequent pieces, mostly function words, are never replaced
WRITE, COPY = 0, 2  # decoder start tokens: the padding id for a synopsis, <mask_1> for a copy
Batch = tuple[Tensor, Tensor, list[tuple[int, Tensor]]]  # sources, their mask, and start ids with labels


def padded(rows: list[list[int]], value: int) -> Tensor:
    """Stack rows in one tensor, padded at the end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def span(row: list[int], rng: random.Random) -> list[int]:
    """Return a random span of half a text, at most 32 tokens."""
    length = min(32, max(1, len(row) // 2))
    start = rng.randrange(len(row) - length + 1)
    return row[start : start + length]


def fragments(texts: list[list[int]], length: int, tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Yield batches of pieces of texts with spans to copy."""
    stream = [token for text in texts for token in text]
    while True:
        starts = [rng.randrange(len(stream) - length) for _ in range(tokens // length)]
        rows = [stream[start : start + length] for start in starts]
        source = torch.tensor(rows)
        yield source, torch.ones_like(source), [(COPY, padded([span(row, rng) for row in rows], -100))]


class Renaming:
    """Replaces pieces that a description and its synopsis share, with the same replacement in both.

    Args:
        pieces: the tokenizer; a piece that begins a word is replaced by another that begins a word.
    """

    def __init__(self, pieces: sentencepiece.SentencePieceProcessor) -> None:
        rare = range(NUM_COMMON, pieces.get_piece_size())
        starts = [i + OFFSET for i in rare if pieces.id_to_piece(i).startswith("▁")]
        others = [i + OFFSET for i in rare if not pieces.id_to_piece(i).startswith("▁")]
        self._replacements = {i: group for group in (starts, others) for i in group}

    def __call__(self, source: list[int], synopsis: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
        """Return the pair unchanged, or with two thirds of the shared rarer pieces replaced."""
        if rng.random() < 0.5:
            return source, synopsis
        shared = [i for i in sorted(set(source) & set(synopsis)) if i in self._replacements and rng.random() < 0.67]
        new = {i: rng.choice(self._replacements[i]) for i in shared}
        return [new.get(i, i) for i in source], [new.get(i, i) for i in synopsis]


def descriptions(
    sources: list[list[int]], synopses: list[list[int]], tokens: int, renaming: Renaming, rng: random.Random
) -> Iterator[Batch]:
    """Yield batches of descriptions of similar lengths, with their synopses and spans to copy."""
    while True:
        size = {i: (len(source) + rng.randint(0, 16)) // 16 for i, source in enumerate(sources)}
        order = sorted(size, key=lambda i: (size[i], len(synopses[i]) + rng.randint(0, 3)))
        groups: list[list[int]] = [[]]
        for i in order:
            longest = max([len(sources[j]) for j in groups[-1]] + [len(sources[i])])
            if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(i)
        rng.shuffle(groups)
        for group in groups:
            rows, written = zip(*(renaming(sources[i], synopses[i], rng) for i in group), strict=True)
            source = padded(list(rows), 0)
            copies = padded([span(row, rng) for row in rows], -100)
            yield source, (source != 0).long(), [(WRITE, padded(list(written), -100)), (COPY, copies)]
