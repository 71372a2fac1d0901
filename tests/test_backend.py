"""Backends are requested by name; what is unavailable is an error that says what is available."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import (
    BackendError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    available_backends,
    get_backend,
)
from pegasusx_ref.backend import GoldenBackend, registry


class DoublingBackend(GoldenBackend):
    """A third party's backend, whose results differ from NumPy's."""

    name = "doubling"

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 2 * super().add(x, y)


@pytest.fixture
def _third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    load = EntryPoint.load
    monkeypatch.setattr(EntryPoint, "load", lambda self: DoublingBackend if self.name == "doubling" else load(self))
    monkeypatch.setitem(registry.BUILT_IN, "doubling", f"{__name__}:DoublingBackend")


@pytest.mark.usefixtures("_third_party")
def test_a_third_party_backend_is_found_and_run() -> None:
    assert list(available_backends())[:3] == ["golden", "numpy", "doubling"]
    config = PegasusXConfig.preset("tiny")
    golden = PegasusXForConditionalGeneration.from_random(config)
    other = PegasusXForConditionalGeneration.from_random(config, backend="doubling")
    assert isinstance(other.ops, DoublingBackend)
    ids = np.random.default_rng(0).integers(0, 256, (1, 9))
    assert (golden(ids, decoder_input_ids=ids).logits != other(ids, decoder_input_ids=ids).logits).any()


@pytest.mark.parametrize("name", ["golden", "numpy"])
def test_golden_and_numpy_are_always_available(name: str) -> None:
    assert list(available_backends())[:2] == ["golden", "numpy"]
    backend = get_backend(name, dtype="float64")
    assert (backend.name, backend.device, backend.dtype) == (name, "cpu", "float64")


def test_an_error_of_a_dtype_names_the_backends_that_compute_in_it() -> None:
    pytest.importorskip("torch")
    with pytest.raises(BackendError, match=r"\): choose backend (cupy or )?torch$"):
        get_backend("numpy", dtype="bfloat16")
    with pytest.raises(BackendError, match=r"are converted on load\)$"):
        get_backend("numpy", dtype="float12")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "jax"}, "backend 'jax' is not installed: available here: golden, numpy"),
        ({"name": "numpy", "dtype": "bfloat16"}, "does not compute in 'bfloat16': it declares float32, float64"),
        ({"name": "numpy", "dtype": "float8"}, "does not compute in 'float8'"),
        ({"name": "numpy", "device": "cuda:0"}, "runs on device 'cpu' only, not on 'cuda:0'"),
        ({"name": "torch", "device": "cuda:7"}, "backend 'torch' has no device 'cuda:7': available here: cpu"),
        ({"name": "torch", "device": "abacus"}, "backend 'torch' has no device 'abacus'"),
        ({"name": "torch", "device": 3}, "backend 'torch' has no device 3"),
        ({"name": "torch", "dtype": "int8"}, "it declares float64, float32, bfloat16, float16"),
        ({"name": "numpy", "device": 1}, "runs on device 'cpu' only, not on 1"),
    ],
)
def test_an_unavailable_backend_device_or_dtype_is_an_error(arguments: dict[str, Any], message: str) -> None:
    if arguments["name"] == "torch":
        pytest.importorskip("torch")
    with pytest.raises(BackendError, match=message):
        get_backend(**arguments)


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64")])
def test_dtypes_are_names_or_numpy_dtypes(dtype: Any) -> None:
    config = PegasusXConfig.preset("tiny")
    assert PegasusXForConditionalGeneration.from_random(config, dtype=dtype).dtype == "float64"


def test_torch_dtypes_are_accepted(model_folder: Any) -> None:
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


def test_get_backend_accepts_numpy_dtypes() -> None:
    assert get_backend("numpy", dtype=np.float64).dtype == "float64"
    with pytest.raises(BackendError, match=r"dtype <object .* is not a known dtype: pass a name"):
        get_backend("numpy", dtype=object())


@pytest.mark.parametrize("value", ["pegasusx_ref:NoSuchBackend", "no_such_module:Backend"])
def test_a_backend_that_cannot_be_loaded_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", value)
    with pytest.raises(BackendError, match=re.escape(f"backend 'broken' ({value}) cannot be loaded: ")):
        get_backend("broken")


def test_without_torch_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["torch"] = None
from pegasusx_ref import available_backends, get_backend
print(available_backends()["torch"].problem)
try:
    get_backend("torch")
except RuntimeError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    line = (
        "backend 'torch' (pegasusx_torch:TorchBackend) cannot be loaded: "
        "torch is not installed: pip install 'pegasusx-ref[torch]'"
    )
    assert printed.splitlines() == [line] * 2


def test_options_are_specific_to_a_backend() -> None:
    pytest.importorskip("torch")
    assert get_backend("torch", tf32=True).tf32  # type: ignore[attr-defined]
    assert not get_backend("torch").tf32  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="tf32"):
        get_backend("numpy", tf32=True)


CODE = """
from pegasusx_ref.backend import GoldenBackend
class ThirdParty(GoldenBackend):
    name, version, dtypes = "third", "7.0", ("float64",)
"""


@pytest.mark.slow
def test_a_backend_installed_from_a_folder_is_found_listed_and_run(
    tmp_path: Path, wordy_folder: Path, prose: str
) -> None:
    """The folder has an installer's layout: the module, and its entry points beside it."""
    (tmp_path / "third_party.py").write_text(CODE)
    (tmp_path / "pegasusx_third_party-7.0.dist-info").mkdir()
    facts = {"METADATA": "Metadata-Version: 2.1\nName: pegasusx-third-party\nVersion: 7.0\n"}
    facts["entry_points.txt"] = "[pegasusx_ref.backends]\nthird = third_party:ThirdParty\n"
    for name, text in facts.items():
        (tmp_path / "pegasusx_third_party-7.0.dist-info" / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pegasusx_ref", *arguments]
        return subprocess.run(
            command, env=environment, input=prose[:300], capture_output=True, text=True, check=True
        ).stdout

    assert json.loads(run("backends", "--json"))["third"] == {
        "version": "7.0",
        "devices": ["cpu"],
        "dtypes": ["float64"],
        "problem": None,
    }
    assert re.search(r"^third +7\.0 +float64 +cpu$", run("backends"), re.MULTILINE)
    model = ("summarize", "--model", str(wordy_folder), "--dtype", "float64", "--max-new-tokens", "5")
    assert run(*model, "--backend", "third") == run(*model)
