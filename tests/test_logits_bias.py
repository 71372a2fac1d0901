"""A checkpoint's final_logits_bias: zeros are dropped, anything else is added to the logits wherever there are any."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hf_reference import run, to_torch
from safetensors.numpy import load_file, save_file

from pegasusx_ref import (
    CheckpointError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
    record,
    verify,
)
from pegasusx_ref.golden.head import cross_entropy
from pegasusx_ref.verification import from_backend

V = 60
CONFIG = PegasusXConfig.preset("tiny", vocab_size=V, init_std=0.5)
BIAS = np.random.default_rng(9).standard_normal((1, V)).astype(np.float32) * 3
SOURCE, TARGET = np.random.default_rng(1).integers(2, V, (2, 11)), np.random.default_rng(2).integers(2, V, (2, 6))


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    PegasusXForConditionalGeneration.from_random(CONFIG, seed=2).save_pretrained(folder)
    return folder


def with_bias(plain: Path, folder: Path, bias: np.ndarray, name: str = "final_logits_bias") -> Path:
    shutil.copytree(plain, folder)
    save_file(load_file(folder / "model.safetensors") | {name: bias}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(plain_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_bias(plain_folder, tmp_path_factory.mktemp("biased") / "model", BIAS)


def load(folder: Path, **arguments: Any) -> Any:
    return PegasusXForConditionalGeneration.from_pretrained(folder, **arguments)


@pytest.mark.parametrize("backend", ["golden", "numpy", "torch"])
def test_logits_and_loss_have_it_added(plain_folder: Path, folder: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    plain, ours = (load(place, backend=backend, dtype="float64") for place in (plain_folder, folder))
    expected = plain(SOURCE, decoder_input_ids=TARGET).logits + BIAS
    found = ours(SOURCE, decoder_input_ids=TARGET, labels=TARGET)
    assert np.abs(found.logits - expected).max() <= 1e-12 * np.abs(expected).max()
    assert abs(found.loss - cross_entropy(expected, TARGET)) <= 1e-12 * found.loss


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_tokens_are_those_of_a_biased_head_of_transformers(
    transformers: ModuleType, plain_folder: Path, folder: Path, backend: str, cache: str, beams: int
) -> None:
    import torch

    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(plain_folder).double().eval()
    theirs.lm_head.bias = torch.nn.Parameter(torch.from_numpy(BIAS[0]).double())
    settings = {"num_beams": beams, "max_new_tokens": 12}
    expected = theirs.generate(to_torch(SOURCE), **settings).numpy()
    ours = load(folder, backend=backend, dtype="float64")
    found = ours.generate(SOURCE, cache_implementation=cache, **settings)
    assert found.tolist() == expected.tolist()
    plain = load(plain_folder, dtype="float64").generate(SOURCE, **settings)
    assert plain.tolist() != found.tolist(), "the bias changes nothing"
    logits = run(theirs, input_ids=SOURCE, decoder_input_ids=TARGET).logits.numpy()
    assert np.abs(ours(SOURCE, decoder_input_ids=TARGET).logits - logits).max() <= 1e-10 * np.abs(logits).max()


def test_replayed_steps_add_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    import fake_cuda_graphs

    for name, replacement in fake_cuda_graphs.REPLACED.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    fake_cuda_graphs.Graph.recorded.clear()
    ours = load(folder, backend="torch", dtype="bfloat16")
    expected = ours.generate(SOURCE, max_new_tokens=8, cache_implementation="static")
    assert not fake_cuda_graphs.Graph.recorded
    ours.ops.compiles = True
    assert ours.generate(SOURCE, max_new_tokens=8).tolist() == expected.tolist()
    assert fake_cuda_graphs.Graph.recorded
    fake_cuda_graphs.Graph.recorded.clear()


def test_half_precision_keeps_it_in_float32(folder: Path) -> None:
    pytest.importorskip("torch")
    ours = load(folder, backend="torch", dtype="bfloat16")
    assert np.array_equal(ours.state_dict()["final_logits_bias"], BIAS[0])
    expected = load(folder)(SOURCE, decoder_input_ids=TARGET).logits
    found = ours(SOURCE, decoder_input_ids=TARGET).logits
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


def test_it_is_saved_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    ours = load(folder)
    ours.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert np.array_equal(again.state_dict()["final_logits_bias"], BIAS[0])
    outputs = [model(SOURCE, decoder_input_ids=TARGET).logits for model in (ours, again)]
    assert np.array_equal(*outputs)
    assert json.loads((tmp_path / "config.json").read_text())["final_logits_bias"] is True


def test_transformers_loads_what_is_saved(transformers: ModuleType, folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path)
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    assert theirs.config.vocab_size == V


def test_zeros_are_dropped_to_the_last_bit(plain_folder: Path, tmp_path: Path) -> None:
    zeros = with_bias(plain_folder, tmp_path / "zeros", np.zeros((1, V), np.float32))
    plain, ours = load(plain_folder), load(zeros)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    outputs = [model(SOURCE, decoder_input_ids=TARGET).logits for model in (plain, ours)]
    assert np.array_equal(*outputs)
    assert ours.config == plain.config


@pytest.mark.parametrize("name", ["final_logits_bias", "model.final_logits_bias"])
@pytest.mark.parametrize("shape", [(1, V), (V,)])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_both_shapes_any_place_and_dtype(
    plain_folder: Path, tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    bias = BIAS.reshape(shape).astype(dtype)
    ours = load(with_bias(plain_folder, tmp_path / "model", bias, name), dtype="float64")
    assert np.array_equal(ours.state_dict()["final_logits_bias"], bias.reshape(V).astype(np.float64))


@pytest.mark.parametrize("shape", [(), (0,), (1, V - 1), (2, V), (1, 1, V), (V, 1)])
def test_other_shapes_are_named(plain_folder: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    bias = np.full(shape, 2, np.float32)
    folder = with_bias(plain_folder, tmp_path / "model", bias)
    if not bias.any():
        load(folder)
        return
    with pytest.raises(CheckpointError, match=r"tensor 'final_logits_bias' has shape .* implies \(60,\)"):
        load(folder)


def test_a_configuration_that_promises_one_is_held_to_it(folder: Path, plain_folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path)
    shutil.copy(plain_folder / "model.safetensors", tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["weights_id"] = json.loads((plain_folder / "config.json").read_text())["weights_id"]
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="lack tensor 'final_logits_bias'"):
        load(tmp_path)


def test_a_model_without_a_head_has_none(folder: Path, plain_folder: Path) -> None:
    ours, plain = (PegasusXModel.from_pretrained(place) for place in (folder, plain_folder))
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_verify_and_record_see_it(folder: Path) -> None:
    reference, candidate = load(folder, dtype="float64"), load(folder)
    inputs = {"input_ids": SOURCE, "decoder_input_ids": TARGET}
    assert verify(reference, from_backend(candidate), inputs, arithmetic="float32").passed
    with record("lm_head", "decoder.layer_norm") as trace:
        reference(**inputs)
    expected = trace["decoder.layer_norm"] @ reference.weights["shared.weight"].T + BIAS
    assert np.abs(trace["lm_head"] - expected).max() <= 1e-12 * np.abs(expected).max()
    tensors = dict(from_backend(candidate)(inputs))
    tensors["lm_head"] = tensors["lm_head"] - BIAS
    report = verify(reference, tensors, inputs, arithmetic="float32")
    assert report.first_failure is not None
    assert report.first_failure.name == "lm_head"
    assert report.diagnoses[0].mistake == "the bias is missing"
