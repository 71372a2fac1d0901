"""Backends are asked for by name, and what cannot be had is said."""

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import BackendError, PegasusXConfig, PegasusXForConditionalGeneration, available_backends, get_backend
from pegasusx_ref import backend as backend_module
from pegasusx_ref.backend import NumpyBackend


class DoublingBackend(NumpyBackend):
    """A third party's backend that can be told from NumPy's by its results."""

    name = "doubling"

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 2 * super().add(x, y)


@pytest.fixture
def _third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("doubling", f"{__name__}:DoublingBackend", "pegasusx_ref.backends")
    monkeypatch.setattr(EntryPoint, "load", lambda self: DoublingBackend)
    monkeypatch.setattr(backend_module, "entry_points", lambda group: [point])


@pytest.mark.usefixtures("_third_party")
def test_a_third_party_backend_is_found_and_run() -> None:
    assert available_backends() == ["numpy", "doubling"]
    config = PegasusXConfig.preset("tiny")
    golden = PegasusXForConditionalGeneration.from_random(config)
    other = PegasusXForConditionalGeneration.from_random(config, backend="doubling")
    assert isinstance(other.ops, DoublingBackend)
    ids = np.random.default_rng(0).integers(0, 256, (1, 9))
    assert (golden(ids, decoder_input_ids=ids).logits != other(ids, decoder_input_ids=ids).logits).any()


def test_the_numpy_backend_is_there() -> None:
    assert available_backends()[0] == "numpy"
    backend = get_backend("numpy", dtype="float64")
    assert (backend.name, backend.device, backend.dtype) == ("numpy", "cpu", "float64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "jax"}, "backend 'jax' is not installed: available here: numpy"),
        ({"name": "numpy", "dtype": "bfloat16"}, "does not compute in 'bfloat16': it declares float32, float64"),
        ({"name": "numpy", "dtype": "float8"}, "does not compute in 'float8'"),
        ({"name": "numpy", "device": "cuda:0"}, "runs on device 'cpu' only, not on 'cuda:0'"),
        ({"name": "numpy", "device": 1}, "runs on device 'cpu' only, not on 1"),
    ],
)
def test_what_cannot_be_had_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        get_backend(**arguments)


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64")])
def test_dtypes_are_spelled_many_ways(dtype: Any) -> None:
    config = PegasusXConfig.preset("tiny")
    assert PegasusXForConditionalGeneration.from_random(config, dtype=dtype).dtype == "float64"


def test_torch_dtypes_serve_too(model_folder: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = PegasusXForConditionalGeneration.from_pretrained(model_folder, torch_dtype=torch.float64)
    assert model.dtype == "float64"
    auto = PegasusXForConditionalGeneration.from_pretrained(model_folder, torch_dtype="auto", device_map="auto")
    assert (auto.dtype, auto.device) == ("float32", "cpu")
    with pytest.raises(BackendError, match="bfloat16"):
        PegasusXForConditionalGeneration.from_pretrained(model_folder, torch_dtype=torch.bfloat16)
    with pytest.raises(BackendError, match="does not compute in 'nonsense'"):
        PegasusXForConditionalGeneration.from_pretrained(model_folder, dtype="nonsense")


def test_unsigned_ids_stay_integers() -> None:
    assert get_backend("numpy").asarray(np.array([3], dtype=np.uint16)).dtype == np.uint16


def test_get_backend_takes_numpys_dtypes() -> None:
    assert get_backend("numpy", dtype=np.float64).dtype == "float64"
    with pytest.raises(BackendError, match="dtype <object"):
        get_backend("numpy", dtype=object())


@pytest.mark.parametrize("value", ["pegasusx_ref:NoSuchBackend", "no_such_module:Backend"])
def test_a_backend_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("broken", value, "pegasusx_ref.backends")
    monkeypatch.setattr(backend_module, "entry_points", lambda group: [point])
    with pytest.raises(BackendError, match=f"backend 'broken' is announced as '{value}', but that cannot be loaded"):
        get_backend("broken")
