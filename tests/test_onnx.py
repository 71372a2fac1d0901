"""Captures of ONNX models by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model

from pegasusx_ref import ExtraError, InputError, PegasusXConfig
from pegasusx_ref.verification import from_onnx, verify

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2, encoder_layers=1, decoder_layers=0)
MODEL = random_model(CONFIG, 0)
D = CONFIG.d_model
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 5)),
    "decoder_input_ids": _rng.integers(106, 256, (2, 3)),
}
QKV = "encoder.layers.{i}.self_attn.tokens."
MAP: dict[str, Any] = {
    "encoder.embed_tokens": "/enc/emb",
    "encoder.embeddings": "/enc/ids_plus_positions",
    "encoder.layers.{i}.tokens.self_attn_layer_norm": "/enc/layers.{i}/ln",
    **{
        f"{QKV}{p}_proj": {"name": "/enc/layers.{i}/qkv", "slice": {-1: [j * D, (j + 1) * D]}}
        for j, p in enumerate("qkv")
    },
    "encoder.layer_norm": {"name": "/enc/scaled", "add": "norm.bias"},  # the bias is a node of its own
}


@pytest.fixture
def onnx() -> Any:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime")
    return pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")


def write(onnx: Any, path: Path, eps: float = 1e-5, **settings: Any) -> Path:
    """Write a graph of embedding, positions, the first LayerNorm and a fused projection, and of the last LayerNorm."""
    node, constant, value = onnx.helper.make_node, onnx.numpy_helper.from_array, onnx.helper.make_tensor_value_info
    weights = {name: np.asarray(x, np.float32) for name, x in MODEL.state_dict().items()}
    at = "encoder.layers.0."
    angles = np.arange(5)[:, None] * np.exp(np.log(10000.0) * -np.arange(D // 2) / (D // 2 - 1))
    constants = {
        "wte": weights["shared.weight"],
        "scale": np.float32(D**0.5),
        "positions": np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32),
        "ln.w": weights[f"{at}self_attn_layer_norm.weight"],
        "ln.b": weights[f"{at}self_attn_layer_norm.bias"],
        "qkv.w": np.concatenate([weights[f"{at}self_attn.{p}_proj.weight"] for p in "qkv"]).T,
        "norm.w": weights["encoder.layer_norm.weight"],
        "norm.bias": weights["encoder.layer_norm.bias"],
        "none": np.zeros(D, np.float32),
    }
    nodes = [
        node("Gather", ["wte", "tokens"], ["/rows"]),
        node("Mul", ["/rows", "scale"], ["/enc/emb"]),
        node("Add", ["/enc/emb", "positions"], ["/enc/ids_plus_positions"]),
        node("LayerNormalization", ["/enc/ids_plus_positions", "ln.w", "ln.b"], ["/enc/layers.0/ln"], epsilon=eps),
        node("MatMul", ["/enc/layers.0/ln", "qkv.w"], ["/enc/layers.0/qkv"]),
        node("LayerNormalization", ["/enc/ids_plus_positions", "norm.w", "none"], ["/enc/scaled"], epsilon=1e-5),
        node("Cast", ["mask"], ["out"], to=onnx.TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "port",
        [value("tokens", onnx.TensorProto.INT32, ["b", "t"]), value("mask", onnx.TensorProto.INT64, ["b", "t"])],
        [value("out", onnx.TensorProto.FLOAT, ["b", "t"])],
        [constant(np.ascontiguousarray(x), name) for name, x in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, **settings)
    return path


NAMES = {"input_ids": "tokens", "attention_mask": "mask"}


def test_values_inside_a_graph_are_checked(onnx: Any, tmp_path: Path) -> None:
    path = write(onnx, tmp_path / "port.onnx")
    content = path.read_bytes()
    found = from_onnx(path, MAP, CONFIG, NAMES)(INPUTS)
    assert set(found) == {name.format(i=0) for name in MAP}
    inside = {name: found[name] for name in found if name != "encoder.layer_norm"}
    report = verify(MODEL, inside, INPUTS, "float32")
    assert report.passed
    assert {check.name for check in report.table} == set(inside)
    bias, last = np.asarray(MODEL.weights["encoder.layer_norm.bias"], np.float32), found["encoder.layer_norm"]
    scaled = from_onnx(path, {"encoder.layer_norm": "/enc/scaled"}, CONFIG, NAMES)(INPUTS)
    np.testing.assert_array_equal(last, scaled["encoder.layer_norm"] + bias)
    assert path.read_bytes() == content


def test_a_fault_in_a_graph_is_found(onnx: Any, tmp_path: Path) -> None:
    path = write(onnx, tmp_path / "port.onnx", eps=1e-3)
    mapping = {name: line for name, line in MAP.items() if name != "encoder.layer_norm"}
    report = verify(MODEL, from_onnx(path, mapping, CONFIG, NAMES), INPUTS, "float32")
    assert report.first_failure is not None
    assert report.first_failure.name == "encoder.layers.0.tokens.self_attn_layer_norm"
    assert report.diagnoses[0].mistake == "LayerNorm's eps is 0.001, not 1e-05"


def test_weights_beside_the_graph_are_found(onnx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = from_onnx(write(onnx, tmp_path / "port.onnx"), MAP, CONFIG, NAMES)(INPUTS)
    (tmp_path / "other").mkdir()
    outside = write(onnx, tmp_path / "other" / "port.onnx", save_as_external_data=True, size_threshold=0)
    assert len(list(outside.parent.iterdir())) > 1
    for path in (outside, Path("port.onnx")):
        monkeypatch.chdir(outside.parent if not path.is_absolute() else tmp_path)
        found = from_onnx(path, MAP, CONFIG, NAMES)(INPUTS)
        for name in inside:
            np.testing.assert_array_equal(found[name], inside[name])


def test_what_does_not_fit_is_one_clear_error(onnx: Any, tmp_path: Path) -> None:
    path = write(onnx, tmp_path / "port.onnx")
    with pytest.raises(
        InputError, match=r"port.onnx: mapping: no value is called '/enc/em'; the nearest name: '/enc/emb'"
    ):
        from_onnx(path, {"encoder.embed_tokens": "/enc/em"})
    with pytest.raises(InputError, match=r"the ONNX model has an input 'tokens': pass its meaning as inputs="):
        from_onnx(path, MAP, CONFIG)(INPUTS)
    with pytest.raises(InputError, match=r"port.onnx: not runnable on these inputs"):
        from_onnx(path, MAP, CONFIG, NAMES)(INPUTS | {"input_ids": np.full((2, 5), 999)})
    with pytest.raises(
        InputError, match=r"inputs: 'input_idz' is not one of input_ids, .*; the nearest name: 'input_ids'"
    ):
        from_onnx(path, MAP, CONFIG, {"input_idz": "tokens"})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"port.onnx: not an ONNX model"):
        from_onnx(path, MAP, CONFIG, NAMES)
    with pytest.raises(InputError, match=r"none.onnx: cannot be read: No such file"):
        from_onnx(tmp_path / "none.onnx", MAP)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ExtraError, match=r"ONNX models need onnx: pip install 'pegasusx-ref\[onnx\]'"):
        from_onnx("port.onnx", MAP)
