"""Each of these mistakes in the torch backend is seen by the comparison with the golden functions.

The same for the CUDA kernels: test_cupy.py.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tolerances import relative_error

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend
from pegasusx_ref.weights import random_weights

pytest.importorskip("torch", reason="the mutations are of the torch backend")

FOLDER = Path(__file__).parents[1] / "backends" / "pegasusx_torch"
ATTENTION = {
    "scale missing where queries are few": ("(q_BHLF * q_BHLF.shape[3] ** -0.5)", "q_BHLF"),
    "mask missing where queries are few": ("~visible[:, None], torch.finfo", "visible[:, None] & False, torch.finfo"),
    "mask inverted where queries are few": ("masked_fill(~visible", "masked_fill(visible"),
    "padding is seen inside a block": ("stop, length))", "stop, stop))"),
    "padding is seen by the global tokens": ("streams.keys_and_values(0, length)", "streams.keys_and_values(0, 10**6)"),
    "a block too far": ("some[0][0], some[-1][1], len(some)", "slices[0][0], some[-1][1] - some[0][0], len(some)"),
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


def mutated(file: str, right: str, wrong: str) -> ModuleType:
    """Load a module of the backend with a piece of its source replaced."""
    source = (FOLDER / file).read_text(encoding="utf-8")
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
    golden = PegasusXForConditionalGeneration(config, weights, get_backend("numpy", dtype="float64"))
    model = PegasusXForConditionalGeneration(config, weights, ops)
    for mask in (None, lengths, holes):
        real = np.ones((3, T), dtype=bool) if mask is None else mask
        for target in (targets, targets[:, :3]):
            expected, actual = (m(ids, mask, target) for m in (golden, model))
            worst = max(worst, relative_error(actual.logits, expected.logits))
        found, wanted = (np.asarray(o.encoder_last_hidden_state)[real] for o in (actual, expected))
        worst = max(worst, relative_error(found, wanted))
    return worst


def test_unbroken_it_agrees() -> None:
    assert disagreement(get_backend("torch", "cpu", "float64")) < 1e-12


@pytest.mark.parametrize("mutation", ATTENTION)
def test_a_broken_core_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pegasusx_torch.backend

    module = mutated("attention.py", *ATTENTION[mutation])
    for name in ("attend", "global_local_attend", "Streams"):
        monkeypatch.setattr(pegasusx_torch.backend, name, getattr(module, name))
    assert fails(pegasusx_torch.backend.TorchBackend("cpu", "float64"))


@pytest.mark.parametrize("mutation", BACKEND)
def test_a_broken_operation_is_caught(mutation: str) -> None:
    assert fails(mutated("backend.py", *BACKEND[mutation]).TorchBackend("cpu", "float64"))


def fails(ops: Any) -> bool:
    """Either shapes do not fit any more, or numbers differ."""
    try:
        return disagreement(ops) > 1e-5
    except RuntimeError:
        return True
