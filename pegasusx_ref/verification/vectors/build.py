"""The construction of a vector in memory: a recorded golden run of a case, and its manifest."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing import listen, record
from pegasusx_ref.verification.candidates.inputs import Inputs
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS
from pegasusx_ref.verification.checking.valid_rows import ValidRows
from pegasusx_ref.verification.vectors.deterministic_values import draw_weights
from pegasusx_ref.verification.vectors.kept_rows import KeptRows
from pegasusx_ref.verification.vectors.tensor_entries import TensorEntries
from pegasusx_ref.verification.vectors.tolerances import (
    VECTOR_ARITHMETICS,
    Tolerance,
    on_exact,
    on_own,
    on_rounded,
    tolerances,
)
from pegasusx_ref.verification.vectors.vector_cases import (
    CASES,
    all_blocks,
    case_config,
    case_flags,
    case_inputs,
    case_labels,
)

FORMAT = "pegasusx-vectors-1"
# The configuration keys that the forward pass depends on.
SETTINGS = (
    "vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "decoder_layers",
    "decoder_attention_heads", "decoder_ffn_dim", "num_global_tokens", "block_size", "stagger_local_blocks",
    "activation_function", "layer_norm_eps", "scale_embedding", "tie_word_embeddings", "decoder_start_token_id",
)  # fmt: skip


class Vector(NamedTuple):
    """A conformance vector.

    Attributes:
        weights: float64, by checkpoint name, without the tied copies.
        inputs: ids and masks; and the rows that count, `valid.source` (B, T) and `valid.target` (B, L).
        trace: float64, by trace-point name, in the order of execution.
        manifest: the content of manifest.json, without the checksums.
        gradients: labels (B, L), and float64 gradients by the names of trace points and weights with ``.grad`` behind;
            none in most cases.
    """

    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    trace: dict[str, np.ndarray]
    manifest: dict[str, Any]
    gradients: Mapping[str, np.ndarray] = MappingProxyType({})


def make_vector(name: str, arithmetics: Sequence[str] = VECTOR_ARITHMETICS) -> Vector:
    """Run a case and build its vector.

    Args:
        name: a key of `CASES`.
        arithmetics: those to compute tolerances for; "float64" must be one of them.
    """
    case, config = CASES[name], case_config(CASES[name])
    weights, inputs = draw_weights(config, name), case_inputs(case, name)
    model = PegasusXForConditionalGeneration(config, weights, get_backend("golden", dtype="float64"))
    source, target = inputs["attention_mask"], inputs["decoder_attention_mask"]
    valid = ValidRows(source, target, all_blocks(config, case.source_tokens))
    kept = KeptRows(case.rows, valid, config.num_global_tokens)

    trace: dict[str, np.ndarray] = {}

    def record(tensor: str, array: np.ndarray) -> None:
        if kept.keeps(tensor):
            trace[tensor] = np.ascontiguousarray(kept.take(tensor, array))

    with listen(record):
        model(**inputs)

    described = TensorEntries(weights, inputs, kept)
    found = {a: vector_tolerances(model, inputs, a, kept, described if a == "float64" else None) for a in arithmetics}
    # Format 1 lists the embedding lookups first, by name, then everything else in the order of execution.
    lookups = sorted((e for e in described.entries if e["name"].endswith(".embed_tokens")), key=itemgetter("name"))
    entries = [*lookups, *(e for e in described.entries if e not in lookups)]
    for entry in entries:
        entry["tolerances"] = {arithmetic: by_name[entry["name"]] for arithmetic, by_name in found.items()}
    manifest = {
        "format": FORMAT,
        "case": name,
        "about": case.about,
        "flags": case_flags(config, inputs, case.rows is not None),
        "config": {key: getattr(config, key) for key in SETTINGS},
        "dimensions": {
            "B": case.batch,
            "T": case.source_tokens,
            "L": case.target_tokens,
            "G": config.num_global_tokens,
            "K": config.block_size,
            "D": config.d_model,
            "V": config.vocab_size,
        },
        "tensors": entries,
    }
    valid_inputs = {"valid.source": valid.source_mask_BT, "valid.target": valid.target_mask_BL}
    gradients = make_gradients(model, inputs, case_labels(case, name)) if case.has_gradients else {}
    return Vector(weights, inputs | valid_inputs, trace, manifest, gradients)


def make_gradients(
    model: PegasusXForConditionalGeneration, inputs: Inputs, labels_BL: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the gradients of a vector.

    Args:
        model: the golden model.
        inputs: ids and masks.
        labels_BL: (B, L).
    """
    with record("*.grad") as found:
        _, of_weights = model.loss_and_gradients(**inputs, labels=labels_BL)
    return {"labels": labels_BL} | found | {f"{name}.grad": gradient for name, gradient in of_weights.items()}


def vector_tolerances(
    model: PegasusXForConditionalGeneration,
    inputs: Inputs,
    arithmetic: str,
    kept: KeptRows,
    describe: TensorEntries | None,
) -> dict[str, dict[str, Tolerance]]:
    """Compute the tolerances of every tensor for the three ways to use a vector.

    Args:
        model: the golden model.
        inputs: ids and masks.
        arithmetic: one of `VECTOR_ARITHMETICS`.
        kept: the part of the trace that is kept, and the rows that count.
        describe: called with every tensor of the run on exact golden tensors.
    """
    a = ARITHMETICS[arithmetic]
    exact = tolerances(model, inputs, a, on_exact, kept.take_valid, describe)
    # A golden tensor is float64 already: rounding changes nothing.
    rounded = exact if arithmetic == "float64" else tolerances(model, inputs, a, on_rounded(a), kept.take_valid)
    own = tolerances(model, inputs, a, on_own, kept.take_valid)
    return {
        name: {
            "exact": exact[name],
            "rounded": exact[name].or_wider(rounded[name]),
            "end_to_end": exact[name].or_wider(own[name]),
        }
        for name in exact
    }
