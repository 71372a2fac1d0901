"""Models as programs for transformers treat them: `to`, `eval`, `half`, copies, and pickles for worker processes."""

import copy
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from backend_parameters import EVERYTHING, rounded

from pegasusx_ref import (
    BackendError,
    InputError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
    get_backend,
    pipeline,
)
from pegasusx_ref.model.weights import random_weights

CONFIG = PegasusXConfig.preset("tiny")


@pytest.fixture(scope="module")
def model() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(CONFIG)


@pytest.mark.parametrize("call", ["cpu", "float", "eval"])
def test_a_model_that_is_what_it_shall_be_is_returned(call: str, model: PegasusXForConditionalGeneration) -> None:
    assert getattr(model, call)() is model
    assert model.train(False) is model


@pytest.mark.parametrize(
    "places",
    [("cpu",), (0,), (-1,), (np.float32,), ("float32",), ("cpu", np.dtype(np.float32)), ()],
    ids=str,
)
def test_places_that_are_the_models(places: tuple[Any, ...], model: PegasusXForConditionalGeneration) -> None:
    assert model.to(*places) is model
    assert model.to(*places, non_blocking=True).to(device="cpu", dtype="float32") is model


def test_places_of_torch(model: PegasusXForConditionalGeneration) -> None:
    torch = pytest.importorskip("torch")
    assert model.to(torch.device("cpu")) is model.to("cpu", torch.float32) is model
    with pytest.raises(BackendError, match="load it again"):
        PegasusXForConditionalGeneration.from_random(CONFIG, backend="torch").to(torch.bfloat16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.double(), "the model is on cpu in float32 and cannot be converted: load it again with "
         "from_pretrained(…, device='cpu', dtype='float64')"),
        (lambda model: model.half(), "backend 'numpy' does not compute in 'float16': it declares float32, float64"),
        (lambda model: model.bfloat16(), "does not compute in 'bfloat16'"),
        (lambda model: model.to("cuda"), "backend 'numpy' runs on device 'cpu' only, not on 'cuda'"),
        (lambda model: model.cuda(), "not on 'cuda:0'"),
        (lambda model: model.cuda(1), "not on 'cuda:1'"),
        (lambda model: model.to([7]), "device [7] is not a device"),
        (lambda model: model.to(dtype="float12"), "does not compute in 'float12'"),
    ],
)  # fmt: skip
def test_other_places_are_errors_with_the_remedy(
    call: Any, message: str, model: PegasusXForConditionalGeneration
) -> None:
    with pytest.raises(BackendError, match=re.escape(message)):
        call(model)


def test_training_is_named(model: PegasusXForConditionalGeneration) -> None:
    with pytest.raises(InputError, match=re.escape("train(True): this model does not train")):
        model.train()


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_a_pickled_model_has_the_same_bits(backend: str, dtype: str) -> None:
    """Also after calls, which leave packed weights, lengths and locks in a backend."""
    with fake_cupy.installed() if backend == "cupy" else nullcontext():
        weights = {name: rounded(w, dtype) for name, w in random_weights(CONFIG, 3, head=True).items()}
        original = PegasusXForConditionalGeneration(CONFIG, weights, get_backend(backend, dtype=dtype))
        source = np.random.default_rng(3).integers(106, 256, (2, 21))
        expected = original.generate(source, num_beams=2, max_new_tokens=4)
        for again in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original), copy.copy(original)):
            assert (again.ops.name, again.dtype, again.device) == (backend, dtype, original.device)
            assert again.config == original.config
            assert again.generation_config == original.generation_config
            for name, tensor in original.state_dict().items():
                np.testing.assert_array_equal(again.state_dict()[name], tensor, strict=True)
            np.testing.assert_array_equal(again.generate(source, num_beams=2, max_new_tokens=4), expected)


def test_pickles_keep_the_options_and_the_class_of_a_model() -> None:
    pytest.importorskip("torch")
    backend: Any = get_backend("torch", dtype="float32", tf32=True)
    assert pickle.loads(pickle.dumps(backend)).tf32
    headless = PegasusXModel.from_random(CONFIG)
    assert type(pickle.loads(pickle.dumps(headless))) is PegasusXModel


def summary_of(summarizer: Any, text: str) -> Any:
    return summarizer(text, max_new_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["golden", "numpy", "torch"])
def test_worker_processes_share_a_pipeline(backend: str, wordy_folder: Path, prose: str) -> None:
    pytest.importorskip(backend if backend == "torch" else "numpy")
    summarizer = pipeline(model=wordy_folder, backend=backend)
    texts = [prose[:300], prose[500:700]]
    expected = [summary_of(summarizer, text) for text in texts]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(summary_of, [summarizer, summarizer], texts)) == expected


def test_a_tokenizer_pickles(tokenizer: PegasusTokenizer, prose: str) -> None:
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again(prose)["input_ids"] == tokenizer(prose)["input_ids"]
