"""``pegasusx-ref verify``: is another implementation right, and where does it go wrong first?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.cli.messages import UsageError, plainly
from pegasusx_ref.cli.options import model_option, progress_option
from pegasusx_ref.cli.outputs import writable, write_report
from pegasusx_ref.cli.progress import verification_progress
from pegasusx_ref.cli.summarize import read_document
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.loading import load_weights
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.verification import Candidate, from_backend, from_dump, from_transformers, verify
from pegasusx_ref.verification.dumps import INPUTS
from pegasusx_ref.verification.reports import as_dict, as_html, as_junit, as_text

DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")


def is_given(name: str) -> bool:
    """Tell whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not None and source is not click.core.ParameterSource.DEFAULT


@click.command("verify")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@model_option
@click.option("--against", default="transformers", show_default=True, help="transformers, or one of our backends.")
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The implementation's tensors, and the input_ids and decoder_input_ids that it ran on: safetensors or npz.",
)
@click.option(
    "--map",
    "mapping",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML: which tensor of the dump is which trace point.",
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="What it computes in.")
@click.option(
    "--tokens", default=300, show_default=True, type=click.IntRange(min=1), help="Source tokens, without FILE."
)
@click.option("--target-tokens", default=8, show_default=True, type=click.IntRange(min=1), help="Target tokens.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the random tokens.")
@click.option("--all", "everything", is_flag=True, help="List the tensors that pass too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE",
    help="Write a page with pictures of what is wrong.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE",
    help="Write XML for a CI system: a test case a tensor.",
)
@progress_option
def verify_command(
    file: Path | None,
    folder: Path | None,
    against: str,
    dump: Path | None,
    mapping: Path | None,
    dtype: str,
    tokens: int,
    target_tokens: int,
    seed: int,
    everything: bool,
    as_json: bool,
    html: Path | None,
    junit: Path | None,
    shown: bool,
) -> None:
    """Check an implementation operation by operation, on the text of FILE or on random tokens.

    Each operation is computed again in float64 from the implementation's own tensors, and the difference is held
    against what rounding does in that operation. Lists the tensors that fail, in the order of execution: rho is how far
    a row is off beside what rounding makes of it (3 at most, 6 fails), error, sigma and bound are of the worst element,
    which fails beyond its bound. A long text is read as a whole. Exits with 0 where none fails, 1 where one does.
    """
    if html is not None and html == junit:
        raise UsageError(f"--html and --junit both write {html}")
    given = {name for name in ("against", "tokens", "target_tokens", "seed") if is_given(name)}
    if dump is not None and (file is not None or given):
        others = file or ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise UsageError(f"--dump {dump} holds the ids that it was made from: leave {others} out")
    if file is not None and "tokens" in given:
        raise UsageError(f"--tokens draws so many random ones: leave it or {file} out")
    if dump is None and dtype == "tf32":
        raise UsageError(f"--dtype tf32: {against} does not compute in it here; it is for a --dump made elsewhere")
    if dump is None and mapping is not None:
        raise UsageError(f"--map {mapping} says what is what in a dump: give --dump")
    with plainly():
        folder = folder or DEMO_CHECKPOINT
        config = PegasusXConfig.from_pretrained(folder)
        weights, config = load_weights(folder, config, True)
        # The reference computes with the weights that the candidate has, rounded as it rounds them.
        stored = numpy_dtype("float32" if dtype == "tf32" else dtype)
        rounded = {name: np.asarray(tensor).astype(stored) for name, tensor in weights.items()}
        reference = PegasusXForConditionalGeneration(config, rounded, get_backend("golden", dtype="float64"))
        candidate: Candidate | Mapping[str, np.ndarray]
        if dump is not None:
            against, candidate = dump.name, from_dump(dump, mapping)
            inputs = {name: candidate[name] for name in INPUTS if name in candidate}
        else:
            candidate = candidate_of(against, folder, config, rounded, dtype)
            inputs = inputs_of(file, folder, config, (tokens, target_tokens), seed)
        count = f"{np.size(inputs.get('input_ids', ()))} tokens"
        with verification_progress(shown, f"{against} in {dtype}: {count}, layer", config):
            report = verify(reference, candidate, inputs, dtype)
    click.echo(json.dumps(as_dict(report)) if as_json else as_text(report, everything))
    subject = f"{against} in {dtype}, {folder.resolve().name}"
    for path, write in ((html, as_html), (junit, as_junit)):
        if path is not None:
            write_report(path, write(report, subject))
    raise SystemExit(0 if report.passed else 1)


def inputs_of(
    file: Path | None, folder: Path, config: PegasusXConfig, counts: tuple[int, int], seed: int
) -> dict[str, np.ndarray]:
    """Take the ids of a text, or so many random ones, and random target ids.

    Args:
        file: the text, or None.
        folder: of the tokenizer.
        config: of the model.
        counts: source and target tokens.
        seed: of the random numbers.
    """
    rng, (tokens, target_tokens) = np.random.default_rng(seed), counts
    if file is None:
        source = random_ids(rng, tokens, config)
    else:
        _, text = read_document(file)
        source = np.array(PegasusTokenizer.from_pretrained(folder)([text])["input_ids"])
    target = random_ids(rng, target_tokens, config)
    target[:, 0] = config.decoder_start_token_id
    return {"input_ids": source, "decoder_input_ids": target}


def random_ids(rng: np.random.Generator, count: int, config: PegasusXConfig) -> np.ndarray:
    """Draw ids of ordinary tokens (1, count)."""
    return rng.integers(min(106, config.vocab_size - 1), config.vocab_size, (1, count))


def candidate_of(
    against: str, folder: Path, config: PegasusXConfig, weights: dict[str, np.ndarray], dtype: str
) -> Candidate:
    """Make what is to be verified.

    Raises:
        UsageError: transformers is asked for and not installed.
        BackendError: a backend that is not to be had, or not in this dtype.
    """
    if against != "transformers":
        ops = get_backend(against, dtype=dtype)
        return from_backend(PegasusXForConditionalGeneration(config, weights, ops))
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UsageError(f"--against transformers needs {error.name}: pip install transformers torch") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model: Any = transformers.PegasusXForConditionalGeneration
    return from_transformers(
        model.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager").eval()
    )
