"""Each of these mistakes in the torch and the NumPy backend is seen by the comparison with the golden functions.

The same for the CUDA kernels: test_cupy.py.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pegasusx_numpy.backend
import pytest
from tolerances import relative_error

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend
from pegasusx_ref.model.weights import random_weights

BACKENDS = Path(__file__).parents[1] / "backends"
ATTENTION = {
    "scale missing where queries are few": ("(q_BHLF * q_BHLF.shape[3] ** -0.5)", "q_BHLF"),
    "mask missing where queries are few": ("masked_fill(~visible[:, None]", "masked_fill(visible[:, None] & False"),
    "mask inverted where queries are few": ("masked_fill(~visible", "masked_fill(visible"),
}
GLOBAL_LOCAL = {
    "padding is seen inside a block": ("stop, length))", "stop, stop))"),
    "padding is seen by the global tokens": ("streams.keys_and_values(0, length)", "streams.keys_and_values(0, 10**6)"),
    "a block too far": ("some[0][0], some[-1][1], len(some)", "blocks[0][0], some[-1][1] - some[0][0], len(some)"),
    "the first text's length for all": ("groupby(lengths)", "groupby([lengths[0]] * len(lengths))"),
    "no global tokens for whole blocks": ("expand(-1, num_blocks, -1, -1, -1)", "expand(-1, num_blocks, -1, 0, -1)"),
    "global keys as values": ("values = with_globals(streams.global_v", "values = with_globals(streams.global_k"),
    "keys as values": ("streams.global_v_BHGF, streams.v_BHTF)", "streams.global_v_BHGF, streams.k_BHTF)"),
    "the last group of blocks is lost": ("range(0, len(whole), BLOCKS", "range(0, len(whole) - 1, BLOCKS"),
}
BACKEND = {
    "positions start at 1": ("torch.arange(start + rows.start", "torch.arange(1 + start + rows.start"),
    "cosines first": ("torch.cat([angles.sin(), angles.cos()]", "torch.cat([angles.cos(), angles.sin()]"),
    "wrong base": ("math.log(10000.0) / (half - 1)", "math.log(10000.0) / half"),
    "no embedding scale": (".to(self._stream) * scale", ".to(self._stream)"),
    "eps of another size": ("bias_D, eps)", "bias_D, 100 * eps)"),
    "no bias": ("None if bias is None else bias.to", "None if True else bias.to"),
    "another activation": ('"gelu": F.gelu,', '"gelu": F.silu,'),
}


NUMPY_GLOBAL_LOCAL = {
    "masked keys are seen": ("start + np.flatnonzero(key_mask_BT[b, start:stop])", "slice(start, stop)"),
    "a text's mask for all": ("np.flatnonzero(key_mask_BT[b,", "np.flatnonzero(key_mask_BT[0,"),
    "keys of the block before": ("start + np.flatnonzero", "max(start - 8, 0) + np.flatnonzero"),
    "global keys as values": ("np.concatenate([global_v_BHGF", "np.concatenate([global_k_BHGF"),
    "no global tokens": ("np.concatenate([global_k_BHGF[b, h], k", "np.concatenate([0 * global_k_BHGF[b, h], k"),
    "the global tokens' queries are lost": ("if is_global", "if not is_global"),
}
NUMPY_ATTENTION = {
    "scale missing where queries are many": ("(q_LF[rows] * q_LF.shape[1] ** -0.5)", "q_LF[rows]"),
    "scale missing where queries are few": ("q_HLF = q_HLF * F**-0.5", "q_HLF = q_HLF"),
    "the first queries' mask for all": ("else hidden[rows])", "else hidden[: len(scores_SX)])"),
    "mask missing where queries are few": ("_hide(scores_HLX, hidden)", "_hide(scores_HLX, hidden & False)"),
    "mask inverted": ("np.broadcast_to(~visible,", "np.broadcast_to(visible,"),
    "the last keys have no values": (
        "context_HLF += scores_HLX[:, :, whole:]",
        "context_HLF += 0 * scores_HLX[:, :, whole:]",
    ),
    "the last keys have no scores": ("= q_HLF @ k_HXF[:, whole:]", "= 0 * q_HLF @ k_HXF[:, whole:]"),
    "heads of small matrices are mixed up": (
        ".swapaxes(2, 3)).swapaxes(1, 2)",
        ".swapaxes(2, 3))[:, :, ::-1].swapaxes(1, 2)",
    ),
    "sums of all heads": ("scores.sum(axis=-1, keepdims=True)", "scores.sum(keepdims=True)"),
}
NUMPY_PRODUCTS = {
    "no bias": ("y_rows[:, features] += bias[features]", "y_rows[:, features] += 0 * bias[features]"),
    "another thread's bias": ("+= bias[features]", "+= bias[: len(weight[features])]"),
    "the last features are lost": ("x_rows @ weight[whole:].T", "0 * (x_rows @ weight[whole:].T)"),
    "features mixed up": ("reshape(whole, num_rows).T", "reshape(num_rows, whole)"),
}


def mutated(folder: str, file: str, right: str, wrong: str) -> ModuleType:
    """Load a module of a backend with a piece of its source replaced."""
    source = (BACKENDS / folder / file).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times"
    module = ModuleType(f"mutated_{file.removesuffix('.py')}")
    exec(compile(source.replace(right, wrong), file, "exec"), vars(module))
    return module


def disagreement(ops: Any) -> float:
    """The worst relative error of whole models over texts with and without padding, holes, and several blocks."""
    worst = 0.0
    rng = np.random.default_rng(0)
    T, L = 70, 40
    ids, targets = rng.integers(106, 256, (3, T)), rng.integers(106, 256, (3, L))
    lengths = np.arange(T) < np.array([[T], [29], [13]])
    holes = rng.random((3, T)) < 0.7
    config = PegasusXConfig.preset("tiny", encoder_layers=2, block_size=8, activation_function="gelu", init_std=0.3)
    weights = random_weights(config, 0, head=True)
    golden = PegasusXForConditionalGeneration(config, weights, get_backend("golden", dtype="float64"))
    model = PegasusXForConditionalGeneration(config, weights, ops)
    for mask in (None, lengths, holes):
        real = np.ones((3, T), dtype=bool) if mask is None else mask
        for target in (targets, targets[:, :3]):
            expected, actual = (m(ids, mask, target) for m in (golden, model))
            worst = max(worst, relative_error(actual.logits, expected.logits))
        found, wanted = (np.asarray(o.encoder_last_hidden_state)[real] for o in (actual, expected))
        worst = max(worst, relative_error(found, wanted))
    return worst


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_unbroken_it_agrees(backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    assert disagreement(get_backend(backend, "cpu", "float64")) < 1e-12


@pytest.mark.parametrize("mutation", NUMPY_GLOBAL_LOCAL)
def test_a_broken_core_of_numpy_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutated("pegasusx_numpy", "global_local.py", *NUMPY_GLOBAL_LOCAL[mutation])
    monkeypatch.setattr(pegasusx_numpy.backend, "global_local_attend", module.global_local_attend)
    monkeypatch.setattr(pegasusx_numpy.backend, "WORTH_SHARING", 0)
    assert fails(pegasusx_numpy.NumpyBackend("cpu", "float64"))


@pytest.mark.parametrize("mutation", NUMPY_ATTENTION)
def test_broken_attention_of_numpy_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutated("pegasusx_numpy", "attention.py", *NUMPY_ATTENTION[mutation])
    vars(module).update(KEYS=4, QUERIES=7, LITTLE=0)
    monkeypatch.setattr(pegasusx_numpy.backend, "attention", module.attention)
    monkeypatch.setattr(pegasusx_numpy.backend, "LITTLE", 0)
    assert fails(pegasusx_numpy.NumpyBackend("cpu", "float64"))


@pytest.mark.parametrize("mutation", NUMPY_PRODUCTS)
def test_a_broken_product_of_numpy_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutated("pegasusx_numpy", "products.py", *NUMPY_PRODUCTS[mutation])
    vars(module).update(SMALL=2000, LARGE=0, WORTH_SHARING=0)
    monkeypatch.setattr(pegasusx_numpy.backend, "linear", module.linear)
    monkeypatch.setattr(pegasusx_numpy.backend, "LITTLE", 0)
    assert fails(pegasusx_numpy.NumpyBackend("cpu", "float64"))


@pytest.mark.parametrize("mutation", ATTENTION)
def test_broken_attention_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import pegasusx_torch.backend

    module = mutated("pegasusx_torch", "attention.py", *ATTENTION[mutation])
    vars(module)["FEW"] = 32  # whatever CPU this is
    monkeypatch.setattr(pegasusx_torch.backend, "attend", module.attend)
    assert fails(pegasusx_torch.backend.TorchBackend("cpu", "float64"))


@pytest.mark.parametrize("mutation", GLOBAL_LOCAL)
def test_a_broken_core_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import pegasusx_torch.backend

    module = mutated("pegasusx_torch", "global_local.py", *GLOBAL_LOCAL[mutation])
    vars(module)["IS_MKL_SLOW"] = False  # the torch backend's own core, whatever CPU this is
    for name in ("global_local_attend", "Streams"):
        monkeypatch.setattr(pegasusx_torch.backend, name, getattr(module, name))
    assert fails(pegasusx_torch.backend.TorchBackend("cpu", "float64"))


@pytest.mark.parametrize("mutation", BACKEND)
def test_a_broken_operation_is_caught(mutation: str) -> None:
    pytest.importorskip("torch")
    assert fails(mutated("pegasusx_torch", "backend.py", *BACKEND[mutation]).TorchBackend("cpu", "float64"))


def fails(ops: Any) -> bool:
    """Either shapes do not fit any more, or numbers differ."""
    try:
        return disagreement(ops) > 1e-5
    except RuntimeError:
        return True
