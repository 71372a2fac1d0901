"""A candidate's tensors from files, and the mapping of their names."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from backend_parameters import random_model
from safetensors.numpy import save_file

from pegasusx_ref import InputError, PegasusXConfig
from pegasusx_ref.verification import from_backend, from_callable, from_dump, verify

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2, encoder_layers=2, decoder_layers=1)
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 13)),
    "decoder_input_ids": _rng.integers(106, 256, (2, 3)),
}
MODEL = random_model(CONFIG, 0)
SCORES = "encoder.layers.{i}.self_attn.local.{n}.scores"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return dict(from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS))


def saved(folder: Path, tensors: dict[str, np.ndarray], suffix: str) -> Path:
    path = folder / f"dump{suffix}"
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(arrays, path) if suffix == ".safetensors" else np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_dump_is_verified_like_its_tensors(tmp_path: Path, tensors: dict[str, np.ndarray], suffix: str) -> None:
    dump = from_dump(saved(tmp_path, tensors | INPUTS, suffix))
    assert dump["input_ids"].tolist() == INPUTS["input_ids"].tolist()
    report = verify(MODEL, dump, INPUTS, "float32")
    assert report.passed
    assert {check.name for check in report.table} == set(tensors)
    assert report.unknown == []
    wrong = tensors | {"encoder.layers.1.tokens.fc1": tensors["encoder.layers.1.tokens.fc1"] * np.float32(1.001)}
    found = verify(MODEL, from_dump(saved(tmp_path, wrong, suffix)), INPUTS, "float32").first_failure
    assert found is not None
    assert found.name == "encoder.layers.1.tokens.fc1"


def test_bfloat16_comes_from_safetensors(tmp_path: Path) -> None:
    kept = {"lm_head": np.ones((1, 2, 3), dtype=ml_dtypes.bfloat16)}
    path = tmp_path / "dump.npz"
    np.savez(path, **kept)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'lm_head': npz has no bfloat16; save float32, or a safetensors"):
        from_dump(path)["lm_head"]
    header = b'{"lm_head":{"dtype":"BF16","shape":[1,2,3],"data_offsets":[0,12]}}'
    path = tmp_path / "dump.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + kept["lm_head"].tobytes())
    assert from_dump(path)["lm_head"].dtype == ml_dtypes.bfloat16


def theirs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same run with other names and layouts."""
    other = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if name.endswith("fc1") and parts[0] == "encoder" and parts[3] == "tokens":
            other[f"enc/{parts[2]}/mlp"] = tensor.reshape(-1, tensor.shape[-1])  # no batch axis
        elif ".local." in name and name.endswith("scores"):
            other[f"enc/{parts[2]}/block{parts[5]}"] = tensor.transpose(0, 2, 1, 3)  # heads behind rows
        elif name == "lm_head":
            other["logits"] = tensor
        else:
            other[name] = tensor
    return other


TOML = """
lm_head = "logits"
"encoder.layers.{i}.tokens.fc1" = { name = "enc/{i}/mlp", reshape = [2, -1, 64] }
"encoder.layers.{i}.self_attn.local.{n}.scores" = { name = "enc/{i}/block{n}", transpose = [0, 2, 1, 3] }
"""


def test_a_mapping_renames_reshapes_and_transposes(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    (tmp_path / "map.toml").write_text(TOML)
    dump = from_dump(saved(tmp_path, theirs(tensors), ".npz"), tmp_path / "map.toml")
    assert set(dump) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(dump[name], tensor, err_msg=name)
    assert verify(MODEL, dump, INPUTS, "float32").passed


def test_steps_run_in_their_written_order(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": np.arange(6.0).reshape(2, 3)}, ".npz")
    first = from_dump(path, {"lm_head": {"name": "x", "transpose": [1, 0], "reshape": [1, 2, 3]}})["lm_head"]
    other = from_dump(path, {"lm_head": {"name": "x", "reshape": [1, 2, 3], "transpose": [0, 1, 2]}})["lm_head"]
    assert first.tolist() == [[[0, 3, 1], [4, 2, 5]]]
    assert other.tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_functions_return_mappings_or_pairs_of_tensors(tensors: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    own = theirs({name: tensor for name, tensor in tensors.items() if ".local." not in name and "fc1" not in name})
    mapping = {"lm_head": "logits"}
    for function in (lambda _: own, lambda _: own.items(), lambda _: ((n, torch.tensor(t)) for n, t in own.items())):
        report = verify(MODEL, from_callable(function, mapping), INPUTS, "float32")
        assert report.passed
        assert len(report.table) == len(own)


WRONG_MAPPINGS: dict[str, tuple[Any, str]] = {
    "no trace point": ({"encoder.layer.0.fc1": "x"}, r"'encoder.layer.0.fc1' is not a trace point; the nearest"),
    "no trace point near": ({"logits": "x"}, r"'logits' is not a trace point; see pegasusx_ref.TRACE_POINTS"),
    "a typing error": ({"lm_heed": "x"}, r"'lm_heed' is not a trace point; the nearest name: 'lm_head'"),
    "nothing of that name": (
        {"lm_head": "y"},
        r"lm_head = 'y' matches no tensor of the candidate, which has 'x': cor",
    ),
    "not a line": ({"lm_head": 3}, r"lm_head = 3: expected a name, or \{name = …"),
    "an unknown step": ({"lm_head": {"name": "x", "flip": [0]}}, r"'flip' is not a step: pass one of concat, "),
    "a step's typing error": ({"lm_head": {"name": "x", "reshap": [0]}}, r"'reshap' is not a step; .*: 'reshape'$"),
    "no name": ({"lm_head": {"transpose": [0]}}, r"expected a name"),
    "numbers on one side": ({SCORES: "enc{i}"}, r"\{n\} must be on both sides, or the line needs the step unblock"),
}


@pytest.mark.parametrize("wrong", WRONG_MAPPINGS)
def test_a_mapping_that_does_not_fit_is_one_clear_error(tmp_path: Path, wrong: str) -> None:
    mapping, message = WRONG_MAPPINGS[wrong]
    with pytest.raises(InputError, match=message):
        from_dump(saved(tmp_path, {"x": np.ones((2, 3))}, ".npz"), mapping)


def test_a_step_that_does_not_fit_names_the_shape(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": np.ones((2, 3))}, ".npz")
    with pytest.raises(InputError, match=r"lm_head: reshape = \[4, 4\] does not fit 'x' of shape \(2, 3\)"):
        from_dump(path, {"lm_head": {"name": "x", "reshape": [4, 4]}})["lm_head"]
    (tmp_path / "map.toml").write_text('lm_head = { name = "x", transpose = [0] }')
    with pytest.raises(
        InputError,
        match=r"map.toml: lm_head: transpose = \[0\] does not fit 'x' of shape \(2, 3\): expected the numbers of its 2",
    ):
        from_dump(path, tmp_path / "map.toml")["lm_head"]


def test_two_sources_of_one_tensor_are_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a1": np.ones(2), "a2": np.ones(2)}, ".npz")
    with pytest.raises(InputError, match=r"tokens.fc1 has two sources, 'a1' and 'a2': keep one"):
        from_dump(path, {"encoder.layers.{i}.tokens.fc1": "a{i}", "encoder.layers.1.tokens.fc1": "a2"})


def test_other_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; a dump is a \.safetensors or \.npz file"):
        from_dump(tmp_path / "none.npz")
    for name in ("dump.npz", "dump.safetensors"):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(InputError, match=rf"{name}: not an? (npz|complete safetensors) file"):
            from_dump(tmp_path / name)
    (tmp_path / "dump.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"^\S+dump.bin: a dump is a \.safetensors or \.npz file, not \.bin$"):
        from_dump(tmp_path / "dump.bin")
    path = tmp_path / "objects.npz"
    np.savez(path, lm_head=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"tensor 'lm_head': not readable .it holds Python objects: save an array"):
        from_dump(path)["lm_head"]
    with pytest.raises(InputError, match=r"tranformers: no such file; the maps that .* are transformers and flax$"):
        from_dump(path, "tranformers")
    (tmp_path / "map.toml").write_text("lm_head = ")
    with pytest.raises(InputError, match=r"^\S+map.toml: not a TOML file"):
        from_dump(saved(tmp_path, {"x": np.ones(2)}, ".npz"), tmp_path / "map.toml")


def test_a_broken_archive_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("empty.npz", "array.npz"):
        with pytest.raises(InputError, match=f"{name}: not an npz file"):
            from_dump(tmp_path / name)
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / f"{save.__name__}.npz"
        save(path, lm_head=np.random.default_rng(0).standard_normal(1000))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(InputError, match="tensor 'lm_head': not readable"):
            from_dump(path)["lm_head"]


def test_ids_have_any_width_and_tensors_are_real(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    ids = {name: array.astype(np.uint32) for name, array in INPUTS.items()}
    dump = from_dump(saved(tmp_path, tensors | ids, ".safetensors"))
    assert verify(MODEL, dump, {name: dump[name] for name in INPUTS}, "float32").passed
    for wrong in (np.array(["a"]), np.ones((2, 3, 256), dtype=complex)):
        with pytest.raises(InputError, match=r"tensor 'lm_head' has dtype .*: expected real numbers"):
            verify(MODEL, tensors | {"lm_head": wrong}, INPUTS, "float32")


def test_layer_numbers_may_have_leading_zeros(tmp_path: Path) -> None:
    path = saved(tmp_path, {"h.01.attn.01.q": np.ones(2), "h.0.attn.1.q": np.ones(2)}, ".npz")
    name = "decoder.layers.{i}.self_attn.q_proj"
    assert set(from_dump(path, {name: "h.{i}.attn.{i}.q"})) == {"decoder.layers.1.self_attn.q_proj", "h.0.attn.1.q"}
    (tmp_path / "map.toml").write_text('encoder.embed_tokens = "wte"')
    with pytest.raises(InputError, match="'encoder' is not a trace point: put a name with dots in quotes"):
        from_dump(path, tmp_path / "map.toml")
