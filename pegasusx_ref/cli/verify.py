"""``pegasusx-ref verify``: check another implementation, and find its first wrong tensor."""

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.backend.registry import backend_names, get_backend
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.cli.candidates import build_candidate
from pegasusx_ref.cli.commands import INPUT_FILE, OUTPUT_FILE, Command
from pegasusx_ref.cli.messages import UsageError, note
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
from pegasusx_ref.cli.printing import print_text
from pegasusx_ref.cli.progress import layer_progress
from pegasusx_ref.cli.verification_inputs import (
    build_inputs,
    check_sources,
    inputs_of_dump,
    numbers,
    read_inputs,
    write_inputs,
)
from pegasusx_ref.cli.verification_options import (
    all_option,
    arithmetic_option,
    html_option,
    junit_option,
    known_option,
    map_option,
    read_lists,
    show_report,
    strict_option,
)
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.loading import load_weights
from pegasusx_ref.model.quantization import Quantization, quantize_weights
from pegasusx_ref.verification import Candidate, from_dump, verify
from pegasusx_ref.verification.candidates.inputs import INPUTS, MASKS, Loss
from pegasusx_ref.verification.checking.arithmetics import DTYPES, Arithmetic, get_arithmetic
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.coverage import suggested_inputs


@click.command("verify", cls=Command)
@click.argument("file", required=False, type=INPUT_FILE)
@model_option
@revision_option
@quantization_option
@quantize_embedding_option
@click.option(
    "--against",
    default="transformers",
    show_default=True,
    metavar="NAME",
    help=f"transformers, or a backend: {', '.join(backend_names())}.",
)
@click.option(
    "--dump",
    type=INPUT_FILE,
    metavar="FILE",
    help="The implementation's tensors: safetensors or npz; with the input_ids, decoder_input_ids and, where the run "
    "had them, attention_mask and decoder_attention_mask, unless --inputs holds those.",
)
@map_option
@arithmetic_option("--dtype")
@known_option
@strict_option
@click.option("--tokens", default=300, show_default=True, type=POSITIVE, help="Random source tokens, without FILE.")
@click.option("--target-tokens", default=8, show_default=True, type=POSITIVE, help="Random target tokens.")
@click.option("--seed", default=0, show_default=True, type=NOT_NEGATIVE, help="Seed of the random tokens.")
@click.option(
    "--inputs", "batch", type=INPUT_FILE, metavar="FILE", help="Ids and masks of the run: safetensors or npz."
)
@click.option(
    "--suggest-inputs",
    "suggestion",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Write ids and masks that show what padding behind the tokens can show (safetensors or npz); check nothing.",
)
@click.option(
    "--gradients",
    is_flag=True,
    help="Check the backward pass of transformers or of a dump too: the gradients of the loss of the labels that stand "
    "with the ids, or are random. A gradient has the name of its trace point or parameter, with .grad behind.",
)
@click.option("--layers", metavar="NAMES", help="Check these layers only, such as encoder.0,decoder.2-4.")
@click.option("--rows", metavar="NUMBERS", help="Check these rows of the batch only, such as 0,2-4.")
@all_option
@json_option
@html_option
@junit_option
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
    dtype: Arithmetic,
    known: tuple[Path, ...],
    strict: bool,
    tokens: int,
    target_tokens: int,
    seed: int,
    batch: Path | None,
    suggestion: Path | None,
    gradients: bool,
    layers: str | None,
    rows: str | None,
    everything: bool,
    as_json: bool,
    html: Path | None,
    junit: Path | None,
    shown: bool,
) -> None:
    """Check an implementation operation by operation, on the text of FILE or on random tokens.

    Each operation is recomputed in float64 from the implementation's own tensors, and the difference is compared with
    the rounding error of that operation. The tensors that fail are listed in the order of execution. rho is the largest
    ratio of a row's error to its expected rounding error: at most 3 in a correct implementation. A tensor fails if rho
    exceeds 6 or one element its bound, and is listed as "warn" if rho exceeds 3; error, sigma and bound are those of
    the worst element. "wide" are tensors with a larger tolerance, because the implementation does not show all inputs
    of their operation; "blind" are those that cannot be checked, because rounding would hide all but gross errors. FILE
    is read as one document. The exit code is 0 if no tensor fails, except for known differences; 1 if one does, or with
    --strict if the implementation does not show exactly the tensors of the run.
    """
    check_sources(file, dump, batch, suggestion, given_options())
    rows_kept, plain = numbers(rows), get_arithmetic(dtype.dtype)
    if dump is None and dtype._replace(name=plain.name) != plain:
        dtypes = DTYPES if against == "transformers" else get_backend(against).dtypes
        raise UsageError(f"--dtype {dtype.name} is for a --dump: {against} computes in {', '.join(dtypes)} here")
    if dump is None and mapping is not None:
        raise UsageError(f"--map {mapping} maps the names of a dump: add --dump FILE")
    if gradients and dump is suggestion is None and against != "transformers":
        raise UsageError(f"--gradients: {against} has no backward pass: pass --against transformers, or --dump FILE")
    names = (*INPUTS, *Loss._fields) if gradients else INPUTS
    hub, name = hub_options(folder, revision), folder or DEMO_CHECKPOINT
    place = locate(name, "model", hub)
    config = PegasusXConfig.from_pretrained(place.folder)
    if suggestion is not None:
        inputs = suggested_inputs(config, seed, gradients)
        write_inputs(suggestion, inputs)
        (B, T), (_, L) = (inputs[name].shape for name in MASKS)
        print_text(f"Wrote {suggestion}: {B} texts of up to {T} source and {L} target tokens, with masks")
        model = "" if folder is None else f" --model {folder}"
        model += " --gradients" if gradients else ""
        print_text(f"Run the implementation on it, then: pegasusx-ref verify --dump FILE --inputs {suggestion}{model}")
        return
    weights, config = load_weights(place.folder, config, True, place.adapter)
    # The reference has the candidate's weights, rounded to the dtype in which the candidate stores them.
    stored = numpy_dtype(dtype.stored)
    requested = Quantization.requested(quantization, quantize_embedding)
    rounded = {
        name: tensor if isinstance(tensor, QuantizedMatrix) else np.asarray(tensor).astype(stored)
        for name, tensor in quantize_weights(weights, requested, True, place.folder).items()
    }
    reference = PegasusXForConditionalGeneration(config, rounded, get_backend("golden", dtype="float64"))
    candidate: Candidate | Mapping[str, np.ndarray]
    if dump is not None:
        given = {} if batch is None else read_inputs(batch, names)
        candidate = from_dump(dump, mapping, config, given)
        against, inputs = dump.name, inputs_of_dump(dump, candidate, batch, given, names)
    else:
        counts = (tokens, target_tokens)
        inputs = read_inputs(batch, names) if batch else build_inputs(file, name, hub, config, counts, seed, gradients)
        candidate = build_candidate(against, place, reference, rounded, plain.name)
    count = f"{np.size(inputs.get('input_ids', ()))} tokens"
    description, parts = f"{against} in {dtype.name}: {count}, layer", (config.encoder_layers, config.decoder_layers)
    with layer_progress(description, *parts, shown=shown, of=Estimate):
        report = verify(reference, candidate, inputs, dtype, read_lists(known), layers, rows_kept, gradients)
    if dump is None and against == "transformers" and not (known or report.passed):
        note("differences of transformers that are known: --known transformers tells them from others")
    subject = f"{against} in {dtype.name}, {name.resolve().name}"
    raise SystemExit(show_report(report, subject, strict, everything, as_json, html, junit))


def given_options() -> list[str]:
    """List the options that are on the command line."""
    context, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    options = [param for param in context.command.params if isinstance(param, click.Option)]
    return [o.opts[0] for o in options if o.name and context.get_parameter_source(o.name) is not default]
