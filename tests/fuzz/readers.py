"""The readers of the package: the valid files of each, what reads them, and every kind of damage to them."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from fuzz import npz_forms, pickle_forms, safetensors_forms
from fuzz.mutations import SPECIAL, Damage, damage_bytes, damage_json, damage_toml, damaged_json
from fuzz.oracle import Wrong

from pegasusx_ref import PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration, get_backend, verify
from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.benchmarking.report import report
from pegasusx_ref.benchmarking.results import CaseResult, Results, Run
from pegasusx_ref.benchmarking.storage import read_results, write_results
from pegasusx_ref.benchmarking.suites import SUITES
from pegasusx_ref.verification import from_backend, from_dump
from pegasusx_ref.verification.candidates.inputs import INPUTS
from pegasusx_ref.verification.reports import as_dict, as_html, as_junit, as_text
from pegasusx_ref.verification.vectors import check_vector, read_vector
from pegasusx_ref.verification.vectors.build import make_vector
from pegasusx_ref.verification.vectors.vector_files import write_vector

CONFIG = PegasusXConfig(
    vocab_size=130, d_model=4, block_size=2, num_global_tokens=1, activation_function="relu", max_position_embeddings=8,
    encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=3, init_std=0.5,
    decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=3,
)  # fmt: skip
MAX_COMPARED = 2**20  # bytes
VERIFIED = 8  # one in so many dumps is verified as a whole
TEXT = "The small model of a library."
IDS = {"input_ids": np.array([[110, 111, 112, 1]]), "decoder_input_ids": np.array([[0, 120]])}


class Reader(NamedTuple):
    """A reader.

    Attributes:
        make: writes valid files into a folder.
        read: reads them; its errors name the folder or a file in it.
        use: takes what was read, and raises `Wrong` where that is not what the files say.
        damages: by the name of the file that each damages and its own name.
        weight: share of the random inputs.
        inside: the part of the folder that nothing outside of which may be read or written.
        name: that errors may have in place of the folder.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    use: Callable[[Path, Any], Any]
    damages: Mapping[str, Mapping[str, Damage]]
    weight: float = 1.0
    inside: str = ""
    name: str | None = None


def special(name: str) -> Damage:
    def damage(_rng: Random, path: Path) -> None:
        path.unlink()
        SPECIAL[name](path)

    return damage


ANY: dict[str, Damage] = {"bytes": damage_bytes} | {name: special(name) for name in SPECIAL}
JSON: dict[str, Damage] = ANY | {"entries": damage_json}


# --- checkpoints -----------------------------------------------------------------------------------------------------


@lru_cache
def model() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(CONFIG)


def train(folder: Path, rule: str) -> None:
    """Write a small spiece.model."""
    import io

    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([f"{TEXT} {word}" for word in TEXT.split()]), model_writer=file, vocab_size=24, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2, normalization_rule_name=rule,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(file.getvalue())


def make_checkpoint(folder: Path) -> None:
    folder.mkdir()
    model().save_pretrained(folder)
    settings = {"num_beams": 2, "max_length": 4, "length_penalty": 0.8, "eos_token_id": [1, 3], "bad_words_ids": None}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    extra = {"num_labels": 3, "id2label": {"0": "a", "1": "b"}, "architectures": ["PegasusXModel"]}
    (folder / "config.json").write_text(json.dumps(config | extra))
    train(folder, "identity")
    PegasusTokenizer(folder / "spiece.model", 6, {"extra": {"a": [1]}, "pad_token": "<pad>"}).save_pretrained(folder)


def make_bin(folder: Path, is_zip: bool) -> None:
    make_checkpoint(folder)
    path = folder / "model.safetensors"
    torch.save(safetensors.torch.load_file(path), folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    path.unlink()


def make_shards(folder: Path, bins: bool) -> None:
    make_checkpoint(folder)
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    name = "pytorch_model.bin" if bins else "model.safetensors"
    weight_map = {key: f"part-{i % 2}" for i, key in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        part = {key: tensor for key, tensor in tensors.items() if weight_map[key] == shard}
        torch.save(part, folder / shard) if bins else safetensors.torch.save_file(part, folder / shard)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"size": 1}, "weight_map": weight_map}))


def read_checkpoint(folder: Path) -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_pretrained(folder)


def use_checkpoint(folder: Path, found: PegasusXForConditionalGeneration) -> None:
    check_entries(folder / "config.json", found.config)
    expected = independent_tensors(folder)
    for name, tensor in found.state_dict().items():
        other = expected.get(name, expected.get("shared.weight"))
        if other is None or not np.array_equal(tensor, to_numpy(other.to(torch.float32)), equal_nan=True):
            raise Wrong(f"tensor {name}")
    found.generate([[3, 4, 5]], max_new_tokens=2, num_beams=1, num_return_sequences=1, seed=0)
    (folder / "copy").mkdir()
    found.save_pretrained(folder / "copy")
    again = PegasusXForConditionalGeneration.from_pretrained(folder / "copy")
    if again.config.replace(extra={}, dtype=None) != found.config.replace(extra={}, dtype=None):
        raise Wrong("the configuration after saving")


def make_quantized(folder: Path, kind: str) -> None:
    make_checkpoint(folder)
    PegasusXForConditionalGeneration.from_pretrained(folder, quantization=kind).save_pretrained(folder)


def read_quantized(folder: Path) -> PegasusXForConditionalGeneration:
    # Not by NumPy's backend: numba compiles its loops at any call, and writes its cache.
    return PegasusXForConditionalGeneration.from_pretrained(folder, backend="golden")


def use_quantized(folder: Path, found: PegasusXForConditionalGeneration) -> None:
    check_entries(folder / "config.json", found.config)
    found.generate([[3, 4, 5]], max_new_tokens=2, num_beams=1, num_return_sequences=1, seed=0)
    (folder / "copy").mkdir()
    found.save_pretrained(folder / "copy")
    again = read_quantized(folder / "copy").state_dict()
    for name, tensor in found.state_dict().items():
        if not np.array_equal(tensor, again[name], equal_nan=True):
            raise Wrong(f"tensor {name} after saving")


def damage_state(rng: Random, path: Path) -> None:
    """Damage the JSON of a quantized matrix, or its scales."""
    tensors = safetensors.numpy.load_file(path)
    name = rng.choice([name for name in tensors if "absmax" in name or "quant" in name or "SCB" in name])
    if "quant_state" in name:
        text = damaged_json(rng, json.loads(tensors[name].tobytes()))
        tensors[name] = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    else:
        values = (np.nan, np.inf, -1, 3e38, 1e-45, 0)
        tensors[name] = (tensors[name].astype(np.float32) * 0 + rng.choice(values)).astype(rng.choice("fdBb"))
    safetensors.numpy.save_file(tensors, path)


def independent_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights of a folder by the libraries of their formats."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.name == "model.safetensors" or (path.name.startswith("part-") and not is_bin(folder)):
            found |= safetensors.torch.load_file(path)
        elif path.name == "pytorch_model.bin" or path.name.startswith("part-"):
            entries = torch.load(path, weights_only=True, map_location="cpu")
            found |= entries.get("state_dict", entries)
    return {name.removeprefix("model."): tensor for name, tensor in found.items()}


def is_bin(folder: Path) -> bool:
    return (folder / "pytorch_model.bin.index.json").exists()


def check_entries(path: Path, found: PegasusXConfig) -> None:
    """Compare the fields of a configuration with its file; what is missing there is the default."""
    entries = json.loads(path.read_text("utf-8-sig"))
    values = asdict(found)
    unchecked = {"dtype", "extra", "tie_word_embeddings"}
    if found.vocab_size == CONFIG.vocab_size:  # more rows than the file says are the vocabulary
        unchecked.add("vocab_size")
    for name in set(values) & set(entries) - unchecked:
        if values[name] != entries[name] or type(values[name]) is not type(entries[name]):
            same = isinstance(values[name], float) and values[name] == float(entries[name])
            if not same and values[name] != entries[name]:
                raise Wrong(f"{name} is {values[name]!r}, in the file {entries[name]!r}")


def read_tokenizer(folder: Path) -> PegasusTokenizer:
    return PegasusTokenizer.from_pretrained(folder)


def use_tokenizer(folder: Path, found: PegasusTokenizer) -> None:
    texts = [TEXT, "ﬁ ① e\u0301 가 <x>\n=", "", "\ud800", "x" * 1000]
    batch = found(texts, truncation=True, padding=True)
    ids = [i for row in batch["input_ids"] for i in row]
    if not all(0 <= i < len(found) for i in ids):
        raise Wrong("an id outside the vocabulary")
    found.batch_decode(batch["input_ids"])
    found.decode(range(len(found)))
    found.convert_tokens_to_ids(["<unk>", "the", "▁"])
    found.get_vocab()
    found.save_pretrained(folder / "copy")
    again = PegasusTokenizer.from_pretrained(folder / "copy")
    if again(TEXT)["input_ids"] != found(TEXT)["input_ids"] or again.model_max_length != found.model_max_length:
        raise Wrong("the tokenizer after saving")


def make_nfkc(folder: Path) -> None:
    make_checkpoint(folder)
    train(folder, "nmt_nfkc")


def damage_charsmap(rng: Random, path: Path) -> None:
    """Damage the table of the normalization inside spiece.model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    table = bytearray(proto.normalizer_spec.precompiled_charsmap)
    for _ in range(rng.choice((1, 1, 10, 1000, 50_000))):
        table[rng.randrange(len(table))] = rng.randrange(256)
    proto.normalizer_spec.precompiled_charsmap = bytes(table[: rng.choice((None, None, None, 4, 1024, 4 * 1025, -1))])
    path.write_bytes(proto.SerializeToString())


def damage_pieces(rng: Random, path: Path) -> None:
    """Change the pieces and the numbers of spiece.model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    for _ in range(rng.choice((1, 2, 5))):
        piece, kind = rng.choice(proto.pieces), rng.randrange(7)
        if kind == 0:
            piece.score = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 0.0))
        elif kind == 1:
            piece.type = rng.choice((1, 2, 3, 4, 5, 6))
        elif kind == 2:
            piece.piece = rng.choice(("", "x", "▁", "\u202e", "x" * 5000, "<pad>", "</s>", "<0x41>"))
        elif kind == 3:
            proto.pieces.add(piece="▁" * rng.randrange(1, 50), score=rng.random(), type=rng.choice((1, 4, 6)))
        elif kind == 4:
            del proto.pieces[rng.randrange(len(proto.pieces)) :]
            proto.pieces.add(piece="x", score=0.0)
        elif kind == 5:
            proto.trainer_spec.model_type = rng.choice((1, 2, 3, 4))
        else:
            field = rng.choice(("unk_id", "bos_id", "eos_id", "pad_id", "vocab_size"))
            setattr(proto.trainer_spec, field, rng.choice((-1, 0, 1, 2, 10**6, 2**31 - 1, -(2**31))))
            proto.trainer_spec.byte_fallback = rng.random() < 0.3
    path.write_bytes(proto.SerializeToString())


def huge_model(rng: Random, path: Path) -> None:
    """Append pieces until the file is as large as it may be, and one field that is not valid."""
    path.write_bytes(path.read_bytes() + b"\x0a\x08\x0a\x01a\x15\0\0\0\0" * (2**24 // 10 - 30_000) + b"\xff")


def weight_map(make: Callable[[list[str]], Any]) -> Damage:
    """Replace the map of an index."""

    def damage(rng: Random, path: Path) -> None:
        entries = json.loads(path.read_text())
        path.write_text(json.dumps(entries | {"weight_map": make(list(entries["weight_map"]))}))

    return damage


def shards(name: Any) -> Damage:
    return weight_map(lambda names: dict.fromkeys(names, name))


INDEX: dict[str, Damage] = JSON | {
    "parent folder": shards("../part-0"),
    "absolute path": shards("/etc/passwd"),
    "missing shard": shards("part-9"),
    "folder itself": shards("."),
    "folder above": shards(".."),
    "empty name": shards(""),
    "index itself": shards("model.safetensors.index.json"),
    "configuration": shards("config.json"),
    "list": weight_map(lambda names: names),
    "lists": shards(["part-0"]),
    "numbers": shards(1),
    "null": shards(None),
    "long name": shards("x" * 5000),
    "name of the longest": shards("x" * 255),
    "zero byte": shards("part\0"),
    "surrogate": shards("part-\udcff"),
    "control characters": shards("\x1b[31m\n"),
    "many shards": weight_map(lambda names: {f"t{i}": f"part-{i}" for i in range(50_000)}),
    "one shard": shards("part-0"),
    "no shards": weight_map(lambda names: {}),
}
SAFETENSORS = ANY | safetensors_forms.FORMS
PICKLE = ANY | pickle_forms.FORMS
SPIECE = ANY | {"pieces": damage_pieces, "large and invalid": huge_model}


# --- dumps and vectors -----------------------------------------------------------------------------------------------

MAPPING = """lm_head = "lm_head"
"encoder.layers.{i}.tokens.fc1" = {name = "encoder.layers.{i}.tokens.fc1", reshape = [-1, 3]}
"encoder.layers.{i}.self_attn.local.{n}.scores" = "encoder.layers.{i}.self_attn.local.{n}.scores"
"decoder.layers.{i}.fc1" = {name = "decoder.layers.{i}.fc1", transpose = [0, 1, 2], reshape = ["B", "L", "M"]}
"encoder.layers.{i}.tokens.fc2" = {name = "encoder.layers.{i}.tokens.fc2", slice = {1 = [0, "T"]}, unpad = 1}
"encoder.layers.{i}.self_attn.local.{n}.context" = {name = "encoder.layers.{i}.self_attn.tokens.q_proj", reshape = ["B", "N", "K", "H", "F"], transpose = [0, 3, 1, 2, 4], unblock = 2}
"encoder.layers.{i}.self_attn.global.probs" = {name = "encoder.layers.{i}.self_attn.global.probs", roll = {-1 = "G"}, unpad_keys = 3}
"encoder.layers.{i}.globals.fc2" = {name = ["encoder.layers.{i}.globals.fc1", "encoder.layers.{i}.globals.activation"], concat = -1}
"decoder.layers.{i}.fc2" = {name = "decoder.layers.{i}.input", add = "decoder.layers.{i}.fc2"}
input_ids = "input_ids"
"""  # noqa: E501 - lines of TOML are long


@lru_cache
def tensors() -> dict[str, np.ndarray]:
    found = from_backend(model())(IDS)
    return {name: np.ascontiguousarray(tensor) for name, tensor in found.items()} | IDS


@lru_cache
def reference() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration(CONFIG, model().state_dict(), get_backend("golden", dtype="float64"))


def make_npz(folder: Path) -> None:
    folder.mkdir()
    np.savez(folder / "dump.npz", **tensors())  # type: ignore[arg-type]
    (folder / "map.toml").write_text(MAPPING)


def make_safetensors(folder: Path) -> None:
    folder.mkdir()
    safetensors.numpy.save_file(tensors(), folder / "dump.safetensors")
    (folder / "map.toml").write_text(MAPPING)


def read_dump(folder: Path, name: str, mapping: str | None = None) -> Mapping[str, np.ndarray]:
    return from_dump(folder / name, mapping and folder / mapping, CONFIG)


def use_dump(folder: Path, found: Mapping[str, np.ndarray], own: bool = True) -> None:
    """Compare small tensors with an independent reader's, then verify as the command does."""
    if own:
        check_dump(folder, found)
    inputs = {name: found[name] for name in INPUTS if name in found}
    if Random(str(sorted(found))).randrange(VERIFIED):
        return
    checked = verify(reference(), found, inputs)
    as_text(checked, True)
    json.dumps(as_dict(checked), allow_nan=False)
    as_junit(checked, "x")
    as_html(checked, "x")


def check_dump(folder: Path, found: Mapping[str, np.ndarray]) -> None:
    path = next(folder.glob("dump.*"))
    if path.stat().st_size > MAX_COMPARED or (path.suffix == ".npz" and declared(path) > MAX_COMPARED):
        return
    ours = dict(found)
    try:
        theirs: Any = npz_forms.arrays(path) if path.suffix == ".npz" else safetensors.torch.load_file(path)
        expected = {name: to_numpy(theirs[name]) for name in ours}
    except Exception as error:
        raise Wrong(f"read, although its own library refuses it: {error}") from error
    for name, tensor in ours.items():
        if tensor.dtype.itemsize and not np.array_equal(tensor, expected[name], equal_nan=tensor.dtype.kind in "fc"):
            raise Wrong(f"tensor {name}")


def declared(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return max((member.file_size for member in archive.infolist()), default=0)


@lru_cache
def vector_name() -> str:
    return "one-token"


def make_vector_folder(folder: Path) -> None:
    write_vector(folder, make_vector(vector_name()))


def signed(damage: Damage) -> Damage:
    """Damage a file of a vector, and write its new checksum into the manifest."""

    def damage_and_sign(rng: Random, path: Path) -> None:
        damage(rng, path)
        manifest = path.parent / "manifest.json"
        if path.stat().st_size < 2**27:
            entries = json.loads(manifest.read_text("utf-8"))
            entries["files"][path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest.write_text(json.dumps(entries), "utf-8")

    return damage_and_sign


SIGNED = ANY | {name: signed(damage) for name, damage in (safetensors_forms.FORMS | {"bytes": damage_bytes}).items()}


def use_vector(folder: Path, found: Any) -> None:
    as_text(check_vector(found, found.trace, "float32"), True)


# --- bench and documents ---------------------------------------------------------------------------------------------


def make_bench(folder: Path) -> None:
    folder.mkdir()
    cases = {}
    for case in SUITES["cpu"][:3]:
        runs = {name: Run([0.5, 0.25], [100, None]) for name in case.implementations}
        cases[case.name] = CaseResult(case, runs)
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    facts = json.loads(sorted(results.glob("*.json"))[0].read_text("utf-8"))["facts"]
    settings = {"suite": "cpu", "device": "cpu", "rounds": 2, "tokens": None, "preset": None}
    write_results(folder / "bench.json", Results(settings, facts, "bench", cases=cases))


def use_bench(folder: Path, found: Results) -> None:
    from pegasusx_ref.benchmarking.report import as_markdown
    from pegasusx_ref.cli.printing import table_lines

    report(found, as_markdown)
    report(found, table_lines)
    write_results(folder / "again.json", found)
    read_results(folder / "again.json")


def _bin(is_zip: bool) -> Reader:
    return Reader(partial(make_bin, is_zip=is_zip), read_checkpoint, use_checkpoint, {"pytorch_model.bin": PICKLE}, 1.0)


READERS: dict[str, Reader] = {
    "config": Reader(make_checkpoint, read_checkpoint, use_checkpoint, {"config.json": JSON}),
    "generation_config": Reader(make_checkpoint, read_checkpoint, use_checkpoint, {"generation_config.json": JSON}),
    "safetensors": Reader(make_checkpoint, read_checkpoint, use_checkpoint, {"model.safetensors": SAFETENSORS}),
    "index": Reader(
        partial(make_shards, bins=False),
        read_checkpoint,
        use_checkpoint,
        {"model.safetensors.index.json": INDEX, "part-1": SAFETENSORS},
    ),
    "index of bins": Reader(
        partial(make_shards, bins=True),
        read_checkpoint,
        use_checkpoint,
        {"pytorch_model.bin.index.json": INDEX, "part-1": PICKLE},
        0.5,
    ),
    **{
        f"quantized {kind}": Reader(
            partial(make_quantized, kind=kind),
            read_quantized,
            use_quantized,
            {"config.json": JSON, "model.safetensors": SAFETENSORS | {"state": damage_state}},
            0.5,
        )
        for kind in ("nf4-double", "int8")
    },
    "bin": _bin(True),
    "older bin": _bin(False),
    "tokenizer": Reader(
        make_checkpoint, read_tokenizer, use_tokenizer, {"tokenizer_config.json": JSON, "spiece.model": SPIECE}
    ),
    "normalization": Reader(
        make_nfkc, read_tokenizer, use_tokenizer, {"spiece.model": SPIECE | {"charsmap": damage_charsmap}}, 0.3
    ),
    "npz": Reader(make_npz, partial(read_dump, name="dump.npz"), use_dump, {"dump.npz": ANY | npz_forms.FORMS}),
    "dump": Reader(
        make_safetensors,
        partial(read_dump, name="dump.safetensors"),
        use_dump,
        {"dump.safetensors": SAFETENSORS},
        0.5,
    ),
    "mapping": Reader(
        make_npz,
        partial(read_dump, name="dump.npz", mapping="map.toml"),
        partial(use_dump, own=False),
        {"map.toml": ANY | {"lines": damage_toml}},
    ),
    "vector": Reader(
        make_vector_folder,
        read_vector,
        use_vector,
        {
            "manifest.json": JSON,
            **{f"{name}.safetensors": SIGNED for name in ("weights", "inputs", "trace")},
        },
        0.5,
    ),
    "bench": Reader(make_bench, lambda folder: read_results(folder / "bench.json"), use_bench, {"bench.json": JSON}),
}
