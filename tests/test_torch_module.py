"""The torch module that trains: golden gradients, dropout, half precision, devices, torch's and transformers' tools."""

import copy
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from backend_parameters import reference
from hf_reference import hf_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from pegasusx_torch.attention import attention_masked
from pegasusx_torch.training import Rates, TrainingBackend
from pegasusx_torch.training import attention as by_head
from pegasusx_torch.training.attention import MANY_SCORES, MIN_SCORES, Attention, prefers_single_heads
from pegasusx_torch.training.dropout import Dropout
from pegasusx_torch.training.global_local import core_groups, fused_attention
from strategies import batches, configs, seeds
from test_gradients import draw_labels

from pegasusx_ref import (
    BackendError,
    ConfigError,
    InputError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
)
from pegasusx_ref.golden.global_local import block_bounds
from pegasusx_ref.model import torch_module

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
DROPOUT = dict.fromkeys(NO_DROPOUT, 0.2)
CONFIG = PegasusXConfig.preset("tiny").replace(**NO_DROPOUT)
_rng = np.random.default_rng(0)
BATCH: dict[str, Any] = {
    "input_ids": _rng.integers(2, 256, (2, 29)),
    "attention_mask": (np.arange(29) < np.array([[29], [17]])).astype(np.int64),
    "labels": _rng.integers(2, 256, (2, 6)),
}


@pytest.fixture(params=[True, False], ids=["head by head", "fused"])
def is_by_heads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Attend on the CPU in one of its two ways, whatever is faster here."""
    monkeypatch.setattr("pegasusx_torch.training.backend.prefers_single_heads", lambda *_: request.param)
    return bool(request.param)


def random_model(config: PegasusXConfig, seed: int) -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(config, seed, backend="torch")


def gradients(
    module: Any, batch: dict[str, Any], seed: int = 0, loss_scale: float = 1
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss and the gradients by the model's names, as `loss_and_gradients` does."""
    module.zero_grad()
    torch.manual_seed(seed)
    loss = module(**batch).loss
    (loss_scale * loss).backward()
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad / loss_scale for name, p in module.named_parameters()
    }
    return loss.item(), {name.removeprefix("model."): grad.numpy() for name, grad in grads.items()}


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, right in expected.items():
        scale = max(np.abs(right).max(initial=0), 1e-3)
        assert np.abs(found[name] - right).max(initial=0) <= tolerance * scale, name


@settings(max_examples=40)
@given(st.data())
def test_gradients_equal_the_golden_ones(data: st.DataObject) -> None:
    config = data.draw(configs()).replace(**NO_DROPOUT)
    model = reference(config, data.draw(seeds), "float64")
    batch = data.draw(batches(config))._asdict()
    B, L = batch["decoder_input_ids"].shape
    if data.draw(st.booleans()):
        batch["decoder_attention_mask"] = np.arange(L) < data.draw(st.integers(1, L)) - np.arange(B)[:, None] % L
    batch["labels"] = draw_labels(np.random.default_rng(data.draw(seeds)), config.vocab_size, (B, L))
    smoothing = data.draw(st.sampled_from([0.0, 0.1]))
    expected_loss, expected = model.loss_and_gradients(**batch, label_smoothing=smoothing)
    module = model.to_torch_module()
    if data.draw(st.booleans()):
        module.activation_checkpointing_disable()
    is_by_heads = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pegasusx_torch.training.backend.prefers_single_heads", lambda *_: is_by_heads)
        loss, found = gradients(module, batch | {"smoothing": smoothing})
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_near(found, expected, 1e-10)


@pytest.mark.usefixtures("is_by_heads")
def test_chunks_of_tokens_and_of_targets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference(CONFIG, 0, "float64")
    loss, expected = gradients(model.to_torch_module(), BATCH)
    monkeypatch.setattr("pegasusx_torch.training.backend.MAX_CHUNK_TOKENS", 7)
    monkeypatch.setattr(torch_module, "TARGETS_AT_ONCE", 5)
    monkeypatch.setattr("pegasusx_torch.training.global_local.MAX_QUERIES", 3)
    found_loss, found = gradients(model.to_torch_module(), BATCH)
    assert found_loss == pytest.approx(loss, rel=1e-12)
    assert_near(found, expected, 1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_several_targets_share_one_run_of_the_encoder(tied: bool) -> None:
    module = reference(CONFIG.replace(tie_word_embeddings=tied), 0, "float64").to_torch_module()
    source, labels = (BATCH["input_ids"], BATCH["attention_mask"]), (BATCH["labels"], BATCH["labels"][:, ::-1].copy())
    grads = []
    for is_shared in (False, True):
        module.zero_grad()
        encoded = module.encode(*source)
        apart = [module(encoder_outputs=encoded, labels=each) for each in labels]
        outputs = apart if is_shared else [module(*source, labels=each) for each in labels]
        sum(output.loss for output in outputs).backward()
        grads.append([torch.zeros(()) if p.grad is None else p.grad for p in module.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("is_by_heads")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_precisions_are_near_and_keep_float32_parameters(dtype: str) -> None:
    config = CONFIG.replace(activation_function="gelu")  # relu's derivative jumps
    loss, expected = reference(config, 0, "float64").loss_and_gradients(**BATCH)
    module = random_model(config, 0).to_torch_module(dtype)
    found_loss, found = gradients(module, BATCH, loss_scale=1024)  # without, gradients underflow in float16
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    tolerance = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.05}[dtype]
    assert found_loss == pytest.approx(loss, rel=tolerance / 10)
    assert_near(found, expected, tolerance)


@pytest.mark.usefixtures("is_by_heads")
def test_dropout_repeats_itself_in_the_backward_pass() -> None:
    """Recomputed layers drop the same numbers: the gradient is the derivative of the loss for a fixed seed."""
    model = reference(CONFIG.replace(**DROPOUT), 0, "float64")
    module = model.to_torch_module()
    _, found = gradients(module, BATCH, seed=1)
    found = {name: gradient.copy() for name, gradient in found.items()}
    rng, step = np.random.default_rng(0), 1e-6
    for name, parameter in list(module.named_parameters())[::6]:
        direction = torch.from_numpy(rng.standard_normal(parameter.shape))
        if "shared" in name:
            direction[0] = 0  # the start token's row, which is the padding's, gets no gradient as an embedding
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            torch.manual_seed(1)
            losses.append(module(**BATCH).loss.item())
            with torch.no_grad():
                parameter -= sign * step * direction
        slope = (losses[0] - losses[1]) / (2 * step)
        expected = (found[name.removeprefix("model.")] * direction.numpy()).sum()
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert gradients(module, BATCH, seed=2)[0] != gradients(module, BATCH, seed=1)[0]


@pytest.mark.usefixtures("is_by_heads")
@pytest.mark.parametrize("kind", sorted(NO_DROPOUT))
def test_each_dropout_has_the_mean_of_none_and_ends_with_training(kind: str) -> None:
    """To first order in a small rate, the mean over masks is the value without dropout."""
    module = reference(CONFIG.replace(**{kind: 0.02}), 0, "float64").to_torch_module()
    module.eval()
    with torch.no_grad():
        right = module(**BATCH).logits
        assert torch.equal(module(**BATCH).logits, right)
        module.train()
        ids = module.prepare_decoder_input_ids_from_labels(torch.from_numpy(BATCH["labels"]))
        torch.manual_seed(0)
        drawn = torch.stack([module(BATCH["input_ids"], BATCH["attention_mask"], ids).logits for _ in range(60)])
        module.set_dropout()
        assert torch.equal(module(BATCH["input_ids"], BATCH["attention_mask"], ids).logits, right)
    spread = drawn.std(dim=0)
    assert spread.mean() > 0
    assert (drawn.mean(dim=0) - right).abs().mean() < 0.5 * spread.mean()


def test_random_numbers_of_the_program_do_not_depend_on_the_backward_pass() -> None:
    module = reference(CONFIG.replace(**DROPOUT), 0, "float64").to_torch_module()
    torch.manual_seed(3)
    loss = module(**BATCH).loss
    drawn = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(
    ("is_mkl_slow", "num_scores", "dropout", "expected"),
    [
        (True, MIN_SCORES, 0.0, True),
        (True, MIN_SCORES - 1, 0.1, False),  # Python's part would take longer
        (False, MANY_SCORES - 1, 0.0, False),
        (False, MANY_SCORES, 0.0, True),  # torch's joined keys would need more memory
        (False, MIN_SCORES, 0.1, True),  # torch would keep all scores
    ],
)
def test_attention_goes_head_by_head_where_this_is_faster(
    is_mkl_slow: bool, num_scores: int, dropout: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_head, "IS_MKL_SLOW", is_mkl_slow)
    assert prefers_single_heads(torch.zeros(1, 1, 1, 1), num_scores, dropout) is expected
    assert not prefers_single_heads(torch.zeros(1, 1, 1, 1, device="meta"), num_scores, dropout)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("T", [5, 24, 29])
def test_the_fused_core_is_that_of_single_heads(padded: bool, T: int) -> None:
    rng = np.random.default_rng(T)
    B, H, G, F = 2, 3, 4, 8
    lengths = [G, T] * 3
    streams = [torch.from_numpy(rng.standard_normal((B, H, n, F))).requires_grad_() for n in lengths]
    mask = torch.from_numpy(np.arange(T) < np.array([[T], [T // 2]])) if padded else None
    blocks = block_bounds(T, 8, staggered=True)
    groups = [core_groups(G, T, blocks, None if mask is None else mask[b].numpy()) for b in range(B)]
    fused: Any = fused_attention
    results = [Attention.apply(groups, Dropout(0.0, 0), False, *streams), fused(*streams, mask, blocks, 0.0)]
    upstream = [torch.from_numpy(rng.standard_normal((B, H, n, F))) for n in (G, T)]
    grads = [torch.autograd.grad(result, streams, upstream) for result in results]
    for one, other in [*zip(*results, strict=True), *zip(*grads, strict=True)]:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_fused_dense_attention_is_that_of_single_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_torch.training.backend.prefers_single_heads", lambda *_: True)
    rng = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(rng.standard_normal((2, 3, n, 8))).requires_grad_() for n in (5, 9, 9))
    visible = torch.from_numpy(rng.random((2, 5, 9)) < 0.5)
    visible[1, 2] = False  # a query that sees nothing averages
    ops = TrainingBackend("cpu", "float64", Rates())
    results = [ops.attention(q, k, v, visible), attention_masked(q, k, v, visible)]
    upstream = torch.from_numpy(rng.standard_normal((2, 3, 5, 8)))
    grads = [torch.autograd.grad(result, (q, k, v), upstream) for result in results]
    for one, other in [tuple(results), *zip(*grads, strict=True)]:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_parameters_have_transformers_names(transformers: ModuleType) -> None:
    """Either state dict loads into the other, tied copies included."""
    for tied in (True, False):
        model = random_model(CONFIG.replace(tie_word_embeddings=tied), 0)
        module, hf_model = model.to_torch_module(), hf_reference(transformers, model).float()
        assert dict(hf_model.named_parameters()).keys() == dict(module.named_parameters()).keys()
        other = random_model(CONFIG.replace(tie_word_embeddings=tied), 1).to_torch_module()
        other.load_state_dict(hf_model.state_dict())
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, other.get_parameter(name))
        assert not hf_model.load_state_dict(module.state_dict(), strict=False).unexpected_keys


def test_a_step_of_any_optimizer_lowers_the_loss_and_the_model_takes_it(tmp_path: Path) -> None:
    module = random_model(CONFIG, 0).to_torch_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss, _ = gradients(module, BATCH)
        losses.append(loss)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    module.save_pretrained(tmp_path / "saved")
    loaded = PegasusXForConditionalGeneration.from_pretrained(tmp_path / "saved")
    module.eval()
    assert loaded(**BATCH).loss == pytest.approx(module(**BATCH).loss.item(), rel=1e-5)
    model = module.to_model()
    before = model(**BATCH).loss
    optimizer.step()
    assert model(**BATCH).loss == before  # a copy
    trained = PegasusXForConditionalGeneration.from_pretrained(
        tmp_path / "saved", backend="torch", dtype="bfloat16", trainable=True
    )
    assert isinstance(trained, torch.nn.Module)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert trained.ops.dtype == "bfloat16"


def test_copies_are_independent() -> None:
    module = random_model(CONFIG.replace(**DROPOUT), 0).to_torch_module()
    loss, expected = gradients(module, BATCH)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        found_loss, found = gradients(twin, BATCH)
        assert found_loss == loss
        assert_near(found, expected, 0)


def test_wrong_uses_are_named(tmp_path: Path) -> None:
    model = random_model(CONFIG, 0)
    module = model.to_torch_module()
    with pytest.raises(InputError, match="parameters stay in float32"):
        module.half()
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    with pytest.raises(InputError, match="every_n_layers=2"):
        module.activation_checkpointing_enable(every_n_layers=2)
    with pytest.raises(ConfigError, match=r"attention_dropout=1\.5"):
        module.set_dropout(attention_dropout=1.5)
    with pytest.raises(InputError, match="labels have shape"):
        module(BATCH["input_ids"], decoder_input_ids=[[1], [2]], labels=BATCH["labels"])
    with pytest.raises(InputError, match="pass decoder_input_ids: none is given"):
        module(BATCH["input_ids"])
    encoded = reference(CONFIG, 0, "float64").encode(BATCH["input_ids"])
    with pytest.raises(InputError, match=r"has type EncoderOutput: pass the result of this module's encode\(\)"):
        module(encoder_outputs=encoded, labels=BATCH["labels"])
    with pytest.raises(InputError, match="batch sizes differ"):
        module(BATCH["input_ids"][:1], labels=BATCH["labels"])
    with pytest.raises(InputError, match="label_smoothing=2"):
        module(**BATCH, smoothing=2)
    with pytest.raises(BackendError, match="does not compute in 'int8'"):
        model.to_torch_module("int8")
    model.save_pretrained(tmp_path)
    with pytest.raises(BackendError, match="backend 'numpy' does not train"):
        PegasusXForConditionalGeneration.from_pretrained(tmp_path, trainable=True)
    with pytest.raises(InputError, match="PegasusXModel has no loss"):
        PegasusXModel.from_pretrained(tmp_path, backend="torch", trainable=True)
    with pytest.raises(InputError, match="quantized weights do not train"):
        PegasusXForConditionalGeneration.from_pretrained(tmp_path, quantization="int8").to_torch_module()


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_it(transformers: ModuleType, tmp_path: Path) -> None:
    module = random_model(CONFIG, 0).to_torch_module()
    pairs = zip(BATCH["input_ids"].tolist(), BATCH["labels"].tolist(), strict=True)
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=3, learning_rate=1e-2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_steps=1, eval_strategy="steps", eval_steps=3, activation_checkpointing=True,
    )  # fmt: skip
    trainer = transformers.Trainer(module, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_loss"] < losses[-1]
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()
