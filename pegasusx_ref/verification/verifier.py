"""Verification of an implementation, operation by operation. [spec 16]"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.errors import InputError
from pegasusx_ref.errors import shown as shown_value
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.model.inputs import mask as check_mask
from pegasusx_ref.model.inputs import token_ids
from pegasusx_ref.model.weights import parameter_shapes
from pegasusx_ref.tracing import listen, record
from pegasusx_ref.tracing.trace_points import is_gradient
from pegasusx_ref.verification.candidates.inputs import MASKS, Loss, check_loss, real_tokens
from pegasusx_ref.verification.candidates.missing_masks import missing_masks
from pegasusx_ref.verification.candidates.sources import Candidate
from pegasusx_ref.verification.checking.arithmetics import Arithmetic, by_precision, get_arithmetic
from pegasusx_ref.verification.checking.candidate_tensors import CandidateTensors
from pegasusx_ref.verification.checking.checker import PRODUCTS, Checker
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.checking.operations import CheckingOperations
from pegasusx_ref.verification.checking.valid_rows import ValidRows
from pegasusx_ref.verification.coverage import blind_spots, coverage
from pegasusx_ref.verification.diagnosis.failed_operation import LayerContext
from pegasusx_ref.verification.findings import FindingCollector
from pegasusx_ref.verification.known_differences import Known, known_differences
from pegasusx_ref.verification.single_layers import LayerRunner, parse_layers
from pegasusx_ref.verification.verdicts import Check, Diagnosis, Failure, Report


def verify(
    reference: PegasusXForConditionalGeneration,
    candidate: Candidate | Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    arithmetic: str | Arithmetic = "float32",
    known: Known = (),
    layers: Iterable[str] | None = None,
    rows: Sequence[int] | None = None,
    gradients: bool = False,
) -> Report:
    """Check an implementation operation by operation, each from the candidate's own tensors. [spec 16.8]

    Args:
        reference: the model, with the candidate's weights; a quantized one for quantized candidates.
        candidate: returns its tensors for the inputs, by trace-point name: `from_transformers`, `from_backend` or any
            function; or a mapping of tensors that are already computed.
        inputs: input_ids (B, T), attention_mask (B, T), decoder_input_ids (B, L), decoder_attention_mask (B, L); the
            masks are optional.
        arithmetic: what the candidate computes in: "float64", "float32", "tf32", "bfloat16", "float16", a name of JAX
            or cuBLAS such as "BF16_BF16_F32", with settings: "bfloat16, softmax=bfloat16, parameters=float32", or
            residual=float32.
        known: differences that do not fail: lines such as "encoder.embeddings: float32 positions, error < 1e-4", a
            file of them, or the name of a list that comes with this package, "transformers" or "flax".
        layers: names of the only layers to check, such as "encoder.0" and "decoder.2-4", which start from the
            candidate's tensors; end-to-end errors then are those of a layer.
        rows: the only rows of the batch to check.
        gradients: check the backward pass too. Inputs, also those that the candidate gets, then have labels (B, L) and
            a label_smoothing, 0 if it is left out. Gradients have the names of trace points and parameters, with
            ``.grad`` behind.

    Raises:
        InputError: an unknown arithmetic, missing inputs, an unreadable known difference, a layer or row that does not
            exist or starts from a tensor that is not shown, or a candidate without any known tensor or gradient.

    Source: rounding errors as random numbers: Higham and Mary 2019, "A new approach to probabilistic rounding error
    analysis".
    """
    check_reference(reference)
    arithmetic = get_arithmetic(arithmetic)
    differences, config = known_differences(known), reference.config
    loss = check_loss(inputs, config.vocab_size) if gradients else None
    if gradients and (layers is not None or rows is not None):
        raise InputError("gradients cannot be combined with layers or rows: those of parameters are sums over all")
    arrays = check_inputs(inputs, config.vocab_size, Loss._fields if gradients else ())
    places = None if layers is None else parse_layers(layers, config)
    kept = None if rows is None else check_rows(rows, len(arrays["input_ids"]))
    tensors = candidate(arrays | (loss._asdict() if loss else {})) if callable(candidate) else candidate
    if not isinstance(tensors, Mapping):
        raise InputError(f"the candidate is a {type(tensors).__name__}: pass tensors by name, or a function that does")
    (B, T), (_, L) = (arrays[ids].shape for ids in MASKS)
    shown = CandidateTensors(tensors, largest_size(config, B, T + 2 * config.block_size, L), kept)  # with padding
    source, target = real_tokens(arrays)
    valid = ValidRows(source, target, [layer_blocks(config, T, i) for i in range(config.encoder_layers)], kept)
    if kept is not None:
        source, target = source[kept], target[kept]
        arrays = {name: None if array is None else array[kept] for name, array in arrays.items()}
    on_host = tensors_on_host(reference)
    model = PegasusXForConditionalGeneration(config, on_host, CheckingOperations(arithmetic))
    context = LayerContext(config, model.weights, source, shown)

    def diagnoses(failure: Failure, before: Collection[str], others: bool) -> list[Diagnosis]:
        from pegasusx_ref.verification.diagnosis.diagnose import diagnose  # thirty files, for failures only
        from pegasusx_ref.verification.gradients.diagnosis import diagnose_gradient

        if is_gradient(failure.check.name):
            return diagnose_gradient(failure, arithmetic)
        return diagnose(failure, arithmetic, context, before, others)

    collector = FindingCollector(diagnoses)
    checker = Checker(shown, valid, differences, arithmetic, collector.add)
    with np.errstate(invalid="ignore", over="ignore"):  # what follows from NaN is NaN
        recorded: AbstractContextManager[dict[str, Any]] = record("*") if gradients else nullcontext({})
        with listen(checker), recorded as forward:
            if places is None:
                model(**arrays)
            else:
                run_layers(model, places, shown, arrays)
        others = by_precision(checker.passes_as) if is_mostly_wrong(checker.checks) else []
        if loss is not None:
            from pegasusx_ref.verification.gradients.backward import check_backward  # for few runs only

            check_backward(config, on_host, arrays, loss, forward, shown, checker, arithmetic)
    names = set(tensors) - {*arrays, *Loss._fields}
    unchecked = set() if gradients else {name for name in names if is_gradient(name)}
    hints = missing_masks(shown, arrays, config) if collector.findings else []
    if unchecked:
        hints.append("gradients are not checked: pass gradients=True, or --gradients")
    if places is not None:
        inside = tuple(f"{place}." for place in places)
        names = {name for name in names if isinstance(name, str) and name.startswith(inside)}
    if not checker.checks:
        some = ", ".join(shown_value(name) for name in list(tensors)[:3]) or "none at all"
        where = "trace point's name" if places is None else f"name of a tensor in {', '.join(places)}"
        raise InputError(f"the candidate has no tensor with a {where}: it has {some}; see pegasusx_ref.TRACE_POINTS")
    return Report(
        table=checker.checks,
        findings=collector.findings,
        failure=collector.failure,
        arithmetic=arithmetic.name,
        coverage=coverage([check.name for check in checker.checks], checker.missing, names - unchecked),
        config=config,
        valid=valid,
        rows=checker.rows,
        known=checker.known,
        assumed=checker.assumed,
        passes_as=others,
        notes=blind_spots(config, source, target),
        hints=hints,
    )


def run_layers(
    model: PegasusXForConditionalGeneration, places: Sequence[str], shown: CandidateTensors, arrays: Mapping[str, Any]
) -> None:
    """Run single layers of a model, each from the candidate's tensors."""
    runner = LayerRunner(model, arrays)
    for place in places:
        runner.run(place, *(Estimate(state, state) for state in runner.states(place, shown)))


def check_reference(reference: object) -> None:
    """Check that the reference is a model of this package."""
    if not isinstance(reference, PegasusXForConditionalGeneration):
        raise InputError(f"the reference is a {type(reference).__name__}: pass a PegasusXForConditionalGeneration")


def check_rows(rows: Sequence[int], B: int) -> list[int]:
    """Check numbers of batch rows."""
    listed = rows if isinstance(rows, Iterable) else [None]
    found = [int(row) if isinstance(row, int | np.integer) else -1 for row in listed]
    if not found or not all(0 <= row < B for row in found):
        raise InputError(f"rows={shown_value(rows)}: pass a list of batch rows, 0 to {B - 1}")
    return found


def is_mostly_wrong(checks: list[Check]) -> bool:
    """Return whether most products fail: then the arithmetic is another one."""
    products = [check.verdict == "fail" for check in checks if check.is_direct and check.operation in PRODUCTS]
    return sum(products) > len(products) / 2


def tensors_on_host(model: PegasusXForConditionalGeneration) -> dict[str, Any]:
    """Return a model's tensors by name as `state_dict` does, but quantized ones as they are, for diagnosis."""
    to_numpy, tensors = model.ops.to_numpy, ((name, model.weights[name]) for name in parameter_shapes(model.config))
    return {name: x.map(to_numpy) if isinstance(x, QuantizedMatrix) else to_numpy(x) for name, x in tensors}


def largest_size(config: PegasusXConfig, B: int, T: int, L: int) -> int:
    """Return an upper limit for the number of elements of any tensor of a run.

    Args:
        config: of the model.
        B: texts.
        T: source tokens.
        L: target tokens.
    """
    G, K = config.num_global_tokens, config.block_size
    M, H = max(config.encoder_ffn_dim, config.decoder_ffn_dim), config.encoder_attention_heads
    parameters = max(math.prod(shape) for shape in parameter_shapes(config).values())  # have gradients
    states, logits = max(T, L, G) * max(M, config.d_model), L * config.vocab_size
    scores = max(H * max(G * (G + T), min(K, T) * (G + min(K, T))), config.decoder_attention_heads * L * max(L, T))
    return max(B * max(states, logits, scores), parameters)


def check_inputs(inputs: Mapping[str, Any], vocab_size: int, more: Collection[str] = ()) -> dict[str, Any]:
    """Check all ids and masks before anything runs; inputs may have more, which are checked elsewhere."""
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs are a {type(inputs).__name__}: pass arrays by name")
    if others := set(inputs) - {*MASKS, *MASKS.values(), *more}:
        raise InputError(f"inputs have {', '.join(sorted(others))}: a run takes {', '.join(MASKS)} and their masks")
    arrays: dict[str, Any] = {}
    for ids, mask in MASKS.items():
        if inputs.get(ids) is None:
            raise InputError(f"{ids} is missing: a run takes {' and '.join(MASKS)}, and a dump must contain them")
        arrays[ids] = token_ids(ids, inputs[ids], vocab_size)
        arrays[mask] = check_mask(mask, inputs.get(mask), arrays[ids].shape)
    return arrays
