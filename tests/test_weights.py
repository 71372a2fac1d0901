"""Which tensors a model has, the views of them, and random ones."""

import zlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import configs

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, PegasusXModel
from pegasusx_ref.model.weights import Weights, parameter_shapes, random_weights, tie_embeddings


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_names_and_shapes_are_those_of_transformers(transformers: ModuleType, data: st.DataObject) -> None:
    config = data.draw(configs())
    hf_model = transformers.PegasusXForConditionalGeneration(transformers.PegasusXConfig(**config.to_dict()))
    theirs = {name.removeprefix("model."): tuple(p.shape) for name, p in hf_model.named_parameters()}
    assert parameter_shapes(config) == theirs
    count = sum(int(np.prod(shape)) for shape in theirs.values())
    assert PegasusXForConditionalGeneration.from_random(config).num_parameters() == count


@pytest.mark.parametrize(("preset", "millions"), [("base", 272), ("large", 568)])
def test_the_published_sizes(preset: str, millions: int) -> None:
    shapes = parameter_shapes(PegasusXConfig.preset(preset))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) // 10**6 == millions


def test_a_view_sees_what_lies_behind_its_place() -> None:
    weights = Weights({"a.b.c": 1, "a.b.d": 2, "a.bb.c": 3})
    inner = weights.at("a").at("b")
    assert dict(inner) == {"c": 1, "d": 2}
    assert len(inner) == 2
    with pytest.raises(KeyError, match=r"a\.b\.e"):
        inner["e"]


def test_random_weights_depend_on_seed_and_name_alone_and_none_is_constant() -> None:
    config = PegasusXConfig.preset("tiny")
    weights = random_weights(config, seed=3)
    more = random_weights(config.replace(encoder_layers=3, decoder_layers=1), seed=3)
    other = random_weights(config, seed=4)
    for name, tensor in weights.items():
        assert tensor.dtype == np.float32
        assert tensor.std() > 0.05
        assert abs(tensor.mean() - name.endswith("norm.weight")) < 0.2
        assert (tensor != other[name]).any()
        if name in more:
            assert (tensor == more[name]).all()
    assert zlib.crc32(b"".join(t.tobytes() for t in weights.values())) == RANDOM_WEIGHTS_CHECKSUM


RANDOM_WEIGHTS_CHECKSUM = 0xE15B04D2  # of the tiny preset, seed 3: golden vectors rely on it


def test_dtypes_share_random_weights() -> None:
    config = PegasusXConfig.preset("tiny")
    single, double = (PegasusXForConditionalGeneration.from_random(config, 5, dtype=d) for d in ("float32", "float64"))
    for name, tensor in single.state_dict().items():
        assert (tensor.astype(np.float64) == double.state_dict()[name]).all()


def test_tied_copies_are_one_array() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    assert model.weights["lm_head.weight"] is model.weights["encoder.embed_tokens.weight"]
    assert "lm_head.weight" not in model.state_dict()
    tied = tie_embeddings({"shared.weight": np.arange(3.0), "lm_head.weight": np.arange(4.0)})
    assert tied["lm_head.weight"].shape == (4,)
    assert tied["decoder.embed_tokens.weight"].shape == (3,)


def test_a_model_without_a_head_has_no_head_tensor() -> None:
    untied = PegasusXConfig.preset("tiny", tie_word_embeddings=False)
    assert "lm_head.weight" not in PegasusXModel.from_random(untied).state_dict()
    assert "lm_head.weight" in PegasusXForConditionalGeneration.from_random(untied).state_dict()


def test_a_bias_of_the_logits_is_part_of_a_model_that_says_so() -> None:
    config = PegasusXConfig.preset("tiny", extra={"final_logits_bias": True})
    assert parameter_shapes(config)["final_logits_bias"] == (256,)
    assert "final_logits_bias" not in parameter_shapes(config, head=False)
    assert "final_logits_bias" not in parameter_shapes(config.replace(extra={"final_logits_bias": "yes"}))
    source, target = [[7, 8, 9, 1]], [[0, 5]]
    model = PegasusXForConditionalGeneration.from_random(config)
    plain = PegasusXForConditionalGeneration.from_random(config.replace(extra={}))
    logits, without = (m(source, decoder_input_ids=target).logits for m in (model, plain))
    assert np.allclose(logits, without + model.weights["final_logits_bias"], atol=1e-5)
