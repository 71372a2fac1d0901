"""``pegasusx-ref verify-generation``: check another implementation's texts, and find why a search differs."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.cli import options
from pegasusx_ref.cli.commands import INPUT_FILE, Command
from pegasusx_ref.cli.documents import read_document
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.cli.printing import print_json, print_text
from pegasusx_ref.cli.progress import layer_progress
from pegasusx_ref.cli.verification_options import arithmetic_option
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import read_bytes, reading
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.summarization import pipeline
from pegasusx_ref.verification import verify_generation
from pegasusx_ref.verification.checking.arithmetics import Arithmetic

MAX_SIZE = 2**24  # bytes of a file of ids
KEYS = ("ids", "sequences")


@click.command("verify-generation", cls=Command)
@click.argument("file", type=INPUT_FILE)
@click.option(
    "--generated",
    type=INPUT_FILE,
    required=True,
    metavar="FILE",
    help="The implementation's texts: JSON with lists of ids, or a text a line, as ids or as words.",
)
@options.model_option
@options.revision_option
@arithmetic_option("--dtype")
@options.max_new_tokens_option
@options.num_beams_option
@click.option("--num-return-sequences", type=options.POSITIVE, help="Number of texts.")
@options.length_penalty_option
@click.option("--early-stopping", type=click.Choice(("true", "false", "never")), help="Beam search: when it stops.")
@options.min_length_option
@click.option(
    "--no-repeat-ngram-size", type=options.NOT_NEGATIVE, help="No n-gram of this size occurs twice; 0: all may."
)
@click.option("--repetition-penalty", type=float, help="Above 1: tokens that occurred are less likely.")
@options.json_option
@options.progress_option
def verify_generation_command(
    file: Path,
    generated: Path,
    folder: Path | None,
    revision: str | None,
    dtype: Arithmetic,
    early_stopping: str | None,
    as_json: bool,
    shown: bool,
    **settings: Any,
) -> None:
    """Check the ids that another implementation generated for the text of FILE, by greedy or beam search.

    Prints the first step at which each text differs, and why: a tie within rounding, a setting or a processor that is
    not applied or applied otherwise, the cache, or the logits. The defaults of generation are those of summarize. The
    exit code is 0 if the texts are the same, but for ties; 1 if they differ.
    """
    hub = options.hub_options(folder, revision)
    summarizer = pipeline("summarization", folder, backend="golden", dtype="float64", **hub)
    name, text = read_document(file)
    rows = read_generated(generated, summarizer.tokenizer)
    batch = summarizer.encode([text], names=[name])
    model, stored = summarizer.model, numpy_dtype(dtype.stored)
    rounded = {name: tensor.astype(stored) for name, tensor in model.state_dict().items()}
    reference = PegasusXForConditionalGeneration(model.config, rounded, model.ops, summarizer.generation_config)
    if early_stopping is not None:
        settings["early_stopping"] = {"true": True, "false": False}.get(early_stopping, early_stopping)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with layer_progress(f"{name}: layer", model.config.encoder_layers, shown=shown, of=np.ndarray):
        report = verify_generation(reference, inputs, rows, arithmetic=dtype, **settings)
    if as_json:
        print_json(report.to_dict())
    else:
        print_text(str(report))
    raise SystemExit(0 if report.passed else 1)


def read_generated(path: Path, tokenizer: Any) -> list[list[int]]:
    """Read generated texts: JSON, lines of ids, or lines of words that the tokenizer reproduces.

    Args:
        path: the file.
        tokenizer: of the model.

    Raises:
        UsageError: something else.
    """
    with reading(path, "generated ids", InputError):
        text = read_bytes(path, MAX_SIZE).decode("utf-8-sig").strip()
        if text[:1] in ("[", "{"):
            values = json.loads(text)
            if isinstance(values, dict):
                values = next((values[key] for key in KEYS if key in values), None)
            if not isinstance(values, list) or not values:
                raise InputError(f"expected a list of lists of ids, or an object with {' or '.join(KEYS)}")
            return values if isinstance(values[0], list) else [values]
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise InputError("the file is empty")
        numeric = [line for line in lines if is_ids(line)]
        if 0 < len(numeric) < len(lines):
            raise InputError(
                f"{len(numeric)} of {len(lines)} texts are ids, such as {shown(numeric[0])}, and others are words: "
                "pass all as ids or all as words"
            )
        if numeric:
            return [[int(word) for word in line.replace(",", " ").split()] for line in lines]
    return [ids_of(line, path, tokenizer) for line in lines]


def is_ids(line: str) -> bool:
    """Return whether a line holds integers alone."""
    words = line.replace(",", " ").split()
    return bool(words) and all(word.removeprefix("-").isdecimal() and len(word) < 10 for word in words)


def ids_of(line: str, path: Path, tokenizer: Any) -> list[int]:
    """Convert a text to ids.

    Raises:
        UsageError: the tokenizer does not reproduce it.
    """
    ids = list(tokenizer.encode(line.strip()))
    if tokenizer.decode(ids, skip_special_tokens=True).strip() != line.strip():
        raise UsageError(f"{path}: the tokenizer does not reproduce {shown(line)}: pass the generated ids")
    return ids
