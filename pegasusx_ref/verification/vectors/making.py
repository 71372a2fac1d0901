"""A vector in memory: a golden run of a case, recorded, with all that is to be said of its tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing import listen
from pegasusx_ref.verification.arithmetic import ARITHMETICS
from pegasusx_ref.verification.candidates import Inputs
from pegasusx_ref.verification.valid_rows import ValidRows
from pegasusx_ref.verification.vectors.cases import CASES, Case, blocks_of, config_of, flags_of, inputs_of
from pegasusx_ref.verification.vectors.describing import Description
from pegasusx_ref.verification.vectors.drawing import draw_weights
from pegasusx_ref.verification.vectors.sampling import Sampling
from pegasusx_ref.verification.vectors.tolerances import Tolerance, on_exact, on_own, on_rounded, tolerances

FORMAT = "pegasusx-vectors-1"
# What the forward pass depends on.
SETTINGS = (
    "vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "decoder_layers",
    "decoder_attention_heads", "decoder_ffn_dim", "num_global_tokens", "block_size", "stagger_local_blocks",
    "activation_function", "layer_norm_eps", "scale_embedding", "tie_word_embeddings", "decoder_start_token_id",
)  # fmt: skip


class Vector(NamedTuple):
    """A conformance vector.

    Attributes:
        weights: float64, by checkpoint name, without the tied copies.
        inputs: ids and masks; and which rows count, `valid.source` (B, T) and `valid.target` (B, L).
        trace: float64, by trace-point name, in the order of execution.
        manifest: what manifest.json says, all but the checksums.
    """

    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    trace: dict[str, np.ndarray]
    manifest: dict[str, Any]


class Kept:
    """What of a run's tensors is kept, and which of its rows count.

    Args:
        sampling: what is kept.
        rows: what counts.
    """

    def __init__(self, sampling: Sampling, rows: ValidRows) -> None:
        self.sampling, self._rows = sampling, rows

    def all_rows(self, name: str, array: np.ndarray) -> np.ndarray:
        """Give what is kept of a tensor."""
        sample = self.sampling.of(name)
        return array if sample is None else sample.of(array)

    def valid_rows(self, name: str, array: np.ndarray) -> np.ndarray:
        """Give the rows that are kept and count, as a matrix."""
        found: np.ndarray = self.all_rows(name, array)[self.all_rows(name, self._rows.of(name, array.shape))]
        return found


def make_vector(name: str, arithmetics: Sequence[str] = tuple(ARITHMETICS)) -> Vector:
    """Run a case and write down what is to be said of it.

    Args:
        name: a key of `CASES`.
        arithmetics: for which to find tolerances, "float64" among them.
    """
    case, config = CASES[name], config_of(CASES[name])
    weights, inputs = draw_weights(config, name), inputs_of(case, name)
    model = PegasusXForConditionalGeneration(config, weights, get_backend("golden", dtype="float64"))
    blocks = blocks_of(config, case.source_tokens)
    source, target = inputs["attention_mask"], inputs["decoder_attention_mask"]
    sampling = Sampling(case.rows, blocks, config.num_global_tokens)
    kept = Kept(sampling, ValidRows(source, target, blocks))

    trace: dict[str, np.ndarray] = {}

    def see(tensor: str, array: np.ndarray) -> None:
        if sampling.keeps(tensor):
            trace[tensor] = np.ascontiguousarray(kept.all_rows(tensor, array))

    with listen(see):
        model(**inputs)

    description = Description(weights, inputs, sampling)
    manifest = {
        "format": FORMAT,
        "case": name,
        "about": case.about,
        "flags": flags_of(config, inputs, case.rows is not None),
        "config": {key: getattr(config, key) for key in SETTINGS},
        "dimensions": dimensions_of(config, case),
        "tensors": description.tensors,
    }
    found = {a: tolerances_of(model, inputs, a, kept, description if a == "float64" else None) for a in arithmetics}
    for tensor in description.tensors:
        tensor["tolerances"] = {arithmetic: ways[tensor["name"]] for arithmetic, ways in found.items()}
    valid = {"valid.source": source, "valid.target": target & source.any(axis=1, keepdims=True)}
    return Vector(weights, inputs | valid, trace, manifest)


def tolerances_of(
    model: PegasusXForConditionalGeneration,
    inputs: Inputs,
    arithmetic: str,
    kept: Kept,
    describe: Description | None,
) -> dict[str, dict[str, Tolerance]]:
    """Find the tolerances of every tensor for the three ways to use a vector.

    Args:
        model: the golden one.
        inputs: ids and masks.
        arithmetic: a key of `ARITHMETICS`.
        kept: what is kept and counts.
        describe: is shown the run on golden tensors.
    """
    a = ARITHMETICS[arithmetic]
    exact = tolerances(model, inputs, a, on_exact, kept.valid_rows, describe)
    # A golden tensor rounded to float64 is itself.
    rounded = exact if arithmetic == "float64" else tolerances(model, inputs, a, on_rounded(a), kept.valid_rows)
    own = tolerances(model, inputs, a, on_own, kept.valid_rows)
    return {
        name: {
            "exact": exact[name],
            "rounded": exact[name].or_wider(rounded[name]),
            "end_to_end": exact[name].or_wider(own[name]),
        }
        for name in exact
    }


def dimensions_of(config: PegasusXConfig, case: Case) -> dict[str, int]:
    """Say how large the dimensions are that are the same in the whole model."""
    return {
        "B": case.batch,
        "T": case.source_tokens,
        "L": case.target_tokens,
        "G": config.num_global_tokens,
        "K": config.block_size,
        "D": config.d_model,
        "V": config.vocab_size,
    }
