"""Train a small checkpoint with transformers' own class: a tokenizer, then the model, deterministic by seed.

    python tools/demo/train.py build/demo           # reads train.jsonl, writes checkpoint/ and train.log

A synopsis takes its words from the description, and a model that cannot copy writes fluent nonsense. From synopses
alone copying is not learned in an hour; from writing down pieces of short texts it is, in minutes. So there are three
stages: short texts copied, then longer ones, then descriptions with their synopses, and some copying still.
"""

import argparse
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import sentencepiece
import torch
from corpus import Pair, load_pairs
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PegasusXConfig, PegasusXForConditionalGeneration

OFFSET = 103  # ids that Pegasus keeps for special tokens, so that sentencepiece id i > 1 becomes i + 103
NUM_PIECES = 6000
LONGEST_SOURCE, LONGEST_TARGET = 512, 40
WRITE, COPY = 0, 2  # what decoding starts from: a synopsis after the padding id, a copy after <mask_1>
SHAPE = {
    "d_model": 192,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 768,
    "decoder_ffn_dim": 768,
    "block_size": 32,
    "num_global_tokens": 16,
    "activation_function": "relu",
    "max_position_embeddings": 1024,
    "init_std": 0.07,  # 1 / sqrt(d_model): at 0.02 the first attention weights are all but even, and stay so for long
}


class Stage(NamedTuple):
    """A part of the training.

    Attributes:
        steps: how many.
        learning_rate: reached after 200 steps; in the last stage it falls to 0.
        dropout: of hidden states. Random numbers for that of attention and activations take a third of a step.
        fragment: tokens of the pieces of text that are copied; None: whole descriptions, with their synopses.
        copying: in which part of the steps of whole descriptions a span is copied as well.
    """

    steps: int
    learning_rate: float
    dropout: float
    fragment: int | None = None
    copying: float = 0.0


STAGES = (
    Stage(1_000, 2e-3, 0.0, fragment=24),
    Stage(600, 2e-3, 0.0, fragment=96),
    Stage(6_400, 2e-3, 0.1, copying=0.15),
)
Batch = tuple[Tensor, Tensor, list[tuple[int, Tensor]]]  # sources, their mask, and start ids with labels


def train_tokenizer(pairs: list[Pair], folder: Path) -> None:
    """Train the unigram model on descriptions and synopses, with Pegasus' ids for padding, end and unknown."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for pair in pairs for line in (*pair.description.split("\n"), pair.synopsis)]),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=NUM_PIECES,
        character_coverage=0.9998,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,  # more threads sum in another order, and choose other pieces
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()


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


def descriptions(
    sources: list[list[int]], synopses: list[list[int]], tokens: int, rng: random.Random
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
            source = padded([sources[i] for i in group], 0)
            labels = padded([synopses[i] for i in group], -100)
            copies = padded([span(sources[i], rng) for i in group], -100)
            yield source, (source != 0).long(), [(WRITE, labels), (COPY, copies)]


def train(model: PegasusXForConditionalGeneration, stage: Stage, feed: Iterator[Batch], log: TextIO) -> None:
    """Run a stage of the training."""
    for module in model.modules():
        if hasattr(module, "dropout") and not hasattr(module, "q_proj"):  # an attention's is another
            module.dropout = stage.dropout
    model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), fused=True)
    is_last = stage.fragment is None
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 200, (stage.steps - step) / (stage.steps - 200) if is_last else 1)
    )
    started = time.perf_counter()
    losses: list[list[float]] = []
    for step in range(1, stage.steps + 1):
        source, mask, targets = next(feed)
        if is_last and step > stage.copying * stage.steps:
            targets = targets[:1]
        parts = []
        with torch.autocast("cpu", torch.bfloat16):
            encoded = model.get_encoder()(input_ids=source, attention_mask=mask)
            for start, labels in targets:
                given = torch.nn.functional.pad(labels[:, :-1].clamp(min=0), (1, 0), value=start)
                logits = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=given).logits
                parts.append(cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=0.1))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(parts).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append([part.item() for part in parts])
        if step % 100 == 0 or step == stage.steps:
            recent = [each for each in losses[-100:] if len(each) == len(parts)]
            means = " ".join(f"{sum(each) / len(each):.4f}" for each in zip(*recent, strict=True))
            print(f"step {step}  losses {means}  {time.perf_counter() - started:.0f} s", file=log, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.folder / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pairs = load_pairs(args.folder / "train.jsonl")
    train_tokenizer(pairs, folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))

    def encode(text: str, longest: int) -> list[int]:
        return [*[i + OFFSET if i > 1 else i for i in pieces.encode(text)][: longest - 1], 1]

    sources = [encode(pair.description, LONGEST_SOURCE) for pair in pairs]
    synopses = [encode(pair.synopsis, LONGEST_TARGET) for pair in pairs]
    torch.set_num_threads(2)  # another number sums in another order
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    config = PegasusXConfig(
        vocab_size=NUM_PIECES + OFFSET, dropout=0.1, attention_dropout=0.0, activation_dropout=0.0, **SHAPE
    )
    model = PegasusXForConditionalGeneration(config)
    with (args.folder / "train.log").open("w") as log:
        for stage in STAGES:
            print(stage, file=log, flush=True)
            if stage.fragment is None:
                feed = descriptions(sources, synopses, 6_000, rng)
            else:
                feed = fragments(sources, stage.fragment, 64 * stage.fragment, rng)
            train(model, stage, feed, log)
    model.eval().to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
