"""Captures of Flax modules, and the mapping of the paper's own code; Flax itself runs where it is installed."""

from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model

from pegasusx_ref import InputError, PegasusXConfig
from pegasusx_ref.checkpoint.flax.names import from_flax as from_flax_layout
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.verification import flax_variables, from_backend, from_flax, verify
from pegasusx_ref.verification.candidates.flax_module import named_values, paper_arguments
from pegasusx_ref.verification.candidates.mapping import map_names
from pegasusx_ref.verification.known_differences import read_known

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
G, K, H, F = CONFIG.num_global_tokens, CONFIG.block_size, CONFIG.encoder_attention_heads, CONFIG.d_model // 4
MODEL = random_model(CONFIG, 0)


def run_inputs(num_tokens: int) -> dict[str, Any]:
    rng = np.random.default_rng(num_tokens)
    ids = {"input_ids": rng.integers(106, 256, (2, num_tokens)), "decoder_input_ids": rng.integers(106, 256, (2, 5))}
    ids["decoder_input_ids"][:, 0] = 0
    return ids


def padded_blocks(tokens: np.ndarray, layer: int) -> np.ndarray:
    """Put tokens (B, T, H, F) into blocks (B, N, K, H, F) as the paper's code does: a whole block more if they fit."""
    stagger, T = K * (layer % 2), tokens.shape[1]
    widths = ((0, 0), (stagger // 2, stagger - stagger // 2 + K - (T + stagger) % K), (0, 0), (0, 0))
    return np.pad(tokens, widths, constant_values=np.nan).reshape(len(tokens), -1, K, *tokens.shape[2:])


def paper_values(tensors: dict[str, np.ndarray], num_tokens: int) -> dict[str, Any]:
    """Return a run's values in the names and layouts of the paper's modules, as Flax collects them."""

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], H, F)

    def mlp(*at: str) -> dict[str, Any]:
        kinds = {"Dense_0": "fc1", "Dropout_0": "activation", "Dense_1": "fc2"}
        return {module: {"__call__": tuple(tensors[f"{a}{kind}"] for a in at)} for module, kind in kinds.items()}

    encoder: dict[str, Any] = {
        "Embed_0": {"__call__": (tensors["encoder.embed_global"],)},
        "posembed_input": {"__call__:input": ([tensors["encoder.embed_tokens"]],)},
        "encoder_norm": {"__call__": (tensors["encoder.layer_norm"], "the global tokens'")},
    }
    for i in range(2):
        at = f"encoder.layers.{i}."
        tokens, globals_ = f"{at}tokens.", f"{at}globals."
        local = [tensors[f"{at}self_attn.local.{n}.context"] for n in range(len(layer_blocks(CONFIG, num_tokens, i)))]
        out = padded_blocks(heads(tensors[f"{at}self_attn.tokens.out_proj"]), i).reshape(2, -1, K, H * F)
        residuals = tuple([tensors[f"{stream}self_attn_residual"]] for stream in (tokens, globals_))
        attention: dict[str, Any] = {
            "out": {
                "__call__": (tensors[f"{at}self_attn.globals.out_proj"], out),
                "__call__:input": (
                    [tensors[f"{at}self_attn.global.context"].swapaxes(1, 2)],
                    [padded_blocks(np.concatenate(local, axis=2).swapaxes(1, 2), i)],
                ),
            }
        }
        for theirs, ours in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            blocks = padded_blocks(heads(tensors[f"{at}self_attn.tokens.{ours}"]), i)
            attention[theirs] = {"__call__": (blocks, heads(tensors[f"{at}self_attn.globals.{ours}"]))}
        encoder[f"encoderblock_{i}"] = {
            "__call__:input": ([tensors[f"{globals_}input"], tensors[f"{tokens}input"], None],),
            "__call__": ((tensors[f"{globals_}output"], tensors[f"{tokens}output"]),),
            "LayerNorm_0": {"__call__": (tensors[f"{tokens}self_attn_layer_norm"],)},
            "LayerNorm_1": {"__call__": (tensors[f"{globals_}self_attn_layer_norm"],)},
            "LayerNorm_2": {
                "__call__:input": residuals,
                "__call__": (tensors[f"{tokens}final_layer_norm"], tensors[f"{globals_}final_layer_norm"]),
            },
            "GlobalLocalSelfAttention_0": attention,
            "MlpBlock_0": mlp(tokens, globals_),
        }
    decoder: dict[str, Any] = {
        "posembed_output": {"__call__:input": ([tensors["decoder.embed_tokens"]],)},
        "encoderdecoder_norm": {"__call__": (tensors["decoder.layer_norm"],)},
    }
    for i in range(2):
        at = f"decoder.layers.{i}."
        block: dict[str, Any] = {
            "__call__:input": ([tensors[f"{at}input"]],),
            "__call__": (tensors[f"{at}output"],),
            "MlpBlock_0": mlp(at),
        }
        kinds = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        for number, kind in enumerate(kinds):
            block[f"LayerNorm_{number}"] = {"__call__": (tensors[at + kind],)}
        for number, kind in enumerate(("self_attn_residual", "encoder_attn_residual"), start=1):
            block[f"LayerNorm_{number}"]["__call__:input"] = ([tensors[at + kind]],)
        for module, kind in (("SelfAttention_0", "self_attn"), ("MultiHeadDotProductAttention_0", "encoder_attn")):
            block[module] = {
                theirs: {"__call__": (heads(tensors[f"{at}{kind}.{theirs[0]}_proj"]),)}
                for theirs in ("query", "key", "value")
            } | {
                "out": {
                    "__call__": (tensors[f"{at}{kind}.out_proj"],),
                    "__call__:input": ([tensors[f"{at}{kind}.context"].swapaxes(1, 2)],),
                }
            }
        decoder[f"encoderdecoderblock_{i}"] = block
    return {"encoder": encoder, "decoder": decoder, "__call__": (tensors["lm_head"],)}


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 8, 21, 24])
def test_the_mapping_of_the_papers_code(num_tokens: int) -> None:
    inputs = run_inputs(num_tokens)
    tensors = dict(from_backend(MODEL)(inputs))
    values = dict(named_values(paper_values(tensors, num_tokens)))
    mapped = map_names(values, "flax", CONFIG, inputs, others=False)
    assert set(mapped) == {name for name in tensors if not name.endswith(("scores", "probs"))}
    for name in mapped:
        np.testing.assert_array_equal(mapped[name], tensors[name], err_msg=name)
    assert verify(MODEL, mapped, inputs, "float64").passed


def test_values_of_modules_have_names() -> None:
    one, two = np.ones(1), np.ones(2)
    tree = {"a": {"b": {"__call__": (one, {"x": one, "y": [two, None]}), "attend": (two,)}}, "__call__:input": ([two],)}
    assert {name: value.shape for name, value in named_values(tree)} == {
        "a/b": (1,),
        "a/b:output": (1,),
        "a/b#2": (1,),
        "a/b:output.x#2": (1,),
        "a/b:output.y.0#2": (2,),
        "a/b/attend": (2,),
        "a/b/attend:output": (2,),
        "__call__:input": (2,),
        "__call__:input.0": (2,),
    }


def test_the_papers_arguments() -> None:
    inputs: dict[str, Any] = run_inputs(4)
    source, targets = paper_arguments(inputs)
    assert source.tolist() == inputs["input_ids"].tolist()
    assert targets[:, :-1].tolist() == inputs["decoder_input_ids"][:, 1:].tolist()
    assert (targets > 0).all()
    inputs |= {"attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}
    inputs |= {"decoder_attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    source, targets = paper_arguments(inputs)
    assert (source > 0).tolist() == [[True] * 4, [True, True, False, False]]
    assert (targets > 0).tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    for name, at, wrong in (
        ("input_ids", 1, "have the id 0"),
        ("decoder_input_ids", 2, "must be 0 and then ids above"),
    ):
        changed = inputs[name].copy()
        changed[0, at] = 0
        with pytest.raises(InputError, match=wrong):
            paper_arguments(inputs | {name: changed})
    with pytest.raises(InputError, match="must be 0 and then ids above 0"):
        paper_arguments(inputs | {"decoder_input_ids": inputs["decoder_input_ids"] + 1})


def test_weights_become_variables_and_back() -> None:
    from pegasusx_ref.checkpoint.flax.names import flax_name

    params = flax_variables(MODEL)["params"]
    for name, tensor in MODEL.state_dict().items():
        if name == "lm_head.weight":
            continue
        node = params
        for part in flax_name(name).split("/"):
            node = node[part]
        np.testing.assert_array_equal(from_flax_layout(flax_name(name), node, tensor.shape), tensor.astype(np.float32))


def test_the_list_of_known_differences_is_readable() -> None:
    assert [difference.pattern for difference in read_known("flax")] == ["*layer_norm"]


def test_a_flax_module_runs() -> None:
    """A port in Flax of embedding, LayerNorm and feed-forward, whose LayerNorm is called twice."""
    linen = pytest.importorskip("flax.linen", reason="flax is not installed: pip install flax")
    jnp = pytest.importorskip("jax.numpy")

    class Port(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact  # type: ignore[untyped-decorator]
        def __call__(self, ids: Any, targets: Any) -> Any:
            embed = linen.Embed(CONFIG.vocab_size, CONFIG.d_model, name="wte")
            norm = linen.LayerNorm(epsilon=1e-5, name="ln")
            tokens, others = (embed(x) * CONFIG.d_model**0.5 for x in (ids, targets))
            return {"a": norm(tokens), "b": (norm(others), jnp.zeros(3))}

    weights = MODEL.state_dict()
    params = {
        "wte": {"embedding": weights["shared.weight"].astype(np.float32)},
        "ln": {"scale": weights["encoder.layer_norm.weight"].astype(np.float32), "bias": np.zeros(32, np.float32)},
    }
    mapping = {
        "encoder.embed_tokens": "ln:input",
        "decoder.embed_tokens": "ln:input#2",
        "encoder.layers.0.tokens.self_attn_layer_norm": "ln",
        "lm_head": "__call__:output.b.0",
        "decoder.layer_norm": "ln#2",
    }
    inputs, run = run_inputs(5), lambda x: (x["input_ids"], x["decoder_input_ids"])
    found = from_flax(Port(), {"params": params}, mapping, arguments=run)(inputs)
    assert set(found) == set(mapping)
    np.testing.assert_array_equal(found["lm_head"], found["decoder.layer_norm"])
    checked = verify(MODEL, {name: found[name] for name in mapping if "embed" in name}, inputs, "float32")
    assert checked.passed
    assert len(checked.table) == 2
