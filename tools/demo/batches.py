"""What a step of the training sees: pieces of text to copy, or descriptions with their synopses."""

import random
from collections.abc import Iterator

import sentencepiece
import torch
from torch import Tensor

OFFSET = 103  # ids that Pegasus keeps for special tokens, so that sentencepiece id i > 1 becomes i + 103
NUM_COMMON = 400  # the most frequent pieces, which are never exchanged: what a sentence is built with
WRITE, COPY = 0, 2  # what decoding starts from: a synopsis after the padding id, a copy after <mask_1>
Batch = tuple[Tensor, Tensor, list[tuple[int, Tensor]]]  # sources, their mask, and start ids with labels


def padded(rows: list[list[int]], value: int) -> Tensor:
    """Make one tensor of rows, short ones filled up at the end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def span(row: list[int], rng: random.Random) -> list[int]:
    """Take half of a text, 32 tokens at the most, from anywhere."""
    length = min(32, max(1, len(row) // 2))
    start = rng.randrange(len(row) - length + 1)
    return row[start : start + length]


def fragments(texts: list[list[int]], length: int, tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Give batches of pieces of texts, each to be copied in part."""
    stream = [token for text in texts for token in text]
    while True:
        starts = [rng.randrange(len(stream) - length) for _ in range(tokens // length)]
        rows = [stream[start : start + length] for start in starts]
        source = torch.tensor(rows)
        yield source, torch.ones_like(source), [(COPY, padded([span(row, rng) for row in rows], -100))]


class Renaming:
    """Exchanges what a description and its synopsis share for something else, the same in both.

    Args:
        pieces: the tokenizer's; a piece that begins a word is exchanged for another such piece.
    """

    def __init__(self, pieces: sentencepiece.SentencePieceProcessor) -> None:
        rare = range(NUM_COMMON, pieces.get_piece_size())
        starts = [i + OFFSET for i in rare if pieces.id_to_piece(i).startswith("▁")]
        others = [i + OFFSET for i in rare if not pieces.id_to_piece(i).startswith("▁")]
        self._alike = {i: group for group in (starts, others) for i in group}

    def __call__(self, source: list[int], synopsis: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
        """Return the pair as it is, or with two thirds of the rarer pieces that both have exchanged."""
        if rng.random() < 0.5:
            return source, synopsis
        shared = [i for i in sorted(set(source) & set(synopsis)) if i in self._alike and rng.random() < 0.67]
        new = {i: rng.choice(self._alike[i]) for i in shared}
        return [new.get(i, i) for i in source], [new.get(i, i) for i in synopsis]


def descriptions(
    sources: list[list[int]], synopses: list[list[int]], tokens: int, renaming: Renaming, rng: random.Random
) -> Iterator[Batch]:
    """Give batches of descriptions with their synopses and a span to copy, pairs of like lengths together."""
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
