"""The steps of a mapping: layouts of other implementations become those of the trace points, or one clear error."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasusx_ref import TRACE_POINTS, InputError, PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.verification import from_backend, from_callable, from_dump, verify
from pegasusx_ref.verification.candidates.array_steps import STEPS
from pegasusx_ref.verification.candidates.dumps import NpzFile
from pegasusx_ref.verification.candidates.mapping import map_names

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2, encoder_layers=2, decoder_layers=1, decoder_attention_heads=2)
G, K, H, D = CONFIG.num_global_tokens, CONFIG.block_size, CONFIG.encoder_attention_heads, CONFIG.d_model
B, T, L = 2, 21, 3
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (B, T)),
    "decoder_input_ids": _rng.integers(106, 256, (B, L)),
}
MODEL = random_model(CONFIG, 0)
ENCODER = "encoder.layers.{i}."


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return dict(from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS))


def padded(tokens: np.ndarray, layer: int, axis: int = 1) -> np.ndarray:
    """Pad an axis of tokens with NaN as implementations with whole blocks do, one block more than needed."""
    first = K // 2 * (layer % 2)
    widths = [(0, 0)] * tokens.ndim
    widths[axis] = (first, K - (first + T) % K)
    return np.pad(tokens, widths, constant_values=np.nan)


def in_blocks(tensors: dict[str, np.ndarray], layer: int, kind: str) -> np.ndarray:
    """Write a layer's scores, probabilities or context into padded blocks: (B, H, N, K, G + K) or (B, H, N, K, F)."""
    first = K // 2 * (layer % 2)
    bounds = layer_blocks(CONFIG, T, layer)
    width = D // H if kind == "context" else G + K
    blocks = np.full((B, H, len(bounds) + 1, K, width), np.nan, np.float32)
    for n, (start, stop) in enumerate(bounds):
        tensor = tensors[f"encoder.layers.{layer}.self_attn.local.{n}.{kind}"]
        row = (start + first) % K
        block = blocks[:, :, n, row : row + stop - start]
        block[..., np.arange(width) if kind == "context" else np.r_[:G, G + row : G + row + stop - start]] = tensor
    return blocks


def theirs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same run with the layouts of an implementation with padded blocks, fused and split projections."""
    own: dict[str, np.ndarray] = {"logits": np.pad(tensors["lm_head"], ((0, 0), (1, 2), (0, 0)))}  # a start token
    for i in range(2):
        at = f"encoder.layers.{i}."
        q, k, v = (tensors[f"{at}self_attn.tokens.{p}_proj"] for p in "qkv")
        own[f"enc/{i}/qkv"] = np.stack([padded(x, i) for x in (q, k, v)])  # (3, B, P, D)
        own[f"enc/{i}/gq"] = tensors[f"{at}self_attn.globals.q_proj"].reshape(B, G, H, D // H).swapaxes(1, 2)
        for h, half in enumerate(np.split(tensors[f"{at}self_attn.globals.k_proj"], 2, axis=-1)):
            own[f"enc/{i}/gk{h}"] = half
        for b in range(B):
            own[f"enc/{i}/text{b}/gv"] = tensors[f"{at}self_attn.globals.v_proj"][b]
        behind = in_blocks(tensors, i, "scores")  # with the global keys behind those of the block
        own[f"enc/{i}/scores"] = np.concatenate([behind[..., G:], behind[..., :G]], axis=-1)
        own[f"enc/{i}/probs"] = in_blocks(tensors, i, "probs")
        local = in_blocks(tensors, i, "context")
        own[f"enc/{i}/context"] = local.transpose(0, 2, 3, 1, 4).reshape(B, -1, D)  # (B, P, D)
        keys = tensors[f"{at}self_attn.global.probs"]
        own[f"enc/{i}/gprobs"] = np.concatenate([keys[..., :G], padded(keys[..., G:], i, 3)], axis=-1)
        for n, (start, stop) in enumerate(layer_blocks(CONFIG, T, i)):
            own[f"enc/{i}/block{n}/fc1"] = tensors[f"{at}tokens.fc1"][:, start:stop]
        bias = np.asarray(MODEL.weights[f"{at}fc2.bias"], np.float32)
        own[f"enc/{i}/bias"] = bias
        own[f"enc/{i}/sum"] = tensors[f"{at}tokens.final_layer_norm"] - bias
    merged = tensors["decoder.layers.0.self_attn.context"]
    own["dec/0/context"] = merged.swapaxes(1, 2).reshape(B, L, D)
    own["dec/0/flat"] = tensors["decoder.layers.0.fc1"].reshape(B * L, -1)
    return own


TOML = """
lm_head = { name = "logits", slice = { 1 = [1, -2] } }
"encoder.layers.{i}.self_attn.globals.q_proj" = { name = "enc/{i}/gq", merge_heads = true }
"encoder.layers.{i}.self_attn.globals.k_proj" = { name = ["enc/{i}/gk0", "enc/{i}/gk1"], concat = -1 }
"encoder.layers.{i}.self_attn.globals.v_proj" = { name = "enc/{i}/text{n}/gv", stack = 0 }
"encoder.layers.{i}.self_attn.local.{n}.scores" = { name = "enc/{i}/scores", roll = { -1 = "G" }, unblock = 2 }
"encoder.layers.{i}.self_attn.local.{n}.probs" = { name = "enc/{i}/probs", unblock = 2 }
"encoder.layers.{i}.self_attn.global.probs" = { name = "enc/{i}/gprobs", unpad_keys = 3 }
"encoder.layers.{i}.tokens.fc1" = { name = "enc/{i}/block{n}/fc1", concat = 1 }
"encoder.layers.{i}.tokens.final_layer_norm" = { name = "enc/{i}/sum", add = "enc/{i}/bias" }
"decoder.layers.{i}.self_attn.context" = { name = "dec/{i}/context", split_heads = true }
"decoder.layers.{i}.fc1" = { name = "dec/{i}/flat", reshape = ["B", "L", "M"] }

["encoder.layers.{i}.self_attn.local.{n}.context"]
name = "enc/{i}/context"
reshape = ["B", -1, "K", "H", "F"]
transpose = [0, 3, 1, 2, 4]
unblock = 2

["encoder.layers.{i}.self_attn.tokens.q_proj"]
name = "enc/{i}/qkv"
slice = { 0 = [0, 1] }
reshape = ["B", -1, "D"]
unpad = 1

["encoder.layers.{i}.self_attn.tokens.k_proj"]
name = "enc/{i}/qkv"
slice = { 0 = [1, 2] }
reshape = ["B", -1, "D"]
unpad = 1

["encoder.layers.{i}.self_attn.tokens.v_proj"]
name = "enc/{i}/qkv"
slice = { 0 = [-1] }
reshape = ["B", -1, "D"]
unpad = 1
"""


def test_layouts_of_other_implementations(
    tmp_path: Path, tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "map.toml").write_text(TOML)
    np.savez(tmp_path / "dump.npz", **theirs(tensors) | INPUTS)
    dump = from_dump(tmp_path / "dump.npz", tmp_path / "map.toml", CONFIG)
    mapped = {name for name in dump if name in tensors}
    assert len(mapped) == 2 * 9 + 3 * (3 + 4) + 3  # of both layers, of their blocks, and single ones
    for name in mapped:
        if name.endswith("final_layer_norm"):  # the test subtracted what the step adds
            np.testing.assert_allclose(dump[name], tensors[name], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(dump[name], tensors[name], err_msg=name)
    report = verify(MODEL, dump, INPUTS, "float32")
    assert {check.name for check in report.table if check.verdict == "fail"} <= {
        f"encoder.layers.{i}.tokens.final_layer_norm" for i in range(2)
    }
    monkeypatch.setattr(NpzFile, "__getitem__", lambda *_: pytest.fail("it was read"))
    assert {name: dump.shape(name) for name in mapped} == {name: tensors[name].shape for name in mapped}  # type: ignore[attr-defined]


def test_blocks_of_another_size_are_a_finding(tensors: dict[str, np.ndarray]) -> None:
    other = dict(from_backend(random_model(CONFIG.replace(block_size=2 * K), 0, "numpy", "float32"))(INPUTS))
    blocks = np.zeros((B, H, 2, 2 * K, G + 2 * K), np.float32)
    mapping = {f"{ENCODER}self_attn.local.{{n}}.probs": {"name": "enc/{i}/probs", "unblock": 2}}
    own = {name: x for name, x in other.items() if ".local." not in name} | {
        "enc/0/probs": blocks,
        "enc/1/probs": blocks,
    }
    report = verify(MODEL, map_names(own, mapping, CONFIG, INPUTS), INPUTS, "float32")
    notes = {check.name: check.note for check in report.findings[0].checks}
    assert notes["encoder.layers.0.self_attn.local.0.probs"] == (
        "unblock = 2 does not fit 'enc/0/probs' of shape (2, 4, 2, 16, 20): "
        "without the blocks, the last axis but one has 16 rows, not K = 8"
    )


def test_blocks_are_cut_from_all_tokens(tensors: dict[str, np.ndarray]) -> None:
    """As an implementation without padding shows its context; sizes come from the inputs of the run."""
    whole = {
        f"ctx{i}": np.concatenate(
            [
                tensors[f"encoder.layers.{i}.self_attn.local.{n}.context"]
                for n in range(len(layer_blocks(CONFIG, T, i)))
            ],
            axis=2,
        )
        for i in range(2)
    }
    mapping = {f"{ENCODER}self_attn.local.{{n}}.context": {"name": "ctx{i}", "block": 2}}
    found = from_callable(lambda _: whole, mapping, CONFIG)(INPUTS)
    assert len(found) == 3 + 4
    for name in found:
        np.testing.assert_array_equal(found[name], tensors[name])


def test_the_first_line_that_matches_is_used_and_optional_lines_may_not_match() -> None:
    mapping = {"optional": True, "lm_head": ["none", {"name": "b", "reshape": [3, 1]}, "a"], "decoder.layer_norm": "no"}
    found = map_names({"a": np.ones(3), "b": np.zeros(3)}, mapping, others=False)
    assert {name: found[name].tolist() for name in found} == {"lm_head": [[0], [0], [0]]}
    with pytest.raises(InputError, match="optional = 1: expected true or false"):
        map_names({}, {"optional": 1})


def line(**steps: Any) -> dict[str, Any]:
    return {"lm_head": {"name": "x", **steps}}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown dimension": (
        line(reshape=["Q", -1]),
        r"lm_head: reshape = \['Q', -1\] does not fit 'x' .*: 'Q' is not",
    ),
    "no such side": (line(reshape=["H", -1]), "H is not a dimension of lm_head"),
    "no target": (line(reshape=["L", -1]), r"L is not known: it needs decoder_input_ids in the dump, or inputs=…"),
    "no list": (line(reshape=3), "expected a list, not 3"),
    "no table": (line(slice=[1, 2]), r"slice = \[1, 2\] .*expected a table by axis, such as"),
    "nothing left": (line(slice={1: [2, 2]}), r"slice = \{1: \[2, 2\]\} .*: nothing is left of axis 1"),
    "three ends": (line(slice={1: [0, 1, 1]}), r"expected \[start, stop\] or \[start\], not \[0, 1, 1\]"),
    "no axis of padding": (line(unpad=5), r"unpad = 5 does not fit .* axis 5 is out of bounds"),
    "no axis of blocks": (line(unblock=0), "lm_head is not a tensor of a block"),
    "no such axis": (line(slice={5: [0]}), r"slice = \{5: \[0\]\} does not fit 'x' of shape \(2, 3\)"),
    "too few rows": (line(unpad=1), "axis 1 has 3 entries, fewer than 21"),
    "nothing to join": (line(concat=1), r"concat or stack must be the first step where several tensors are one"),
    "several": ({"lm_head": {"name": ["x", "y"]}}, "concat or stack must be the first step"),
    "twice": ({"lm_head": {"name": ["x", "x"], "concat": 0}}, "lm_head = .*: expected a name, or {name = …"),
    "other shapes": ({"lm_head": {"name": ["x", "y"], "concat": 0}}, r"concat = 0 does not fit 'x' of shape \(2, 3\)"),
    "no such addend": (line(add="z"), "the candidate has no tensor 'z' to add"),
    "a wider addend": (line(add="y"), r"add = 'y' does not fit 'x' of shape \(2, 3\)"),
    "no addend": (line(add=3), "add = 3: expected a name of the candidate"),
    "one part is missing": ({"lm_head": {"name": ["x", "z"], "concat": 0}}, "the candidate has no tensor 'z'"),
    "blocks without a step": ({f"{ENCODER}self_attn.local.{{n}}.probs": "x{i}"}, r"or the line needs the step unblock"),
    "not K rows": (
        {f"{ENCODER}self_attn.local.{{n}}.probs": {"name": "w{i}", "unblock": 0}},
        r"local.0.probs: unblock = 0 does not fit 'w0' of shape \(4, 5, 6\): .* has 5 rows, not K = 8",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_one_clear_error(wrong: str) -> None:
    mapping, message = WRONG[wrong]
    own = {"x": np.ones((2, 3)), "y": np.ones((4, 2, 4)), "w0": np.ones((4, 5, 6)), "input_ids": INPUTS["input_ids"]}
    with pytest.raises(InputError, match=message) as raised:
        dict(map_names(own, mapping, CONFIG))
    assert "\n" not in str(raised.value)


def test_sizes_need_a_configuration() -> None:
    with pytest.raises(InputError, match=r"reshape = \['D'\] .*: sizes of the model are not known: pass config="):
        map_names({"x": np.ones(32)}, line(reshape=["D"]))["lm_head"]
    mapping = {f"{ENCODER}self_attn.local.{{n}}.probs": {"name": "x{i}", "unblock": 0}}
    with pytest.raises(InputError, match=r"mapping: .* = 'x\{i\}': sizes of the model are not known"):
        map_names({"x0": np.ones(32)}, mapping)


class Huge(dict[str, Any]):
    """Tensors of 10^18 numbers, of which nothing can be read."""

    def shape_of(self, _: str) -> tuple[int, ...]:
        return (10**6, 10**6, 10**6)

    def __getitem__(self, name: str) -> Any:
        pytest.fail(f"{name} was read")


@pytest.mark.parametrize(
    "mapping",
    [
        line(reshape=[-1, 10]),
        line(transpose=[1, 0, 2], reshape=[10**6, -1]),
        line(roll={0: 5}, slice={0: [1]}),
        line(add="y"),
        {"lm_head": {"name": ["x", "y"], "concat": 0}},
        {"lm_head": {"name": ["x", "y"], "stack": 0, "merge_heads": True}},
    ],
)
def test_huge_tensors_are_refused_before_they_are_read(mapping: dict[str, Any]) -> None:
    report = verify(MODEL, map_names(Huge(x=0, y=0), mapping, CONFIG, INPUTS), INPUTS)
    assert "no tensor of this run has more than" in report.findings[0].first.note


def test_huge_tensors_are_not_read_for_a_small_part() -> None:
    """As an npz file of a few kilobytes may hold: zeros, compressed."""
    mapping = line(slice={0: [0, "B"], 1: [0, "L"], 2: [0, "V"]})
    report = verify(MODEL, map_names(Huge(x=0), mapping, CONFIG, INPUTS), INPUTS)
    assert report.findings[0].first.note.startswith(f"it is made from a tensor of shape {(10**6,) * 3}: at most")
    with pytest.raises(InputError, match=r"input_ids has shape .*: at most 16,777,216 ids or masks are read"):
        map_names(Huge(x=0), {"input_ids": {"name": "x", "slice": {0: [0, 1], 1: [0, 1]}}}, CONFIG)["input_ids"]


def test_a_layer_that_is_padded_at_its_end_only_asks_for_a_slice() -> None:
    """As the hidden states of transformers are: a whole block, without K/2 rows in front."""
    states = np.ones((B, K * -(-T // K), D), np.float32)
    mapping = {f"{ENCODER}tokens.fc2": {"name": "fc2.{i}", "unpad": 1}}
    report = verify(MODEL, map_names({"fc2.1": states}, mapping, CONFIG, INPUTS), INPUTS)
    assert report.findings[0].first.note == (
        "unpad = 1 does not fit 'fc2.1' of shape (2, 24, 32): axis 1 has 24 entries, fewer than 25: without padding in "
        'front, use slice = { 1 = [0, "T"] }'
    )
    with pytest.raises(InputError, match=r"unpad = 1 .*: sizes of the model are not known: pass config="):
        verify(MODEL, map_names({"fc2.1": states}, mapping, None, INPUTS), INPUTS)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.sampled_from([*"BTKN", "x", "y0", "", "{n}"]) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["0", "-1", "a"]), inner, max_size=2),
    max_leaves=6,
)
NAMES = st.sampled_from(["x", "y{i}", "y{n}", "y{i}{n}", ["x", "y0"], ["y{i}", "x"]])
LINES = st.builds(
    lambda name, steps: {"name": name, **steps}, NAMES, st.dictionaries(st.sampled_from([*STEPS]), ANYTHING)
)
MAPS = st.dictionaries(st.sampled_from([*TRACE_POINTS, "input_ids"]), LINES | ANYTHING, min_size=1, max_size=2)


@pytest.mark.slow
@settings(max_examples=100)
@given(MAPS)
def test_drawn_mappings_work_or_are_one_clear_error(mapping: dict[str, Any]) -> None:
    own = {"x": np.ones((2, 3, 4)), "y0": np.ones((4, 8, 12)), "y1": np.ones((2, 2, 4, 8, 12))}
    with suppress(InputError):
        mapped = map_names(own, mapping, CONFIG, INPUTS)
        for name in mapped:
            assert mapped[name].shape == mapped.shape(name)
