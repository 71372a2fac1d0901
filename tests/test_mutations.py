"""Each of these mutations of the torch and the NumPy backend is detected by comparison with the golden functions.

A mutation wraps a named function of a backend so that the function makes a mistake: `broken(original, *arguments)` is
called in its place. The mutations of the CUDA kernels are in test_cupy.py.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import pegasusx_numpy.attention
import pegasusx_numpy.linear
import pegasusx_numpy.thread_pool
import pytest
from backend_parameters import MARKS
from small_chunks import small_chunks
from tolerances import relative_error

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend
from pegasusx_ref.model.weights import random_weights

pytestmark = pytest.mark.slow

B, T, L = 3, 70, 40
BLOCK = 8
CONFIG = PegasusXConfig.preset("tiny", encoder_layers=2, block_size=BLOCK, activation_function="gelu", init_std=0.3)


class Mutation(NamedTuple):
    """A function of a backend and what is called in its place, with all arguments by position."""

    module: str
    function: str  # or Class.method
    broken: Callable[..., Any]


# --- torch


def padding_in_blocks(original: Any, qkv: Any, start: int, stop: int) -> Any:
    """Let blocks that padding cuts short see three tokens of it; keys from 0 on are the global tokens'."""
    return original(qkv, start, stop + 3 if start else stop)


def no_globals_in_whole_blocks(original: Any, qkv: Any, *where: Any) -> None:
    nothing = qkv.global_k_BHGF[:, :, :0]
    original(qkv._replace(global_k_BHGF=nothing, global_v_BHGF=nothing), *where)


def without_the_last_group(original: Any, qkv: Any, start: int, stop: int, num_blocks: int, context: Any) -> None:
    if num_blocks == import_module("pegasusx_torch.global_local").MAX_BATCHED_BLOCKS:
        original(qkv, start, stop, num_blocks, context)


def cosines_first(original: Any, ops: Any, x: Any, start: int) -> Any:
    positions = original(ops, 0 * x, start)
    return x + positions.roll(x.shape[2] // 2, 2)


UNFUSED = ("pegasusx_torch.attention", "attention_unfused")
KEYS_AND_VALUES = ("pegasusx_torch.global_local", "QKV.keys_and_values")
EQUAL_BLOCKS = ("pegasusx_torch.global_local", "_attend_equal_blocks")
TORCH = {
    # Frequencies are powers of the base: this exponent makes 10000 to 20000.
    "wrong base of the frequencies": Mutation(
        "pegasusx_torch.backend",
        "position_frequencies",
        lambda f, width, device: f(width, device) ** (math.log(20000) / math.log(10000)),
    ),
    "scale missing with few queries": Mutation(*UNFUSED, lambda f, q, *kv: f(q * q.shape[3] ** 0.5, *kv)),
    "mask missing with few queries": Mutation(*UNFUSED, lambda f, q, k, v, visible: f(q, k, v, None)),
    "mask inverted with few queries": Mutation(
        *UNFUSED, lambda f, q, k, v, visible: f(q, k, v, None if visible is None else ~visible)
    ),
    "padding visible inside a block": Mutation(*KEYS_AND_VALUES, padding_in_blocks),
    "padding visible to the global tokens": Mutation(
        "pegasusx_torch.global_local", "_attention_of_globals", lambda f, qkv, length: f(qkv, qkv.k_BHTF.shape[2])
    ),
    "blocks shifted to the first one": Mutation(
        *EQUAL_BLOCKS, lambda f, qkv, start, stop, *where: f(qkv, 0, stop - start, *where)
    ),
    "the first row's length for all rows": Mutation(
        "pegasusx_torch.backend",
        "global_local_attention",
        lambda f, qkv, mask, lengths, blocks: f(qkv, mask, lengths and lengths[:1] * len(lengths), blocks),
    ),
    "no global tokens in whole blocks": Mutation(*EQUAL_BLOCKS, no_globals_in_whole_blocks),
    "global keys as global values": Mutation(
        *EQUAL_BLOCKS, lambda f, qkv, *where: f(qkv._replace(global_v_BHGF=qkv.global_k_BHGF), *where)
    ),
    "keys as values": Mutation(*EQUAL_BLOCKS, lambda f, qkv, *where: f(qkv._replace(v_BHTF=qkv.k_BHTF), *where)),
    "the last group of blocks missing": Mutation(*EQUAL_BLOCKS, without_the_last_group),
} | {
    name: Mutation("pegasusx_torch.backend", f"TorchBackend.{operation}", broken)
    for name, operation, broken in (
        ("positions from 1", "add_positions", lambda f, ops, x, start: f(ops, x, start + 1)),
        ("cosines first", "add_positions", cosines_first),
        ("no embedding scale", "embed_tokens", lambda f, ops, ids, table, scale: f(ops, ids, table, 1.0)),
        ("wrong size of eps", "layer_norm", lambda f, ops, x, weight, bias, eps: f(ops, x, weight, bias, 100 * eps)),
        ("no bias", "linear", lambda f, ops, x, weight, bias: f(ops, x, weight, None)),
        ("another activation", "activation", lambda f, ops, x, name: f(ops, x, "silu")),
    )
}


# --- NumPy


def previous_block(original: Any, q: Any, k: Any, v: Any, *others: Any) -> Any:
    return original(q, np.roll(k, BLOCK, axis=2), np.roll(v, BLOCK, axis=2), *others)


def first_queries_mask(original: Any, q: Any, k: Any, v: Any, masked: Any = None) -> Any:
    if masked is not None and len(masked) > 1:
        masked = masked[np.arange(len(masked)) % pegasusx_numpy.attention.MAX_QUERIES]
    return original(q, k, v, masked)


def num_whole(x_HXF: np.ndarray) -> int:
    """Return how many keys are in small matrices."""
    size = pegasusx_numpy.attention.KEYS_PER_GEMM
    return int(x_HXF.shape[1] // size * size)


def last_keys_zero(x_HXF: np.ndarray) -> np.ndarray:
    return np.concatenate([x_HXF[:, : num_whole(x_HXF)], 0 * x_HXF[:, num_whole(x_HXF) :]], axis=1)


def heads_reversed(x_HXF: np.ndarray) -> np.ndarray:
    return np.concatenate([x_HXF[::-1, : num_whole(x_HXF)], x_HXF[:, num_whole(x_HXF) :]], axis=1)


def first_threads_bias(original: Any, x: Any, weight: Any, bias: Any) -> Any:
    if bias is None:
        return original(x, weight)
    chunks = pegasusx_numpy.thread_pool.balanced_chunks(len(weight), len(weight))
    return original(x, weight, np.concatenate([bias[: chunk.stop - chunk.start] for chunk in chunks]))


def last_features_zero(original: Any, x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    original(x, weight, out)
    features_per_gemm = max(pegasusx_numpy.linear.SMALL_GEMM_MACS // x.size, 1)
    out[:, len(weight) // features_per_gemm * features_per_gemm :] = 0


def features_transposed(original: Any, x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    original(x, weight, out)
    out[:] = out.T.reshape(out.shape)


CORE = ("pegasusx_numpy.backend", "global_local_attention")  # q, k, v, global_q, global_k, global_v, mask, blocks, …
ATTENTION = ("pegasusx_numpy.backend", "attention")
HEAD = ("pegasusx_numpy.attention", "attention_of_heads")
FEW_QUERIES = ("pegasusx_numpy.attention", "attention_few_queries")
NUMPY = {
    "masked keys visible": Mutation(*CORE, lambda f, *a: f(*a[:6], None, *a[7:])),
    "the first row's mask for all rows": Mutation(
        *CORE, lambda f, *a: f(*a[:6], None if a[6] is None else a[6][[0] * B], *a[7:])
    ),
    "keys of the previous block": Mutation(*CORE, previous_block),
    "global keys as global values": Mutation(*CORE, lambda f, *a: f(*a[:5], a[4], *a[6:])),
    "keys of the global tokens zero": Mutation(*CORE, lambda f, *a: f(*a[:4], 0 * a[4], *a[5:])),
    "queries of the global tokens missing": Mutation(*CORE, lambda f, *a: f(*a[:3], 0 * a[3], *a[4:])),
    "heads of a group mixed up": Mutation(
        "pegasusx_numpy.global_local", "attention_of_heads", lambda f, q, *kv: f(q[::-1], *kv)
    ),
    "scale missing with many queries": Mutation(*HEAD, lambda f, q, *kv: f(q * q.shape[2] ** 0.5, *kv)),
    "scale missing with few queries": Mutation(*FEW_QUERIES, lambda f, q, *kv: f(q * q.shape[2] ** 0.5, *kv)),
    "the first queries' mask for all queries": Mutation(*HEAD, first_queries_mask),
    "mask missing with few queries": Mutation(*FEW_QUERIES, lambda f, q, k, v, masked: f(q, k, v, None)),
    "mask inverted": Mutation(
        *ATTENTION, lambda f, q, k, v, visible: f(q, k, v, None if visible is None else ~visible)
    ),
    "the last keys without values": Mutation(
        *FEW_QUERIES, lambda f, q, k, v, masked: f(q, k, last_keys_zero(v), masked)
    ),
    "the last keys without scores": Mutation(
        *FEW_QUERIES, lambda f, q, k, v, masked: f(q, last_keys_zero(k), v, masked)
    ),
    "heads of small matrices mixed up": Mutation(
        *FEW_QUERIES, lambda f, q, k, v, masked: f(q, heads_reversed(k), v, masked)
    ),
    "sums over all heads": Mutation(
        "pegasusx_numpy.attention", "exp_in_place", lambda f, *given: np.full_like(sums := f(*given), sums.sum())
    ),
    "no bias": Mutation("pegasusx_numpy.backend", "linear", lambda f, x, weight, bias: f(x, weight, None)),
    "another thread's bias": Mutation("pegasusx_numpy.backend", "linear", first_threads_bias),
    "the last features missing": Mutation("pegasusx_numpy.linear", "gemm_few_rows", last_features_zero),
    "features mixed up": Mutation("pegasusx_numpy.linear", "gemm_few_rows", features_transposed),
}

MUTATIONS = {"numpy": NUMPY, "torch": TORCH}
BACKENDS = [pytest.param(name, id=name, marks=MARKS[name]) for name in MUTATIONS]
EVERY_MUTATION = [
    pytest.param(backend, mutation, id=f"{backend}-{name}", marks=MARKS[backend])
    for backend, mutations in MUTATIONS.items()
    for name, mutation in mutations.items()
]


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Make the backends use their own implementations for small tensors, and the same ones on every CPU."""
    with small_chunks() as patch:
        patch.setattr(pegasusx_numpy.linear, "SMALL_GEMM_MACS", 2000)  # several features and a remainder
        if not MARKS["torch"] or not MARKS["torch"].args[0]:
            patch.setattr(import_module("pegasusx_torch.attention"), "FEW_QUERIES", 32)
            patch.setattr(import_module("pegasusx_torch.global_local"), "IS_MKL_SLOW", False)
        yield patch


def apply(mutation: Mutation, patch: pytest.MonkeyPatch) -> None:
    *classes, name = mutation.function.split(".")
    owner: Any = import_module(mutation.module)
    for each in classes:
        owner = getattr(owner, each)
    original = getattr(owner, name)  # an AttributeError: the mutation names a function that does not exist

    def broken(*arguments: Any, **keywords: Any) -> Any:
        bound = signature(original).bind(*arguments, **keywords)
        bound.apply_defaults()
        return mutation.broken(original, *bound.args)

    patch.setattr(owner, name, broken)


def outputs(ops: Any) -> list[np.ndarray]:
    """Run a model on texts with and without padding and holes, over several blocks, with many and few target tokens."""
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(106, 256, (B, T)), rng.integers(106, 256, (B, L))
    padded = np.arange(T) < np.array([[T], [29], [13]])
    holes = rng.random((B, T)) < 0.7
    model = PegasusXForConditionalGeneration(CONFIG, random_weights(CONFIG, 0, head=True), ops)
    found = []
    for mask in (None, padded, holes):
        for target in (targets, targets[:, :3]):
            output = model(ids, mask, target)
            found.append(np.asarray(output.logits))
        found.append(np.asarray(output.encoder_last_hidden_state)[slice(None) if mask is None else mask])
    return found


@cache
def golden_outputs() -> list[np.ndarray]:
    return outputs(get_backend("golden", dtype="float64"))


def disagreement(backend: str) -> float:
    """Return the largest relative error of a backend; infinity if its shapes do not fit."""
    try:
        found = outputs(get_backend(backend, "cpu", "float64"))
    except (RuntimeError, ValueError):
        return math.inf
    return max(map(relative_error, found, golden_outputs()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_mutation_backends_agree(backend: str, patch: pytest.MonkeyPatch) -> None:
    assert disagreement(backend) < 1e-12


@pytest.mark.parametrize(("backend", "mutation"), EVERY_MUTATION)
def test_a_mutation_is_detected(backend: str, mutation: Mutation, patch: pytest.MonkeyPatch) -> None:
    apply(mutation, patch)
    assert disagreement(backend) > 1e-5


def test_a_mutation_of_a_missing_function_fails(patch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match="renamed"):
        apply(Mutation("pegasusx_numpy.attention", "renamed", lambda f: f()), patch)
