"""Checks of a backend against the golden functions in float64, shared by the CPU and the GPU tests."""

from typing import Any

import numpy as np
from backend_parameters import rounded
from strategies import Batch, Operation
from tolerances import MODEL, OPERATIONS, assert_close

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.generation.logits_processors import (
    forbid_early_end,
    forbid_repeated_ngrams,
    force_end,
    penalize_repetition,
)
from pegasusx_ref.model.weights import random_weights

GOLDEN = GoldenBackend("cpu", "float64")


def results(ops: Any, operation: Operation, dtype: str) -> list[np.ndarray]:
    """Run an operation on a backend, with its arguments rounded to a dtype."""
    arguments = {
        name: ops.asarray(rounded(value, dtype) if value.dtype.kind == "f" else value)
        if isinstance(value, np.ndarray)
        else value
        for name, value in operation.arguments.items()
    }
    outputs = getattr(ops, operation.name)(**arguments)
    return [np.asarray(ops.to_numpy(x)) for x in (outputs if isinstance(outputs, tuple) else (outputs,))]


def scale_of(operation: Operation) -> float:
    """Return the magnitude of the terms that an operation sums, which its rounding errors are relative to."""
    sizes = {k: np.abs(v) for k, v in operation.arguments.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
    match operation.name:
        case "attention" | "global_local_attention":
            return max(float(size.max()) for name, size in sizes.items() if "v_BH" in name)
        case "linear" | "linear_full_precision":
            return float((sizes["x"] @ sizes["weight"].T).max() + sizes.get("bias", np.zeros(1)).max())
        case "layer_norm":
            return float(sizes["weight_D"].max() + sizes["bias_D"].max())
        case "activation" | "log_softmax" | "cross_entropy":
            return max(float(size.max()) for size in sizes.values())
    return 0.0


def check_operation(ops: Any, operation: Operation) -> None:
    """Compare the results of an operation with those of the golden function on the same numbers."""
    name, dtype = operation.name, ops.dtype
    pairs = zip(results(ops, operation, dtype), results(GOLDEN, operation, dtype), strict=True)
    for i, (actual, expected) in enumerate(pairs):
        tensor = f"{name} result {i} on {ops.name} {dtype}"
        assert_close(tensor, actual, expected, OPERATIONS[name][dtype], scale_of(operation))


def check_model(ops: Any, config: PegasusXConfig, seed: int, batch: Batch) -> None:
    """Compare logits and encoded tokens of a whole model with the golden model's, on the same rounded weights."""
    weights = {name: rounded(w, ops.dtype) for name, w in random_weights(config, seed, head=True).items()}
    expected, actual = (
        PegasusXForConditionalGeneration(config, weights, each)(**batch._asdict()) for each in (GOLDEN, ops)
    )
    assert_close(f"logits on {ops.name} {ops.dtype}", actual.logits, expected.logits, MODEL[ops.dtype])
    mask = np.ones(batch.input_ids.shape) if batch.attention_mask is None else batch.attention_mask
    found, wanted = (np.asarray(o.encoder_last_hidden_state)[mask.astype(bool)] for o in (actual, expected))
    assert_close(f"encoder on {ops.name} {ops.dtype}", found, wanted, MODEL[ops.dtype])


def check_top_k(ops: Any, scores: np.ndarray, count: int) -> None:
    """Compare `stable_top_k` of float32 scores with a stable sort of all of them."""
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    best, top_columns = (ops.to_numpy(x) for x in ops.stable_top_k(ops.to_float32(scores), count))
    np.testing.assert_array_equal(top_columns, columns)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, columns, axis=1))
    assert (best.dtype, top_columns.dtype) == (np.float32, np.int64)


def check_logits_processors(ops: Any, seed: int, length: int, vocab: int) -> None:
    """Compare logits processors with plain NumPy bit for bit: they only select numbers, or round once."""
    rng = np.random.default_rng(seed)
    ids, sources = rng.integers(0, vocab, (3, length)), rng.integers(0, vocab, (3, 7))
    scores = rng.standard_normal((3, vocab)).astype(np.float32)
    scores[rng.random((3, vocab)) < 0.2] = -np.inf
    seen, penalty = np.take_along_axis(scores, ids, axis=1), np.float32(rng.uniform(0.5, 2))
    penalized = scores.copy()
    np.put_along_axis(penalized, ids, np.where(seen < 0, seen * penalty, seen / penalty), axis=1)
    size, eos = int(rng.integers(1, 5)), [1, vocab - 1]
    excluded = scores.copy()
    excluded[:, eos] = -np.inf
    forced = np.full_like(scores, -np.inf)
    forced[:, eos] = 0
    pairs = {
        "penalty": (penalize_repetition(ids, ops.to_float32(scores), float(penalty), ops), penalized),
        "n-grams": (
            forbid_repeated_ngrams(ids, ops.to_float32(scores), size, None, ops),
            without(ids, scores, ids, size),
        ),
        "n-grams of the source": (
            forbid_repeated_ngrams(ids, ops.to_float32(scores), size, sources, ops),
            without(ids, scores, sources, size),
        ),
        "end before the minimum length": (forbid_early_end(ids, ops.to_float32(scores), length + 1, eos), excluded),
        "end at the minimum length": (forbid_early_end(ids, ops.to_float32(scores), length, eos), scores),
        "forced end at the last token": (force_end(ids, ops.to_float32(scores), length + 1, eos), forced),
        "forced end before the last token": (force_end(ids, ops.to_float32(scores), length + 2, eos), scores),
        "no forced end": (force_end(ids, ops.to_float32(scores), length + 1, []), scores),
    }
    for name, (found, expected) in pairs.items():
        np.testing.assert_array_equal(np.asarray(ops.to_numpy(found)), expected, err_msg=name)


def without(ids: np.ndarray, scores: np.ndarray, sources: np.ndarray, size: int) -> np.ndarray:
    """Exclude tokens that would repeat an n-gram of the sources, one n-gram at a time."""
    scores = scores.copy()
    for row, text in enumerate(ids.tolist()):
        source = sources[row].tolist()
        for start in range(len(source) - size + 1):
            *before, last = source[start : start + size]
            if len(text) >= size - 1 and text[len(text) - (size - 1) :] == before:
                scores[row, last] = -np.inf
    return scores
