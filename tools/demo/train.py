"""Train the embedded checkpoint with transformers' own class: a tokenizer, then the model, deterministic by seed.

python tools/demo/train.py build/demo           # reads train.jsonl, writes checkpoint/ and train.log
"""

import argparse
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from corpus import Pair, load_pairs
from torch.nn.functional import cross_entropy
from transformers import PegasusXConfig, PegasusXForConditionalGeneration

OFFSET = 103  # ids that Pegasus keeps for special tokens, so that sentencepiece id i > 1 becomes i + 103
NUM_PIECES = 6000
LONGEST_SOURCE, LONGEST_TARGET = 512, 40
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
}


def train_tokenizer(pairs: list[Pair], folder: Path) -> sentencepiece.SentencePieceProcessor:
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
        minloglevel=1,
    )
    (folder / "spiece.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def batches(
    examples: list[tuple[list[int], list[int]]], tokens: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Give padded batches without end: sources, their masks and labels, pairs of like lengths together.

    Args:
        examples: source and target ids.
        tokens: source tokens of a batch, padding included.
        rng: shuffles every pass.
    """
    while True:
        size = {i: (len(source) + rng.randint(0, 16)) // 16 for i, (source, _) in enumerate(examples)}
        order = sorted(size, key=lambda i: (size[i], len(examples[i][1]) + rng.randint(0, 3)))
        groups: list[list[int]] = [[]]
        for i in order:
            longest = max([len(examples[j][0]) for j in groups[-1]] + [len(examples[i][0])])
            if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(i)
        rng.shuffle(groups)
        for group in groups:
            sources, targets = zip(*(examples[i] for i in group), strict=True)
            source = padded(sources, 0)
            yield source, (source != 0).long(), padded(targets, -100)


def padded(rows: tuple[list[int], ...], value: int) -> torch.Tensor:
    """Make one tensor of rows, short ones filled up at the end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=7_000)
    parser.add_argument("--tokens", type=int, default=6_000, help="source tokens of a batch")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.folder / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    pairs = load_pairs(args.folder / "train.jsonl")
    pieces = train_tokenizer(pairs, folder)

    def encode(text: str, longest: int) -> list[int]:
        return [*[i + OFFSET if i > 1 else i for i in pieces.encode(text)][: longest - 1], 1]

    examples = [(encode(p.description, LONGEST_SOURCE), encode(p.synopsis, LONGEST_TARGET)) for p in pairs]

    torch.set_num_threads(2)  # another number sums in another order
    torch.manual_seed(args.seed)
    config = PegasusXConfig(
        vocab_size=NUM_PIECES + OFFSET,
        dropout=args.dropout,
        attention_dropout=0.0,  # drawing random numbers takes two fifths of a step where all three drop
        activation_dropout=0.0,
        **SHAPE,
    )
    model = PegasusXForConditionalGeneration(config).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    warm_up = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (args.steps - step) / (args.steps - warm_up))
    )

    feed = batches(examples, args.tokens, random.Random(args.seed))
    started, seen, losses = time.perf_counter(), 0, []
    with (args.folder / "train.log").open("w") as log:
        for step in range(1, args.steps + 1):
            source, mask, labels = next(feed)
            given = torch.nn.functional.pad(labels[:, :-1].clamp(min=0), (1, 0))  # starts with id 0
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=given).logits
            loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            seen += len(source)
            losses.append(loss.item())
            if step % 100 == 0 or step == args.steps:
                recent = sum(losses[-100:]) / len(losses[-100:])
                passed = time.perf_counter() - started
                print(f"step {step}  pairs {seen}  loss {recent:.4f}  {passed:.0f} s", file=log, flush=True)
    model.eval().to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
