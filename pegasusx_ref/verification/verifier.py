"""Verification of an implementation, operation by operation. [spec 16]"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.model.inputs import mask as check_mask
from pegasusx_ref.model.inputs import token_ids
from pegasusx_ref.model.weights import parameter_shapes
from pegasusx_ref.tracing import listen
from pegasusx_ref.verification.candidates import Candidate
from pegasusx_ref.verification.checker import Checker
from pegasusx_ref.verification.diagnosis import diagnose
from pegasusx_ref.verification.dumps import MASKS
from pegasusx_ref.verification.error_bounds import ARITHMETICS, Arithmetic
from pegasusx_ref.verification.known_bugs import LayerContext
from pegasusx_ref.verification.operations import CheckingOperations
from pegasusx_ref.verification.valid_rows import ValidRows
from pegasusx_ref.verification.verdicts import Report


def verify(
    reference: PegasusXForConditionalGeneration,
    candidate: Candidate | Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    arithmetic: str = "float32",
) -> Report:
    """Check an implementation operation by operation, each from the candidate's own tensors. [spec 16.8]

    Args:
        reference: the model, with the candidate's weights; a quantized one for quantized candidates.
        candidate: returns its tensors for the inputs, by trace-point name: `from_transformers`, `from_backend` or any
            function; or a mapping of tensors that are already computed.
        inputs: input_ids (B, T), attention_mask (B, T), decoder_input_ids (B, L), decoder_attention_mask (B, L); the
            masks are optional.
        arithmetic: what the candidate computes in: "float64", "float32", "tf32", "bfloat16", "float16".

    Raises:
        InputError: an unknown arithmetic, missing inputs, or a candidate without any known tensor.

    Source: rounding errors as random numbers: Higham and Mary 2019, "A new approach to probabilistic rounding error
    analysis".
    """
    ops = CheckingOperations(get_arithmetic(arithmetic))
    config = reference.config
    arrays = check_inputs(inputs, config.vocab_size)
    tensors = candidate(arrays) if callable(candidate) else candidate
    if not isinstance(tensors, Mapping):
        raise InputError(f"the candidate is a {type(tensors).__name__}: pass tensors by name, or a function that does")
    T = arrays["input_ids"].shape[1]
    blocks = [layer_blocks(config, T, i) for i in range(config.encoder_layers)]
    source, target = (
        np.ones(arrays[ids].shape, dtype=bool) if arrays[mask] is None else arrays[mask] for ids, mask in MASKS.items()
    )
    model = PegasusXForConditionalGeneration(config, tensors_on_host(reference), ops)
    valid = ValidRows(source, target, blocks)
    checker = Checker(tensors, valid, largest_size(config, source.shape[0], source.shape[1], target.shape[1]))
    with listen(checker):
        model(**arrays)
    compared = {check.name for check in checker.checks}
    if not compared:
        names = ", ".join(repr(name) for name in list(tensors)[:3]) or "none at all"
        raise InputError(
            f"the candidate has no tensor with a trace point's name: it has {names}; see pegasusx_ref.TRACE_POINTS"
        )
    diagnoses = []
    if (failure := checker.failure) is not None:
        context = LayerContext(config, model.weights, source, failure.layer_tensors)
        diagnoses = diagnose(failure, ops.arithmetic, context)
    unknown = sorted(set(tensors) - compared - set(arrays))
    return Report(checker.checks, failure, diagnoses, arithmetic, unknown, config, valid, checker.rows)


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
    states, logits = max(T, L, G) * max(M, config.d_model), L * config.vocab_size
    scores = max(H * max(G * (G + T), min(K, T) * (G + min(K, T))), config.decoder_attention_heads * L * max(L, T))
    return B * max(states, logits, scores)


def get_arithmetic(name: str) -> Arithmetic:
    """Return the arithmetic of a name.

    Raises:
        InputError: the name is unknown.
    """
    if not isinstance(name, str) or name not in ARITHMETICS:
        raise InputError(f"arithmetic={shown(name)} is not known: pass one of {', '.join(ARITHMETICS)}")
    return ARITHMETICS[name]


def check_inputs(inputs: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Check all ids and masks before anything runs."""
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs are a {type(inputs).__name__}: pass arrays by name")
    if others := set(inputs) - {*MASKS, *MASKS.values()}:
        raise InputError(f"inputs have {', '.join(sorted(others))}: a run takes {', '.join(MASKS)} and their masks")
    arrays: dict[str, Any] = {}
    for ids, mask in MASKS.items():
        if inputs.get(ids) is None:
            raise InputError(f"{ids} is missing: a run takes {' and '.join(MASKS)}, and a dump must contain them")
        arrays[ids] = token_ids(ids, inputs[ids], vocab_size)
        arrays[mask] = check_mask(mask, inputs.get(mask), arrays[ids].shape)
    return arrays
