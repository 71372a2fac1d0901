"""Train a small checkpoint with the torch module: a tokenizer, then the model, deterministic by seed.

    python tools/demo/train.py build/demo    # reads train.jsonl and dev.jsonl, writes checkpoint/ and train.log
    python tools/demo/train.py build/demo --start EARLIER    # continues from the checkpoint EARLIER

A synopsis takes its words from the description, and a model that cannot copy writes fluent nonsense. Synopses alone do
not teach copying within an hour; copying pieces of short texts does in minutes. So training has three stages: copying
short texts, copying longer ones, then descriptions with their synopses and some copying. In half of these pairs, words
that both texts share are replaced in both: a false statement cannot be memorized, only copied. Continued training is
one more stage of descriptions.
"""

import argparse
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import sentencepiece
import torch
from batches import OFFSET, WRITE, Batch, Renaming, descriptions, fragments
from corpus import Pair, load_pairs
from torch import Tensor

from pegasusx_ref import GenerationConfig, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.model.torch_module import PegasusXTorchModule

NUM_PIECES = 6000
LONGEST_SOURCE, LONGEST_TARGET = 512, 40
SHAPE: dict[str, Any] = {
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
    "init_std": 0.07,  # 1 / sqrt(d_model): with 0.02, attention is nearly uniform at first and stays so for long
}

DECODING: dict[str, Any] = {
    "num_beams": 4,  # best on the development pairs
    "length_penalty": 0.8,
    "max_new_tokens": LONGEST_TARGET,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
}


class Stage(NamedTuple):
    """A part of the training.

    Attributes:
        steps: number of steps.
        learning_rate: reached after 200 steps; in the last stage it decays to 0.
        dropout: of hidden states. Dropout of attention and activations would take a third of the step's time.
        fragment: tokens of each piece of text to copy; None: whole descriptions with their synopses.
        copying: fraction of the steps on whole descriptions that also copy a span.
    """

    steps: int
    learning_rate: float
    dropout: float
    fragment: int | None = None
    copying: float = 0.0


STAGES = (
    Stage(1_000, 2e-3, 0.0, fragment=24),
    Stage(600, 2e-3, 0.0, fragment=96),
    Stage(5_000, 2e-3, 0.1, copying=0.15),
)
CONTINUED = (Stage(9_000, 2e-3, 0.1),)


def train_tokenizer(pairs: list[Pair], folder: Path) -> None:
    """Train the unigram tokenizer on descriptions and synopses, with Pegasus' ids for padding, end and unknown."""
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
        num_threads=1,  # more threads change the order of sums, and with it the pieces
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()


def new_module(config: PegasusXConfig, dtype: str) -> PegasusXTorchModule:
    """Create a module with normal matrices, LayerNorms that change nothing, and biases of 0."""
    module = PegasusXForConditionalGeneration.from_random(config, backend="torch").to_torch_module(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, config.init_std)
            else:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    return module


def losses_of(module: PegasusXTorchModule, batch: Batch, smoothing: float) -> list[Tensor]:
    """Compute the mean cross-entropy of each target of the same sources, in nats a token."""
    source, mask, targets = batch
    encoded, losses = module.encode(source, mask), []
    for start, labels in targets:
        given = torch.nn.functional.pad(labels[:, :-1].clamp(min=0), (1, 0), value=start)
        output = module(encoder_outputs=encoded, decoder_input_ids=given, labels=labels, smoothing=smoothing)
        losses.append(output.loss)
    return losses


def development_loss(module: PegasusXTorchModule, batches: list[Batch]) -> float:
    """Compute the mean loss of the synopses of the development pairs."""
    module.eval()
    with torch.no_grad():
        losses = torch.stack([losses_of(module, batch, 0.0)[0] for batch in batches])
    module.train()
    return float(losses.mean())


def save(module: PegasusXTorchModule, folder: Path) -> None:
    """Save a copy of the model in bfloat16; training continues in float32."""
    module.to_model("bfloat16").save_pretrained(folder)


def train(
    module: PegasusXTorchModule,
    stage: Stage,
    feed: Iterator[Batch],
    development: list[Batch],
    folder: Path,
    log: TextIO,
) -> None:
    """Run a stage of the training; measure and save every 500 steps of the last stage, and save at the end."""
    module.set_dropout(stage.dropout)
    module.train()
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
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
        parts = losses_of(module, (source, mask, targets), 0.1)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(parts).sum().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append([part.item() for part in parts])
        if step % 100 == 0 or step == stage.steps:
            recent = [each for each in losses[-100:] if len(each) == len(parts)]
            means = " ".join(f"{sum(each) / len(each):.4f}" for each in zip(*recent, strict=True))
            print(f"step {step}  losses {means}  {time.perf_counter() - started:.0f} s", file=log, flush=True)
        if is_last and step % 500 == 0:
            print(f"step {step}  development {development_loss(module, development):.4f}", file=log, flush=True)
            save(module, folder)
    save(module, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of products (%(default)s)")
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="continue from its tokenizer and weights")
    args = parser.parse_args()
    folder = args.folder / "checkpoint"
    if args.start is not None and args.start.resolve() == folder.resolve():
        parser.error(f"--start {args.start} is the folder that training writes: rename it first")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pairs = load_pairs(args.folder / "train.jsonl")
    if args.start is None:
        train_tokenizer(pairs, folder)
    else:
        shutil.copy(args.start / "spiece.model", folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))

    def encode(text: str, longest: int) -> list[int]:
        return [*[i + OFFSET if i > 1 else i for i in pieces.encode(text)][: longest - 1], 1]

    def encode_pairs(pairs: list[Pair]) -> tuple[list[list[int]], list[list[int]]]:
        return (
            [encode(pair.description, LONGEST_SOURCE) for pair in pairs],
            [encode(pair.synopsis, LONGEST_TARGET) for pair in pairs],
        )

    sources, synopses = encode_pairs(pairs)
    development = []
    for source, synopsis in zip(*encode_pairs(load_pairs(args.folder / "dev.jsonl")), strict=True):
        rows = torch.tensor([source])
        development.append((rows, torch.ones_like(rows), [(WRITE, torch.tensor([synopsis]))]))
    torch.set_num_threads(2)  # another number changes the order of sums
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    if args.start is None:
        module = new_module(PegasusXConfig(vocab_size=NUM_PIECES + OFFSET, **SHAPE), args.dtype)
    else:
        model = PegasusXForConditionalGeneration.from_pretrained(args.start, backend="torch", dtype=args.dtype)
        module = model.to_torch_module()
    module.activation_checkpointing_disable()  # descriptions are short
    module.generation_config = GenerationConfig(**DECODING)
    with (args.folder / "train.log").open("w") as log:
        for stage in STAGES if args.start is None else CONTINUED:
            print(stage, file=log, flush=True)
            if stage.fragment is None:
                feed = descriptions(sources, synopses, 6_000, Renaming(pieces), rng)
            else:
                feed = fragments(sources, stage.fragment, 64 * stage.fragment, rng)
            train(module, stage, feed, development, folder, log)


if __name__ == "__main__":
    main()
