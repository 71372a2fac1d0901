"""``pegasusx-ref verify``: check another implementation, and find its first wrong tensor."""

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.cli.candidates import build_candidate
from pegasusx_ref.cli.commands import INPUT_FILE, OUTPUT_FILE, Command
from pegasusx_ref.cli.documents import read_document
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.cli.options import (
    NOT_NEGATIVE,
    POSITIVE,
    hub_options,
    json_option,
    model_option,
    progress_option,
    quantization_option,
    quantize_embedding_option,
    revision_option,
)
from pegasusx_ref.cli.printing import print_json, print_text
from pegasusx_ref.cli.progress import layer_progress
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.files.writing import write_text
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.loading import load_weights
from pegasusx_ref.model.quantization import Quantization, quantize_weights
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.verification import Candidate, from_dump, verify
from pegasusx_ref.verification.dumps import INPUTS
from pegasusx_ref.verification.error_bounds import ARITHMETICS
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.reports import as_dict, as_html, as_junit, as_text


@click.command("verify", cls=Command)
@click.argument("file", required=False, type=INPUT_FILE)
@model_option
@revision_option
@quantization_option
@quantize_embedding_option
@click.option("--against", default="transformers", show_default=True, help="transformers, or one of our backends.")
@click.option(
    "--dump",
    type=INPUT_FILE,
    metavar="FILE",
    help="The implementation's tensors, with the input_ids and decoder_input_ids of its run: safetensors or npz.",
)
@click.option(
    "--map", "mapping", type=INPUT_FILE, metavar="FILE", help="TOML: maps trace points to the dump's tensors."
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(list(ARITHMETICS)),
    help="What the implementation computes in.",
)
@click.option("--tokens", default=300, show_default=True, type=POSITIVE, help="Random source tokens, without FILE.")
@click.option("--target-tokens", default=8, show_default=True, type=POSITIVE, help="Random target tokens.")
@click.option("--seed", default=0, show_default=True, type=NOT_NEGATIVE, help="Seed of the random tokens.")
@click.option("--all", "everything", is_flag=True, help="List the tensors that pass too.")
@json_option
@click.option("--html", type=OUTPUT_FILE, metavar="FILE", help="Write an HTML page with heatmaps of the errors.")
@click.option("--junit", type=OUTPUT_FILE, metavar="FILE", help="Write JUnit XML: one test case per tensor.")
@progress_option
def verify_command(
    file: Path | None,
    folder: Path | None,
    revision: str | None,
    quantization: str | None,
    quantize_embedding: bool,
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

    Each operation is recomputed in float64 from the implementation's own tensors, and the difference is compared with
    the rounding error of that operation. The tensors that fail are listed in the order of execution. rho is the largest
    ratio of a row's error to its expected rounding error: at most 3 in a correct implementation, a failure above 6.
    error, sigma and bound are those of the worst element, which fails beyond its bound. FILE is read as one document.
    The exit code is 0 if no tensor fails, 1 if one does.
    """
    given = {name for name in ("against", "tokens", "target_tokens", "seed") if is_given(name)}
    if dump is not None and (file is not None or given):
        others = file or ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise UsageError(f"--dump {dump} contains the ids of its run and cannot be combined with {others}")
    if file is not None and "tokens" in given:
        raise UsageError(f"--tokens is for random input and cannot be combined with {file}")
    if dump is None and dtype == "tf32":
        raise UsageError(f"--dtype tf32 is for a --dump: {against} does not compute in tf32 here")
    if dump is None and mapping is not None:
        raise UsageError(f"--map {mapping} maps the names of a dump: add --dump FILE")
    hub, name = hub_options(folder, revision), folder or DEMO_CHECKPOINT
    place = locate(name, "model", hub)
    config = PegasusXConfig.from_pretrained(place.folder)
    weights, config = load_weights(place.folder, config, True, place.adapter)
    # The reference has the candidate's weights, rounded to the candidate's dtype.
    stored = numpy_dtype("float32" if dtype == "tf32" else dtype)
    requested = Quantization.requested(quantization, quantize_embedding)
    rounded = {
        name: tensor if isinstance(tensor, QuantizedMatrix) else np.asarray(tensor).astype(stored)
        for name, tensor in quantize_weights(weights, requested, True, place.folder).items()
    }
    reference = PegasusXForConditionalGeneration(config, rounded, get_backend("golden", dtype="float64"))
    candidate: Candidate | Mapping[str, np.ndarray]
    if dump is not None:
        against, candidate = dump.name, from_dump(dump, mapping)
        inputs = {name: candidate[name] for name in INPUTS if name in candidate}
    else:
        inputs = build_inputs(file, name, hub, config, (tokens, target_tokens), seed)
        candidate = build_candidate(against, place, reference, rounded, dtype)
    count = f"{np.size(inputs.get('input_ids', ()))} tokens"
    description, layers = f"{against} in {dtype}: {count}, layer", (config.encoder_layers, config.decoder_layers)
    with layer_progress(description, *layers, shown=shown, of=Estimate):
        report = verify(reference, candidate, inputs, dtype)
    if as_json:
        print_json(as_dict(report))
    else:
        print_text(as_text(report, everything))
    subject = f"{against} in {dtype}, {name.resolve().name}"
    for path, write in ((html, as_html), (junit, as_junit)):
        if path is not None:
            write_text(path, write(report, subject))
    raise SystemExit(0 if report.passed else 1)


def is_given(name: str) -> bool:
    """Return whether an option is on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def build_inputs(
    file: Path | None, name: Path, hub: HubOptions, config: PegasusXConfig, counts: tuple[int, int], seed: int
) -> dict[str, np.ndarray]:
    """Tokenize a text or draw random source ids, and draw random target ids.

    Args:
        file: the text, or None.
        name: of the checkpoint, for its tokenizer.
        hub: how the name is looked up.
        config: of the model.
        counts: the number of random source and target tokens.
        seed: of the random ids.
    """
    rng, (tokens, target_tokens) = np.random.default_rng(seed), counts
    if file is None:
        source = random_ids(rng, tokens, config)
    else:
        _, text = read_document(file)
        source = np.array(PegasusTokenizer.from_pretrained(name, **hub)([text])["input_ids"])
    target = random_ids(rng, target_tokens, config)
    target[:, 0] = config.decoder_start_token_id
    return {"input_ids": source, "decoder_input_ids": target}


def random_ids(rng: np.random.Generator, count: int, config: PegasusXConfig) -> np.ndarray:
    """Draw ids (1, count) above the special tokens."""
    return rng.integers(min(106, config.vocab_size - 1), config.vocab_size, (1, count))
