"""The numbered notes of spec/17-differences.md: a test each, on what this package does and on what transformers does.

What the paper's Flax code does is written here in NumPy where one line is enough.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model
from hf_reference import hf_reference, run, to_torch
from tolerances import FLOAT64, relative_error

from pegasusx_ref import (
    ConfigError,
    GenerationConfig,
    InputError,
    NumericsError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    get_backend,
    record,
)
from pegasusx_ref.backend.quantized import QuantizedMatrix
from pegasusx_ref.generation import search
from pegasusx_ref.golden.attention import attention
from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.golden.feed_forward import ACTIVATIONS, gelu, gelu_tanh
from pegasusx_ref.golden.global_local import block_bounds
from pegasusx_ref.golden.head import cross_entropy, log_softmax
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.golden.quantization import (
    dequantize_fp4,
    dequantize_int8,
    dequantize_nf4,
    dynamic_code,
    linear_int8,
    quantize_absmax,
    quantize_int8,
    quantize_nf4,
)
from pegasusx_ref.model.weights import parameter_shapes, random_weights

TINY = PegasusXConfig.preset("tiny")
RNG = np.random.default_rng(17)
SOURCE, TARGET = RNG.integers(106, 256, (1, 21)), RNG.integers(106, 256, (1, 4))


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(TINY, seed=17)


@pytest.fixture(scope="module")
def hf_model(transformers: ModuleType, model: Any) -> Any:
    return hf_reference(transformers, model)


@pytest.fixture(scope="module")
def theirs(transformers: Any, tokenizer_folder: Path) -> Any:
    return transformers.PegasusTokenizer.from_pretrained(tokenizer_folder)


# --- architecture ----------------------------------------------------------------------------------------------------


def test_n1_eps_of_layer_norm(hf_model: Any, transformers: ModuleType) -> None:
    fresh = transformers.PegasusXForConditionalGeneration(transformers.PegasusXConfig(**TINY.to_dict()))
    assert fresh.model.encoder.layer_norm.eps == PegasusXConfig().layer_norm_eps == 1e-5
    x, ones, zeros = RNG.standard_normal((1, 3, 64)), np.ones(64), np.zeros(64)
    flax = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        (x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + 1e-12
    )
    assert relative_error(layer_norm(x, ones, zeros, 1e-12), flax) < 1e-12
    assert relative_error(layer_norm(x, ones, zeros, 1e-5), flax) > 1e-6


def test_n2_what_gelu_means(transformers: ModuleType) -> None:
    from transformers.activations import ACT2FN

    x = RNG.standard_normal(1000) * 3
    assert ACTIVATIONS["gelu"] is gelu
    assert ACTIVATIONS["gelu_new"] is ACTIVATIONS["gelu_pytorch_tanh"] is gelu_tanh
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        assert relative_error(ACTIVATIONS[name](x), ACT2FN[name](to_torch(x)).numpy()) < 1e-15
    flax = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert 1e-4 < abs(gelu(x) - flax).max() < 1e-3


def test_n3_defaults_are_those_of_transformers(transformers: ModuleType) -> None:
    ours, default = PegasusXConfig(), transformers.PegasusXConfig()
    for name in ("activation_function", "num_global_tokens", "dropout", "attention_dropout", "activation_dropout"):
        assert getattr(default, name) == ours.to_dict()[name], name
    published = PegasusXConfig.preset("large").to_dict()
    assert (published["activation_function"], published["num_global_tokens"]) == ("relu", 128)
    assert [published[f"{kind}dropout"] for kind in ("", "attention_", "activation_")] == [0.1, 0.1, 0.1]


def test_n4_positions_are_float64_here_and_of_the_model_there(transformers: ModuleType) -> None:
    import torch
    from transformers.models.pegasus_x.modeling_pegasus_x import PegasusXSinusoidalPositionalEmbedding

    exact = sinusoidal_positions(0, 4097, 64)
    assert exact.dtype == np.float64
    for dtype, least, most in ((torch.float64, 0, 1e-12), (torch.float32, 1e-5, 1e-3), (torch.bfloat16, 0.5, 3)):
        there = PegasusXSinusoidalPositionalEmbedding(64)(torch.empty((1, 4097, 64), dtype=dtype))[0].double().numpy()
        assert least <= abs(there - exact).max() <= most, dtype


def test_n5_attention_scales_queries(model: Any) -> None:
    with record("*.scores", "decoder.layers.0.self_attn.?_proj") as trace:
        model(SOURCE, decoder_input_ids=TARGET)
    q, k = (trace[f"decoder.layers.0.self_attn.{name}_proj"][0, 3, :8] for name in "qk")
    scores = {"queries first": (q * 8**-0.5) @ k, "scores last": (q @ k) * 8**-0.5, "divided": (q / 8**0.5) @ k}
    for place, score in scores.items():
        assert score == pytest.approx(trace["decoder.layers.0.self_attn.scores"][0, 0, 3, 3], rel=1e-13), place


def test_n6_masks_are_arguments_and_not_derived_from_the_ids(model: Any, hf_model: Any) -> None:
    ids = np.concatenate([SOURCE, np.zeros((1, 5), dtype=int)], axis=1)
    mask = (ids > 0).astype(int)
    for given in ({}, {"attention_mask": mask}):
        a = model(ids, decoder_input_ids=TARGET, **given).logits
        assert (
            relative_error(a, run(hf_model, input_ids=ids, decoder_input_ids=TARGET, **given).logits.numpy()) < FLOAT64
        )
    masked, bare = (model(ids, m, decoder_input_ids=TARGET).logits for m in (mask, None))
    assert relative_error(masked, model(SOURCE, decoder_input_ids=TARGET).logits) < FLOAT64
    assert relative_error(bare, masked) > 1e-4


def test_n7_nothing_is_padded_here_and_the_tokens_are_the_same(model: Any, hf_model: Any) -> None:
    ours = model.encode(SOURCE, output_hidden_states=True).hidden_states
    there = run(hf_model.model.encoder, input_ids=SOURCE, output_hidden_states=True).hidden_states
    assert [x.shape[1] for x in ours] == [21, 21, 21]
    assert [x.shape[1] for x in there[:-1]] == [24, 24]
    for a, b in zip(ours[:-1], there[:-1], strict=True):
        assert relative_error(a, b[:, :21].numpy()) < FLOAT64


def test_n8_an_odd_block_cannot_be_staggered(transformers: ModuleType) -> None:
    odd = TINY.replace(block_size=9, stagger_local_blocks=False)
    with pytest.raises(ConfigError, match="block_size=9 is odd"):
        odd.replace(stagger_local_blocks=True)
    there = hf_reference(transformers, random_model(odd, seed=0))
    for layer in there.model.encoder.layers[1::2]:
        layer.stagger_blocks_this_layer = True
    with pytest.raises(RuntimeError):
        run(there, input_ids=SOURCE, decoder_input_ids=TARGET)
    assert block_bounds(21, 8, staggered=True)[0] == (0, 4)


def test_n9_rows_of_padding_hold_ordinary_attention(model: Any) -> None:
    mask = (np.arange(21) < 18)[None]
    with record("encoder.layers.0.self_attn.local.2.*") as trace:
        model.encode(SOURCE, mask)
    probs, scores = (trace[f"encoder.layers.0.self_attn.local.2.{name}"][0, 0] for name in ("probs", "scores"))
    seen = np.arange(9) < 6  # four global tokens, then the two of five tokens that are real
    for row in range(5):  # the last three are padding
        assert np.allclose(probs[row, seen], np.exp(log_softmax(scores[row, seen])))
        assert (probs[row, ~seen] == 0).all()
    assert probs[4].std() > 0.01  # Flax: 1/9 everywhere


def test_n10_global_tokens_are_not_normalized_at_the_end(model: Any, hf_model: Any) -> None:
    with record("encoder.layers.1.globals.output") as trace:
        ours = model.encode(SOURCE).global_hidden_state
    assert (ours == trace["encoder.layers.1.globals.output"]).all()
    _, there = run(hf_model.model.encoder, input_ids=SOURCE, output_hidden_states=True).hidden_states[-1]
    assert relative_error(ours, there.numpy()) < FLOAT64


def test_n11_optional_outputs(model: Any, hf_model: Any) -> None:
    ours = model.encode(SOURCE, output_hidden_states=True, output_attentions=True)
    there = run(hf_model.model.encoder, input_ids=SOURCE, output_hidden_states=True, output_attentions=True)
    assert len(ours.hidden_states) == len(there.hidden_states) == 3
    assert [len(layer["local"]) for layer in ours.attentions] == [3, 4]
    assert [tuple(layer["local"].shape) for layer in there.attentions] == [(1, 4, 3, 8, 12), (1, 4, 4, 8, 12)]
    assert isinstance(there.hidden_states[-1], tuple)


def test_n12_the_loss_includes_padding_without_label_smoothing(model: Any, hf_model: Any) -> None:
    labels = np.array([[120, 130, 0, -100]])
    ours = model(SOURCE, labels=labels)
    assert relative_error(ours.loss, run(hf_model, input_ids=SOURCE, labels=labels).loss.item()) < FLOAT64
    of_labels = -log_softmax(ours.logits)[0, np.arange(3), labels[0, :3]]
    assert ours.loss == pytest.approx(of_labels.mean())
    assert ours.loss != pytest.approx(of_labels[:2].mean())  # Flax leaves out the 0
    with pytest.raises(InputError, match="there is no loss without a label"):
        model(SOURCE, labels=np.full((1, 4), -100))
    assert cross_entropy(ours.logits, labels) == ours.loss


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [np.empty((1, 0), dtype=int), np.empty((0, 4), dtype=int), [[5, -1]], [[5, 256]]])
def test_n13_meaningless_input_is_refused(model: Any, hf_model: Any, ids: Any) -> None:
    with pytest.raises(InputError):
        model(ids, decoder_input_ids=TARGET)
    with pytest.raises((RuntimeError, IndexError)):
        run(hf_model, input_ids=np.asarray(ids), decoder_input_ids=TARGET)


def test_n13_meaningless_masks_and_configurations_are_refused(model: Any, hf_model: Any) -> None:
    mask = np.ones((1, 20), dtype=int)
    with pytest.raises(InputError):
        model(SOURCE, mask, decoder_input_ids=TARGET)
    with pytest.raises(RuntimeError):
        run(hf_model, input_ids=SOURCE, attention_mask=mask, decoder_input_ids=TARGET)
    with pytest.raises(ConfigError):
        TINY.replace(num_global_tokens=0)


def test_n14_unusual_input_means_the_same(model: Any, hf_model: Any) -> None:
    two, left = np.repeat(SOURCE, 2, axis=0), np.arange(21)[None] >= 5
    targets = np.repeat(TARGET, 2, axis=0)
    longer = np.resize(SOURCE, (1, TINY.max_position_embeddings + 3))
    cases: dict[str, Any] = {
        "one token": (SOURCE[:, :1], None, TARGET),
        "beyond the last position": (longer, None, TARGET),
        "a row of padding": (two, np.repeat([[1], [0]], 21, axis=1), targets),
        "padding on the left": (SOURCE, left.astype(int), TARGET),
    }
    for name, (ids, mask, target) in cases.items():
        a = model(ids, mask, decoder_input_ids=target).logits
        b = run(hf_model, input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits.numpy()
        assert relative_error(a, b) < FLOAT64, name
    shifted = model(SOURCE, left, decoder_input_ids=TARGET).logits
    assert relative_error(shifted, model(SOURCE[:, 5:], decoder_input_ids=TARGET).logits) > 1e-4


# --- generation ------------------------------------------------------------------------------------------------------


def steps(*wishes: list[int]) -> Any:
    """Make a model that wants these tokens, a list a row."""
    count = iter(range(99))

    def next_logits(ids_BL: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
        step = next(count)
        wanted = [wish[min(step, len(wish) - 1)] for wish in wishes]
        return np.eye(9)[wanted][:, None] * 5.0

    return next_logits


def generated(hf_model: Any, ids: np.ndarray, **more: Any) -> np.ndarray:
    return np.asarray(
        hf_model.generate(to_torch(ids), attention_mask=to_torch(np.ones_like(ids)), do_sample=False, **more)
    )


def test_n15_max_length_counts_the_start_token(model: Any, hf_model: Any) -> None:
    for limits, length in (({"max_length": 7}, 7), ({"max_new_tokens": 7}, 8)):
        never: dict[str, Any] = {"min_new_tokens": length - 1, "num_beams": 1, **limits}
        assert model.generate(SOURCE, **never).shape == generated(hf_model, SOURCE, **never).shape == (1, length)
    assert GenerationConfig().lengths() == (0, 21)


def test_n16_the_end_is_forced(model: Any, hf_model: Any) -> None:
    limits: dict[str, Any] = {"max_length": 6, "min_length": 6, "num_beams": 1}
    assert model.generate(SOURCE, **limits)[0, -1] == generated(hf_model, SOURCE, **limits)[0, -1] == 1


def test_n17_beam_scores_are_divided_by_a_power_of_the_length(model: Any, hf_model: Any) -> None:
    settings: dict[str, Any] = {
        "num_beams": 4,
        "length_penalty": 0.8,
        "max_new_tokens": 6,
        "return_dict_in_generate": True,
    }
    ours = model.generate(SOURCE, **settings)
    ids = to_torch(SOURCE)
    there = hf_model.generate(ids, attention_mask=to_torch(np.ones_like(SOURCE)), output_scores=True, **settings)
    assert (ours.sequences == there.sequences.numpy()).all()
    written = ours.sequences[0, 1:].tolist()
    written = written[: written.index(1) + 1]
    logits = model(SOURCE, decoder_input_ids=ours.sequences[:, : len(written)]).logits[0]
    log_p = log_softmax(logits)[np.arange(len(written)), written]
    if len(written) == 6:
        log_p[-1] = 0  # the forced end costs nothing
    assert ours.sequences_scores[0] == pytest.approx(log_p.sum() / len(written) ** 0.8, rel=1e-5)
    assert ours.sequences_scores[0] != pytest.approx(log_p.sum() / ((5 + len(written)) / 6) ** 0.8, rel=1e-3)  # Flax


def test_n18_scores_are_float32_and_the_lower_id_wins() -> None:
    def tied(ids_BL: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
        return np.array([[[0.0, -1.0, 3.0, 3.0 + 1e-12]]])  # different in float64

    for num_beams in (1, 2):
        config = GenerationConfig(max_new_tokens=1, num_beams=num_beams)
        ids, scores = search(tied, 1, config) if num_beams == 1 else search(twice(tied), 1, config)
        assert ids.tolist() == [[0, 2]]
        assert scores is None or scores.dtype == np.float32


def twice(next_logits: Any) -> Any:
    """Give every beam the same logits."""
    return lambda ids_BL, visible: np.repeat(next_logits(ids_BL, visible), ids_BL.shape[1], axis=1)


def test_n19_what_follows_the_end(transformers: ModuleType) -> None:
    greedy, _ = search(steps([5, 1], [6, 7, 1]), 2, GenerationConfig(max_length=9))
    assert greedy.tolist() == [[0, 5, 1, 0], [0, 6, 7, 1]]
    model = random_model(TINY.replace(init_std=1.0), seed=3)
    ids = np.random.default_rng(0).integers(106, 256, (6, 21))
    ends = list(range(1, 30))
    beams: dict[str, Any] = {"num_beams": 2, "max_length": 12, "eos_token_id": ends, "forced_eos_token_id": 1}
    ours = model.generate(ids, **beams)
    assert (ours == generated(hf_reference(transformers, model), ids, **beams)).all()
    assert (ours[3, 5:] == 1).all()  # it ended at position 4
    assert ours[3, 4] in ends
    assert not np.isin(ours[:3, 1:11], ends).any()


# --- tokenizer and files ---------------------------------------------------------------------------------------------


def test_n20_text_is_cut_as_sentencepiece_cuts_it(
    tokenizer: PegasusTokenizer, tokenizer_folder: Path, theirs: Any
) -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tokenizer_folder / "spiece.model"))
    for text in ("every other value ", " \t\n", "the </s> list"):
        assert tokenizer.encode(text) == [i + 103 if i > 1 else i for i in pieces.encode_as_ids(text)] + [1]
        assert theirs(text)["input_ids"] != tokenizer.encode(text), text


def test_n21_the_mask_tokens_keep_their_ids(tokenizer: PegasusTokenizer) -> None:
    """What transformers does is in test_tokenizer.py."""
    assert tokenizer.convert_ids_to_tokens([2, 3]) == ["<mask_1>", "<mask_2>"]


def test_n22_a_newline_is_a_space(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer.encode("every\nother") == tokenizer.encode("every other")
    assert tokenizer.convert_tokens_to_ids(["<n>"]) == [105]


def test_n23_truncation_is_not_the_default(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes((tokenizer_folder / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    tokenizer, text = PegasusTokenizer.from_pretrained(tmp_path), "value " * 3000
    whole = tokenizer(text)["input_ids"]
    assert len(whole) > 2000
    assert len(tokenizer(text, max_length=1500)["input_ids"]) == 1500
    assert len(tokenizer(text, truncation=True)["input_ids"]) == 1024


def test_n24_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer: PegasusTokenizer, theirs: Any) -> None:
    assert tokenizer.decode([10**6]) == theirs.decode([10**6]) == ""
    with pytest.raises(InputError, match="token id -1 is negative"):
        tokenizer.decode([-1])


def test_n25_names_and_layouts_are_those_of_transformers(hf_model: Any) -> None:
    there = {name: tuple(tensor.shape) for name, tensor in hf_model.state_dict().items()}
    for name, shape in parameter_shapes(TINY).items():
        assert there[f"model.{name}"] == shape, name
    # A kernel of Flax (D, H, F), q_hf = sum_d x_d kernel_dhf: reshaped and transposed it is transformers' (D, D).
    kernel_DHF, x_D = RNG.standard_normal((12, 3, 4)), RNG.standard_normal(12)
    by_flax = np.einsum("d,dhf->hf", x_D, kernel_DHF).reshape(-1)
    assert np.allclose(x_D @ kernel_DHF.reshape(12, 12), by_flax)
    assert np.allclose(kernel_DHF.reshape(12, 12).T @ x_D, by_flax)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_n26_an_overflow_is_nan_here_and_may_be_finite_there(transformers: ModuleType) -> None:
    import torch

    x = np.float32(1e30) * RNG.standard_normal((1, 4, 33)).astype(np.float32)
    ones, halves = np.ones(33, np.float32), np.full(33, 0.5, np.float32)
    assert np.isnan(layer_norm(x, ones, halves, 1e-5)).all()
    there = torch.nn.functional.layer_norm(torch.from_numpy(x), (33,), torch.from_numpy(ones), torch.from_numpy(halves))
    assert (torch.isnan(there) | (there == 0.5)).all()

    q, k, v = (to_torch(np.full((1, 1, 40, 8), value)).float() for value in (1e30, -1e30, 1.0))
    ours = attention(*(tensor.numpy() for tensor in (q, k, v)))
    assert np.isnan(ours).all()
    context = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert (torch.isnan(context) | (context == 0)).all()

    weights = {name: w * np.float32(np.nan) for name, w in random_weights(TINY, 0, head=True).items()}
    model = PegasusXForConditionalGeneration(TINY, weights, get_backend("numpy"))
    assert generated(hf_reference(transformers, model), SOURCE, max_new_tokens=3).shape[0] == 1
    with pytest.raises(NumericsError, match="the logits of token 1 are not finite"):
        model.generate(SOURCE, max_new_tokens=3)


# --- quantization ----------------------------------------------------------------------------------------------------


def test_n27_the_dynamic_code_is_rounded_correctly(bnb: Any) -> None:
    """test_quantization.py compares every number with a fraction."""
    theirs = bnb.functional.create_dynamic_map().numpy()
    assert (abs(theirs - dynamic_code()) <= np.spacing(abs(theirs))).all()


def test_n28_the_mean_of_the_scales_is_rounded_once(bnb: Any) -> None:
    scales = np.full(300, 0.7, dtype=np.float32)
    assert quantize_absmax(scales)[2] == scales[0]
    ones = to_torch(np.repeat(scales, 64)[None]).float()
    _, state = bnb.functional.quantize_4bit(ones, quant_type="nf4", compress_statistics=True)
    assert abs(state.offset.item() - scales[0]) < 1e-6


def test_n29_the_second_zero_of_fp4_has_no_sign(bnb: Any) -> None:
    packed, scale = np.full(32, 0x88, np.uint8), np.full(1, 3, np.float32)
    assert not np.signbit(dequantize_fp4(packed, scale, (1, 64))).any()
    assert not dequantize_fp4(packed, scale, (1, 64)).any()
    state = bnb.functional.quantize_4bit(to_torch(np.ones((1, 64))).float(), quant_type="fp4")[1]
    assert not bnb.functional.dequantize_4bit(to_torch(packed[:, None]), state).any()


@pytest.mark.parametrize("name", ["golden", "numpy"])
def test_n30_backends_multiply_with_dequantized_int8(bnb: Any, name: str) -> None:
    """test_quantization.py compares `linear_int8` with bitsandbytes."""
    x, weight = RNG.standard_normal((2, 5, 64)), RNG.standard_normal((3, 64))
    ops = get_backend(name, dtype="float64")
    found = ops.linear(x, ops.quantized(QuantizedMatrix.quantize(weight, "int8")))
    dequantized = dequantize_int8(*quantize_int8(weight))
    assert relative_error(found, x @ dequantized.T.astype(np.float64)) < 1e-6
    assert relative_error(linear_int8(x[0], *quantize_int8(weight)), found[0]) > 1e-4


def test_n31_widths_that_are_not_whole_blocks(bnb: Any) -> None:
    import torch

    for width, is_whole in ((64, True), (48, False)):
        weight = RNG.standard_normal((5, width)).astype(np.float32)
        found = dequantize_nf4(*quantize_nf4(weight), weight.shape)
        packed, state = bnb.functional.quantize_4bit(to_torch(weight).float(), quant_type="nf4")
        is_equal = np.array_equal(bnb.functional.dequantize_4bit(packed, state).numpy(), found)
        assert is_equal == (is_whole or torch.backends.cpu.get_cpu_capability() != "AVX512")
        assert abs(found - weight).max() < 0.2 * abs(weight).max()
