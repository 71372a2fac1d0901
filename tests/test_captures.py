"""Captures of torch modules and dumps of transformers' modules, by trace-point name; masks that are missing."""

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import padded_batch
import pytest
import torch
from backend_parameters import random_model
from hf_reference import eager_hf_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs, seeds

from pegasusx_ref import InputError, PegasusXConfig
from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification import Report, from_backend, from_dump, from_torch_module, from_transformers, verify
from pegasusx_ref.verification.candidates.missing_masks import missing_masks

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
INPUTS = padded_batch.INPUTS | {"decoder_attention_mask": np.arange(6) < np.array([[4], [6]])}
MODEL = random_model(CONFIG, 0)


def missing_points(report: Report) -> set[str]:
    return {general(name).split(".")[-1] for name in report.coverage.missing}


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=3)
@given(st.data())
def test_modules_of_transformers_by_the_mapping_that_comes_along(transformers: ModuleType, data: st.DataObject) -> None:
    config = data.draw(configs())
    model = random_model(config, data.draw(seeds))
    batch = data.draw(batches(config))._asdict()
    module = eager_hf_reference(transformers, model, "float64")
    found = from_torch_module(module, "transformers", config)(batch)
    expected = from_transformers(module)(batch)
    shown = {name for name in from_backend(model)(batch) if not name.endswith(("scores", "probs"))}
    assert shown - {"encoder.embeddings", "decoder.embeddings"} <= set(found) <= shown  # inputs of layer 0, if any
    for name in found:  # from_transformers runs a layer twice: the last bits may differ
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-13, err_msg=name)


def hooked(module: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run a model with a hook on each module that saves its input and output, as anyone would write it."""
    saved: dict[str, np.ndarray] = {}
    calls: Counter[str] = Counter()

    def watch(name: str, submodule: Any) -> None:
        def hook(_: Any, arguments: Any, keywords: Any, result: Any) -> None:
            calls[name] += 1
            number = f"#{calls[name]}" if calls[name] > 1 else ""
            results = result if isinstance(result, tuple | list) else [result]
            values = {f"{name}:output.{i}{number}" if i else name + number: x for i, x in enumerate(results)}
            for i, value in enumerate([*arguments, *keywords.values()]):
                values[f"{name}:input{f'.{i}' if i else ''}{number}"] = value
            saved.update({key: x.numpy().copy() for key, x in values.items() if isinstance(x, torch.Tensor)})

        submodule.register_forward_hook(hook, with_kwargs=True)

    for name, submodule in module.named_modules():
        watch(name, submodule)
    tensors = {name: torch.tensor(array.astype(np.int64)) for name, array in inputs.items()}
    with torch.no_grad():
        out = module(**tensors, output_attentions=True)
    for i, attentions in enumerate(out.encoder_attentions):
        saved |= {f"encoder_attentions.{i}.{kind}": attentions[kind].numpy() for kind in ("global", "local")}
    for kind in ("decoder_attentions", "cross_attentions"):
        saved |= {f"{kind}.{i}": x.numpy() for i, x in enumerate(getattr(out, kind))}
    return saved


@pytest.mark.slow
def test_dumps_of_hooks_on_transformers(transformers: ModuleType, tmp_path: Path) -> None:
    saved = hooked(eager_hf_reference(transformers, MODEL, "float64"), INPUTS)
    np.savez(tmp_path / "dump.npz", **{name: x for name, x in saved.items() if name} | INPUTS)
    dump = from_dump(tmp_path / "dump.npz", "transformers", CONFIG)
    report = verify(MODEL, dump, {name: dump[name] for name in INPUTS}, "float64")
    assert report.passed
    assert missing_points(report) == {"scores"}
    fewer = {name: x for name, x in saved.items() if ":input" not in name and "attentions" not in name}
    fewer["logits"] = fewer.pop("lm_head")
    np.savez(tmp_path / "fewer.npz", **dict[str, Any]((name, x) for name, x in fewer.items() if name))
    dump = from_dump(tmp_path / "fewer.npz", "transformers", CONFIG, INPUTS)
    report = verify(MODEL, dump, INPUTS, "float64")
    assert report.passed
    assert missing_points(report) >= {"scores", "probs", "context", "input", "embeddings"}
    assert {"lm_head", "encoder.layers.1.tokens.activation"} <= {check.name for check in report.table}
    with pytest.raises(InputError, match="sizes of the model are not known: pass config="):
        dict(from_dump(tmp_path / "dump.npz", "transformers"))


# --- any module ------------------------------------------------------------------------------------------------------


class Port(torch.nn.Module):  # type: ignore[misc]
    """A port of the embeddings and of the first LayerNorms, with names and habits of its own."""

    def __init__(self) -> None:
        super().__init__()
        weights = {name: torch.tensor(np.asarray(x)) for name, x in MODEL.state_dict().items()}
        self.wte = torch.nn.Embedding.from_pretrained(weights["shared.weight"])
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(CONFIG.d_model, dtype=torch.float64) for _ in range(2))
        self.both = Both()
        for norm, kind in zip(self.norms, ("self_attn_layer_norm", "global_self_attn_layer_norm"), strict=True):
            norm.weight.data, norm.bias.data = (
                weights[f"encoder.layers.0.{kind}.{part}"] for part in ("weight", "bias")
            )
        self.globals = weights["encoder.embed_global.weight"]

    def forward(self, tokens: Any, targets: Any) -> Any:
        x = self.wte(tokens)
        x *= CONFIG.d_model**0.5  # in place, after the embedding returned it
        y = self.wte(targets) * CONFIG.d_model**0.5
        out = self.both(self.norms[0](x), other={"globals": self.norms[1](self.globals.expand(len(tokens), -1, -1))})
        x.zero_()
        return out, y


class Both(torch.nn.Module):  # type: ignore[misc]
    def forward(self, tokens: Any, other: Any) -> Any:
        return tokens, [None, other]


def call(module: Any, inputs: Any) -> Any:
    return module(inputs["input_ids"], inputs["decoder_input_ids"])


MAP = {
    "encoder.embed_tokens": "wte",
    "decoder.embed_tokens": "wte#2",
    "encoder.layers.{i}.tokens.self_attn_layer_norm": "norms.{i}",
    "encoder.embed_global": "norms.1:input",
    "encoder.layers.0.globals.self_attn_layer_norm": "both:output.1.1.globals",
    "encoder.layers.0.tokens.input": "both:input",
    "encoder.layers.0.globals.input": "both:input.1",
}


def test_any_module_by_hooks() -> None:
    port = Port()
    found = from_torch_module(port, MAP, CONFIG, call)(INPUTS)
    table = np.asarray(MODEL.state_dict()["shared.weight"])
    np.testing.assert_array_equal(found["encoder.embed_tokens"], table[INPUTS["input_ids"]])  # before the product
    np.testing.assert_array_equal(found["decoder.embed_tokens"], table[INPUTS["decoder_input_ids"]])
    embedded = np.asarray(MODEL.state_dict()["encoder.embed_global.weight"])
    np.testing.assert_array_equal(found["encoder.embed_global"], np.broadcast_to(embedded, (2, *embedded.shape)))
    name = "encoder.layers.0.globals.self_attn_layer_norm"
    np.testing.assert_allclose(found[name], dict(from_backend(MODEL)(INPUTS))[name], atol=1e-14)
    np.testing.assert_array_equal(found["encoder.layers.0.globals.input"], found[name])  # a dictionary's first tensor
    np.testing.assert_array_equal(
        found["encoder.layers.0.tokens.input"], found["encoder.layers.0.tokens.self_attn_layer_norm"]
    )
    assert set(found) == {name.format(i=i) for name in MAP for i in range(2)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in port.modules())


def test_hooks_are_removed_after_an_error() -> None:
    port = Port()
    with pytest.raises(TypeError, match="forward"):
        from_torch_module(port, {"lm_head": "wte"})(INPUTS)  # called by names that it does not have
    with pytest.raises(InputError, match=r"'both:output.7': the module has no such value: it has 2, numbered from 0"):
        from_torch_module(port, {"lm_head": "both:output.7"}, run=call)(INPUTS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in port.modules())


WRONG = {
    "wtf": r"mapping: no module is called 'wtf'; the nearest name: 'wte'",
    "norm.{i}": r"no module is called 'norm.\{i\}'; the nearest name: 'norms.1'",
    "wte:out": r"'wte:out': expected PATH, PATH:input, PATH:output.1 or PATH#2",
    "wte:output.x": r"'wte:output.x': the module has no such value",
    "wte:output.1": r"'wte:output.1': the module has no such value: it has 1, numbered from 0",
    "both:output.1.0": r"'both:output.1.0': the module has no such value: there is none at all",
    "wte#3": r"mapping: .* = 'wte#3' matches no tensor of the candidate",
}


@pytest.mark.parametrize("name", WRONG)
def test_names_without_a_value_are_one_clear_error(name: str) -> None:
    ours = "encoder.layers.{i}.tokens.fc1" if "{i}" in name else "lm_head"
    with pytest.raises(InputError, match=WRONG[name]):
        from_torch_module(Port(), {ours: name}, CONFIG, call)(INPUTS)


@pytest.mark.parametrize("module", ["x", None, torch.nn.Linear])
def test_what_is_no_module_is_an_error(module: Any) -> None:
    with pytest.raises(InputError, match=r"^module=.*: pass a torch.nn.Module, such as the model itself$"):
        from_torch_module(module, {"lm_head": "x"})


def test_the_tensors_of_a_backend_are_not_read_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = from_backend(MODEL, layerwise=True)(INPUTS)
    monkeypatch.setattr(type(found), "__getitem__", lambda *_: pytest.fail("it was read"))
    assert ("lm_head" in found, "logits" in found) == (True, False)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), ("scores",), ("scores", "probs")])
def test_masks_that_are_missing_are_asked_for(hidden: tuple[str, ...]) -> None:
    tensors = {name: x for name, x in from_backend(MODEL)(INPUTS).items() if not name.endswith(hidden or "-")}
    ids = {name: x for name, x in INPUTS.items() if name.endswith("ids")}
    asked = missing_masks(tensors, ids, CONFIG)
    assert missing_masks(tensors, INPUTS, CONFIG) == []
    assert missing_masks(from_backend(MODEL)(ids), ids, CONFIG) == []
    if "probs" in hidden:
        assert asked == []
        ids["input_ids"] = ids["input_ids"] * INPUTS["attention_mask"]
        (asked_for_padding,) = missing_masks(tensors, ids, CONFIG)
        assert asked_for_padding.startswith(
            "attention_mask is missing, but input_ids end in 12 padding ids in text 1: if"
        )
        ids["decoder_input_ids"] = np.array([[CONFIG.pad_token_id, 9], [CONFIG.pad_token_id] * 2])
        assert "decoder_input_ids end in 1 padding id in text 1: " in missing_masks(tensors, ids, CONFIG)[1]
        ids["decoder_input_ids"] = ids["decoder_input_ids"][:, :1]  # the start token
        assert missing_masks(tensors, ids, CONFIG) == [asked_for_padding]
        return
    kind = "probs" if hidden else "scores"
    assert asked == [
        f"attention_mask is missing, but decoder.layers.0.encoder_attn.{kind} hides the last 12 keys of text 1: if the "
        "implementation masks them, add attention_mask (B, T) to the inputs or the dump",
        f"decoder_attention_mask is missing, but decoder.layers.0.self_attn.{kind} hides the last 2 keys of text 0: if "
        "the implementation masks them, add decoder_attention_mask (B, L) to the inputs or the dump",
    ]
