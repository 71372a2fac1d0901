"""Hostile arguments of the Python API: every argument of every call, with values of every wrong kind.

Two kinds of values. `NASTY` are wrong, or right by chance: the outcome is a result or an error. `DRESSED` are right
values in unusual clothes: the outcome is an error, or the result that the plain array gives.
"""

import atexit
import contextlib
import shutil
import tempfile
import warnings
from collections import UserList
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from fuzz.adapter_readers import offline
from fuzz.oracle import RESULT, Finding, Wrong, judge
from fuzz.readers import CONFIG, model, train

from pegasusx_ref import (
    GenerationConfig,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    SummarizationPipeline,
    convert,
    get_backend,
    pipeline,
    verify,
)
from pegasusx_ref.verification import from_dump


class Hostile:
    """Every conversion of it fails."""

    def _fail(self, *_arguments: Any, **_more: Any) -> Any:
        raise ZeroDivisionError("this object's own code fails\nin two lines \x1b[31m")

    __array__ = __repr__ = __str__ = __len__ = __index__ = __int__ = __float__ = __iter__ = __bool__ = _fail
    __getitem__ = __eq__ = __fspath__ = __array_interface__ = property(_fail)
    __hash__ = object.__hash__


class Lazy:
    """Converts to what is given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.value

    def __index__(self) -> Any:
        return self.value

    def __len__(self) -> Any:
        return self.value

    def __repr__(self) -> Any:
        return self.value


class Attributes:
    """Has every attribute."""

    def __getattr__(self, name: str) -> Any:
        return self


def nested(depth: int) -> Any:
    found: Any = [1]
    for _ in range(depth):
        found = [found]
    return found


def shared(depth: int) -> Any:
    """Return lists that hold each other twice: 2**depth entries in little memory."""
    found: Any = [1]
    for _ in range(depth):
        found = [found, found]
    return found


def itself() -> Any:
    found: list[Any] = []
    found.append(found)
    return found


NASTY: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "zero": lambda: 0,
    "one": lambda: 1,
    "-1": lambda: -1,
    "2^31": lambda: 2**31,
    "2^62": lambda: 2**62,
    "2^63": lambda: 2**63,
    "2^64": lambda: 2**64,
    "-2^63 - 1": lambda: -(2**63) - 1,
    "10^5000": lambda: 10**5000,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1e308": lambda: 1e308,
    "1e-320": lambda: 1e-320,
    "complex": lambda: 1j,
    "fraction": lambda: Fraction(1, 2),
    "text": lambda: "x",
    "empty text": lambda: "",
    "long text": lambda: "x" * 5000,
    "control characters": lambda: "\x1b[31m\n\u202e\x00\ud800",
    "bytes": lambda: b"x",
    "bytearray": lambda: bytearray(b"x"),
    "empty list": list,
    "list of an empty list": lambda: [[]],
    "list of a list": lambda: [[1]],
    "list of lists": lambda: [[[1]]],
    "ragged": lambda: [[1, 2], [3]],
    "ragged deeper": lambda: [[[1.0], [2.0, 3.0]]],
    "mixed": lambda: [[1, "a", None]],
    "list of floats": lambda: [[1.5, 2.0]],
    "list of booleans": lambda: [[True, False]],
    "list of none": lambda: [[None]],
    "list of texts": lambda: ["a", "b"],
    "list of 2^63": lambda: [[2**63]],
    "list of 2^64": lambda: [[2**64, 1]],
    "list of 10^5000": lambda: [[10**5000]],
    "list of -2^63 and 2^63": lambda: [[-(2**63), 2**63]],
    "list of nan": lambda: [[float("nan")]],
    "nested 60": lambda: nested(60),
    "nested 100": lambda: nested(100),
    "nested 10,000": lambda: nested(10_000),
    "shared 40": lambda: shared(40),
    "shared 20": lambda: shared(20),
    "itself": itself,
    "tuple": lambda: ((1, 2),),
    "set": lambda: {1, 2},
    "dictionary": lambda: {"a": 1},
    "generator": lambda: (i for i in range(3)),
    "range": lambda: range(3),
    "user list": lambda: UserList([[1, 2]]),
    "memory view": lambda: memoryview(b"abcd"),
    "ellipsis": lambda: ...,
    "not implemented": lambda: NotImplemented,
    "type": lambda: int,
    "function": lambda: print,
    "module": lambda: np,
    "object": object,
    "hostile": Hostile,
    "list of hostile": lambda: [Hostile()],
    "hostile array": lambda: Lazy(Hostile()),
    "array of none": lambda: Lazy(None),
    "array of a list": lambda: Lazy([1, 2]),
    "array of -1": lambda: Lazy(-1),
    "every attribute": Attributes,
    "path": lambda: Path("x"),
    "namespace": lambda: SimpleNamespace(last_hidden_state=1, encoder_last_hidden_state=[1]),
    "scalar array": lambda: np.array(1),
    "array of nothing": lambda: np.zeros((0, 4)),
    "array of no columns": lambda: np.zeros((2, 0), np.int64),
    "array of no batch of tokens": lambda: np.zeros((0, 2**40), np.int64),
    "huge expanded array": lambda: np.broadcast_to(np.int64(1), (2**20, 2**20)),
    "huge expanded floats": lambda: np.broadcast_to(np.float32(1), (2**15, 2**15, 4)),
    "array of one dimension": lambda: np.arange(3),
    "array of 60 dimensions": lambda: np.zeros((1,) * 60, np.int64),
    "floats": lambda: np.ones((1, 3)),
    "complexes": lambda: np.ones((1, 3, 4), complex),
    "long doubles": lambda: np.ones((1, 3, 4), np.longdouble),
    "halves": lambda: np.ones((1, 3, 4), np.float16),
    "bfloat16": lambda: np.ones((1, 3, 4), ml_dtypes.bfloat16),
    "8-bit floats": lambda: np.ones((1, 3, 4), ml_dtypes.float8_e4m3fn),
    "4-bit integers": lambda: np.ones((1, 3), ml_dtypes.int4),
    "nans": lambda: np.full((1, 3, 4), np.nan, np.float32),
    "infinities": lambda: np.full((1, 3, 4), np.inf, np.float32),
    "1e30s": lambda: np.full((1, 3, 4), 1e30, np.float32),
    "1e300s": lambda: np.full((1, 3, 4), 1e300),
    "objects": lambda: np.array([[1, None]], object),
    "integers as objects": lambda: np.array([[1, 2, 3]], object),
    "hostile objects": lambda: _objects(Hostile()),
    "texts": lambda: np.array([["a", "b"]]),
    "byte texts": lambda: np.array([[b"a"]]),
    "string dtype": lambda: np.array([["a", "b"]], np.dtypes.StringDType()),
    "structured": lambda: np.zeros((1, 3), [("a", "i4"), ("b", "f4")]),
    "record": lambda: np.rec.array([(1, 2.0)]),
    "dates": lambda: np.zeros((1, 3), "datetime64[s]"),
    "durations": lambda: np.zeros((1, 3), "timedelta64[s]"),
    "not a time": lambda: np.array([["NaT"]], "datetime64[s]"),
    "void": lambda: np.zeros((1, 3), "V4"),
    "unsigned beyond int64": lambda: np.full((1, 3), 2**64 - 1, np.uint64),
    "masked": lambda: np.ma.masked_array(np.ones((1, 3), np.int64), np.array([[True, False, False]])),
    "masked constant": lambda: np.ma.masked,
    "scalar tensor": lambda: torch.tensor(1),
    "meta": lambda: torch.ones(1, 3, dtype=torch.int64, device="meta"),
    "huge meta": lambda: torch.ones(2**20, 2**20, dtype=torch.int64, device="meta"),
    "meta floats": lambda: torch.ones(1, 3, 4, device="meta"),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "sparse tensor": lambda: torch.ones(1, 3).to_sparse(),
    "huge sparse tensor": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (2**31, 2**31)),
    "compressed tensor": lambda: torch.ones(1, 3).to_sparse_csr(),
    "quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(1, 3), 0.1, 0, torch.qint8),
    "expanded tensor": lambda: torch.ones(1, dtype=torch.int64).expand(2**20, 2**20),
    "expanded floats": lambda: torch.ones(1).expand(2**15, 2**15, 4),
    "complex tensor": lambda: torch.ones(1, 3, dtype=torch.complex64),
    "conjugate tensor": lambda: torch.ones(1, 3, dtype=torch.complex64).conj(),
    "8-bit float tensor": lambda: torch.ones(1, 3, 4).to(torch.float8_e4m3fn),
    "boolean tensor": lambda: torch.ones(1, 3, dtype=torch.bool),
    "tensor with gradients": lambda: torch.ones(1, 3, 4, requires_grad=True) * 2,
    "fake tensor": lambda: _fake(),
    "dtype": lambda: torch.float32,
    "device": lambda: torch.device("cuda:99"),
    "NumPy integer": lambda: np.int64(1),
    "NumPy float": lambda: np.float32(0.5),
    "NumPy bool": lambda: np.True_,
}


def _objects(value: Any) -> np.ndarray:
    found = np.empty((1, 1), object)
    found[0, 0] = value
    return found


def _fake() -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(1, 3, dtype=torch.int64)


def negated(array: np.ndarray) -> Any:
    """Return a tensor of these values with the negative bit."""
    numbers = torch.complex(torch.zeros(array.shape), torch.from_numpy(-array.astype(np.float32)))
    return numbers.conj().imag


DRESSED: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": lambda array: array.tolist(),
    "tuples": lambda array: tuple(map(tuple, array.tolist())),
    "big endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "backwards": lambda array: np.ascontiguousarray(array[:, ::-1])[:, ::-1],
    "backwards twice": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "every other": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "unaligned": lambda array: np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
    "subclass": lambda array: array.view(np.recarray) if array.dtype.names else array.view(np.memmap),
    "matrix": lambda array: np.ma.masked_array(array),
    "array of arrays": lambda array: list(array),
    "its own array": Lazy,
    "user list": lambda array: UserList(array.tolist()),
    "memory view": lambda array: np.ascontiguousarray(array).data,
    "objects": lambda array: array.astype(object),
    "tensor": lambda array: torch.from_numpy(array.copy()),
    "transposed tensor": lambda array: torch.from_numpy(array.copy()).transpose(0, 1).contiguous().transpose(0, 1),
    "tensor with gradients": lambda array: torch.nn.Parameter(
        torch.from_numpy(array.copy()), requires_grad=array.dtype.kind == "f"
    ),
    "negative bit": negated,
    "list of tensors": lambda array: [torch.from_numpy(row.copy()) for row in array],
    "double": lambda array: array.astype(np.float64) if array.dtype.kind == "f" else array.astype(np.int16),
}


@lru_cache
def tokenizer() -> PegasusTokenizer:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # some calls read the file again
    train(folder, "identity")
    return PegasusTokenizer(folder / "spiece.model")


@lru_cache
def torch_model() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(CONFIG, backend="torch")


def summarizer() -> SummarizationPipeline:
    return SummarizationPipeline(model(), tokenizer())


IDS = np.array([[110, 3, 1], [111, 1, 0]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])
STATES = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def weights(**changes: Any) -> dict[str, Any]:
    return dict(model().state_dict()) | changes


def converted(**arguments: Any) -> Any:
    """Convert a small checkpoint inside a folder of its own, in which relative paths lie too."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        model().save_pretrained("source")
        return convert(**({"source": "source", "destination": "destination"} | arguments))


def missing_tokenizer(name: str, x: Any) -> Any:
    return PegasusTokenizer.from_pretrained("owner/missing", **{name: x})


# The calls with one argument left open, and a right value of it where arrays are right.
def generate_with(name: str, x: Any) -> Any:
    settings: dict[str, Any] = {"max_new_tokens": 2, name: x}
    return model().generate(IDS, **settings)


CALLS: dict[str, tuple[Callable[[Any], Any], np.ndarray | None]] = {
    "input_ids": (lambda x: model()(x, decoder_input_ids=IDS).logits, IDS),
    "input_ids of torch": (lambda x: torch_model()(x, decoder_input_ids=IDS).logits, IDS),
    "attention_mask": (lambda x: model()(IDS, x, IDS).logits, MASK),
    "attention_mask of torch": (lambda x: torch_model()(IDS, x, IDS).logits, MASK),
    "decoder_input_ids": (lambda x: model()(IDS, None, x).logits, IDS),
    "decoder_attention_mask": (lambda x: model()(IDS, None, IDS, x).logits, MASK),
    "labels": (lambda x: model()(IDS, labels=x).loss, IDS),
    "inputs_embeds": (lambda x: model()(inputs_embeds=x, decoder_input_ids=IDS).logits, STATES),
    "inputs_embeds of torch": (lambda x: torch_model()(inputs_embeds=x, decoder_input_ids=IDS).logits, STATES),
    "decoder_inputs_embeds": (lambda x: model()(IDS, decoder_inputs_embeds=x).logits, STATES),
    "encoder_outputs": (lambda x: model()(encoder_outputs=x, decoder_input_ids=IDS).logits, STATES),
    "encoder_outputs tuple": (lambda x: model()(encoder_outputs=(x,), decoder_input_ids=IDS).logits, STATES),
    "past_key_values": (lambda x: model()(IDS, None, IDS, past_key_values=x).logits, None),
    "use_cache": (lambda x: model()(IDS, None, IDS, use_cache=x).logits, None),
    "output_attentions": (lambda x: model()(IDS, None, IDS, output_attentions=x).logits, None),
    "encode": (lambda x: model().encode(x).last_hidden_state, IDS),
    "encode mask": (lambda x: model().encode(IDS, x).last_hidden_state, MASK),
    "generate": (lambda x: model().generate(x, max_new_tokens=2), IDS),
    "generate mask": (lambda x: model().generate(IDS, x, max_new_tokens=2), MASK),
    "generate states": (lambda x: model().generate(encoder_outputs=x, max_new_tokens=2), STATES),
    "generate embeddings": (lambda x: torch_model().generate(inputs_embeds=x, max_new_tokens=2), STATES),
    "seed": (lambda x: model().generate(IDS, seed=x, do_sample=True, max_new_tokens=2), None),
    "seed of from_random": (lambda x: PegasusXForConditionalGeneration.from_random(CONFIG, x), None),
    "streamer": (lambda x: model().generate(IDS[:1], streamer=x, max_new_tokens=2), None),
    "cache_implementation": (lambda x: model().generate(IDS, cache_implementation=x, max_new_tokens=2), None),
    "return_dict": (lambda x: model().generate(IDS, return_dict_in_generate=x, max_new_tokens=2), None),
    **{
        f"generate {name}": (partial(generate_with, name), None)
        for name in GenerationConfig.__dataclass_fields__
        if name not in ("extra", "max_new_tokens")
    },
    **{
        f"config {name}": (partial(lambda name, x: CONFIG.replace(**{name: x}).to_dict(), name), None)
        for name in PegasusXConfig.__dataclass_fields__
    },
    "config of a dictionary": (lambda x: PegasusXConfig.from_dict(x), None),
    "preset": (lambda x: PegasusXConfig.preset(x), None),
    "weight": (
        lambda x: PegasusXForConditionalGeneration(
            CONFIG, weights(**{"encoder.layers.0.fc1.weight": x}), get_backend()
        )(IDS, None, IDS).logits,
        model().state_dict()["encoder.layers.0.fc1.weight"],
    ),
    "table": (
        lambda x: PegasusXForConditionalGeneration(
            CONFIG, weights(**{"shared.weight": x}), get_backend("torch")
        ).config,
        None,
    ),
    "weights": (lambda x: PegasusXForConditionalGeneration(CONFIG, x, get_backend()), None),
    "folder": (PegasusXForConditionalGeneration.from_pretrained, None),
    "folder of a configuration": (PegasusXConfig.from_pretrained, None),
    "folder of a tokenizer": (PegasusTokenizer.from_pretrained, None),
    "dump": (from_dump, None),
    "mapping": (lambda x: dict(from_dump(Path(__file__), x)), None),
    "backend": (get_backend, None),
    "device": (lambda x: get_backend("numpy", device=x), None),
    "device of torch": (lambda x: get_backend("torch", device=x), None),
    "dtype": (lambda x: get_backend("numpy", dtype=x), None),
    "dtype of torch": (lambda x: get_backend("torch", dtype=x), None),
    "dtype of golden": (lambda x: get_backend("golden", dtype=x), None),
    "dtype of from_random": (lambda x: PegasusXForConditionalGeneration.from_random(CONFIG, dtype=x), None),
    "text": (lambda x: tokenizer()(x)["input_ids"], None),
    "texts": (lambda x: tokenizer()([x, "a"])["input_ids"], None),
    "text_pair": (lambda x: tokenizer()("a", x)["input_ids"], None),
    "text_target": (lambda x: tokenizer()("a", text_target=x), None),
    "max_length": (lambda x: tokenizer()("a b", max_length=x, truncation=True)["input_ids"], None),
    "max_length of padding": (lambda x: tokenizer()("a", max_length=x, padding="max_length"), None),
    "truncation": (lambda x: tokenizer()("a b", max_length=2, truncation=x), None),
    "padding": (lambda x: tokenizer()("a b", padding=x), None),
    "return_tensors": (lambda x: tokenizer()("a b", return_tensors=x), None),
    "padding_side": (lambda x: tokenizer()(["a b", "a"], padding=True, padding_side=x), None),
    "pad_to_multiple_of": (lambda x: tokenizer()("a b", padding=True, pad_to_multiple_of=x), None),
    "add_special_tokens": (lambda x: tokenizer()("a b", add_special_tokens=x), None),
    "return_attention_mask": (lambda x: tokenizer()("a b", return_attention_mask=x), None),
    "return_length": (lambda x: tokenizer()("a b", return_length=x), None),
    "text_target alone": (lambda x: tokenizer()(text_target=x), None),
    "skip_special_tokens": (lambda x: tokenizer().decode([5], skip_special_tokens=x), None),
    "clean_up": (lambda x: tokenizer().decode([5], clean_up_tokenization_spaces=x), None),
    "truncation_side": (lambda x: PegasusTokenizer(tokenizer().vocab_file, truncation_side=x), None),
    "encode text": (lambda x: tokenizer().encode(x), None),
    "decode": (lambda x: tokenizer().decode(x), IDS[0]),
    "batch_decode": (lambda x: tokenizer().batch_decode(x), IDS),
    "convert_ids_to_tokens": (lambda x: tokenizer().convert_ids_to_tokens(x), IDS[0]),
    "convert_tokens_to_ids": (lambda x: tokenizer().convert_tokens_to_ids(x), None),
    "tokenize": (lambda x: tokenizer().tokenize(x), None),
    "model_max_length": (lambda x: PegasusTokenizer(tokenizer().vocab_file, x), None),
    "summary": (lambda x: summarizer()(x, max_new_tokens=2), None),
    "summary of texts": (lambda x: summarizer()(["a", x], max_new_tokens=2), None),
    "batch_size": (lambda x: summarizer()(["a", "b"], batch_size=x, max_new_tokens=2), None),
    "task": (lambda x: pipeline(x), None),
    "model of a pipeline": (lambda x: pipeline(model=x if x is not None else "missing"), None),
    "tokenizer of a pipeline": (lambda x: pipeline(model=model(), tokenizer=x), None),
    "verify inputs": (lambda x: verify(model(), {}, x), None),
    "verify ids": (lambda x: verify(model(), {"x": IDS}, {"input_ids": x, "decoder_input_ids": IDS}), None),
    "verify tensor": (
        lambda x: verify(model(), {"lm_head": x}, {"input_ids": IDS, "decoder_input_ids": IDS}).table, None
    ),
    "verify candidate": (lambda x: verify(model(), x, {"input_ids": IDS, "decoder_input_ids": IDS}), None),
    **{
        f"generate with {name}": (partial(generate_with, name), None)
        for name in ("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn",
                     "tokenizer", "guidance_scale", "min_p", "inputs", "assistant_model", "trust_remote_code")
    },
    "scores of a logits processor": (lambda x: generate_with("logits_processor", [lambda ids, scores: x]), None),
    "answer of a stopping criterion": (lambda x: generate_with("stopping_criteria", [lambda ids, scores: x]), None),
    "allowed tokens": (lambda x: generate_with("prefix_allowed_tokens_fn", lambda source, ids: x), None),
    "entry of logits_processor": (lambda x: generate_with("logits_processor", [x]), None),
    "setting of generation_config": (
        lambda x: generate_with("generation_config", {"temperature": x, "do_sample": x}), None
    ),
    "bad word": (lambda x: generate_with("bad_words_ids", [x]), None),
    "stop string": (lambda x: model().generate(IDS, max_new_tokens=2, stop_strings=[x], tokenizer=tokenizer()), None),
    "decay": (lambda x: generate_with("exponential_decay_length_penalty", (1, x)), None),
    "entries of a generation configuration": (lambda x: GenerationConfig.from_dict(x).to_dict(), None),
    "truncation of a pipeline": (lambda x: summarizer()("a", truncation=x, max_new_tokens=2), None),
    "clean-up of a pipeline": (lambda x: summarizer()("a", clean_up_tokenization_spaces=x, max_new_tokens=2), None),
    "settings of a pipeline": (lambda x: summarizer()("a", max_new_tokens=x, min_new_tokens=x), None),
    "stream of texts": (lambda x: [*islice(summarizer()(iter(["a", x]), max_new_tokens=2), 3)], None),
    "device of a pipeline": (lambda x: pipeline(model=model(), tokenizer=tokenizer(), device=x), None),
    "dtype of a pipeline": (lambda x: pipeline(model=model(), tokenizer=tokenizer(), torch_dtype=x), None),
    "device_map of a pipeline": (lambda x: pipeline(model=model(), tokenizer=tokenizer(), device_map=x), None),
    "place of a model": (lambda x: model().to(x), None),
    "mode of a model": (lambda x: model().train(x), None),
    "device of cuda": (lambda x: model().cuda(x), None),
    **{
        f"hub option {name}": (partial(missing_tokenizer, name), None)
        for name in ("revision", "cache_dir", "token", "local_files_only", "model_max_length", "truncation_side")
    },
    "entries of tokenizer_config": (lambda x: PegasusTokenizer(tokenizer().vocab_file, config=x), None),
    "added token": (
        lambda x: PegasusTokenizer(tokenizer().vocab_file, config={"added_tokens_decoder": {"127": x}}), None
    ),
    "special tokens": (lambda x: PegasusTokenizer(tokenizer().vocab_file, config={"extra_special_tokens": x}), None),
    "source of a conversion": (lambda x: converted(source=x), None),
    "destination of a conversion": (lambda x: converted(destination=x), None),
    **{
        f"conversion with {name}": (partial(lambda name, x: converted(**{name: x}), name), None)
        for name in ("dtype", "max_shard_size", "config", "tokenizer", "revision")
    },
    "arithmetic": (lambda x: verify(model(), {}, {"input_ids": IDS, "decoder_input_ids": IDS}, x), None),
}  # fmt: skip


# A function of the caller that raises an error, or returns lists that take for ever to be read.
OF_THE_CALLER = {
    *(f"generate with {name}/type" for name in ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")),
    *("entry of logits_processor/type", "answer of a stopping criterion/shared 40", "allowed tokens/shared 40"),
}


def all_kinds() -> list[str]:
    """List every call with every value."""
    kinds = [f"{call}/{value}" for call, (_, right) in CALLS.items() for value in _values(right)]
    return [f"argument/{kind}" for kind in kinds if kind not in OF_THE_CALLER]


def _values(right: np.ndarray | None) -> list[str]:
    return [*NASTY, *(f"right: {name}" for name in (DRESSED if right is not None else ()))]


def judge_argument(name: str) -> str:
    """Judge one call; see `judge_case`."""
    with offline():
        return _judge_argument(name)


def _judge_argument(name: str) -> str:
    _, call_name, value, _ = name.split("/")
    call, right = CALLS[call_name]
    wanted = value.removeprefix("right: ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that make unusual values
        try:
            argument = NASTY[value]() if value == wanted else DRESSED[wanted](right)  # type: ignore[arg-type]
        except (TypeError, ValueError, IndexError, RuntimeError):  # these clothes do not fit this array
            return RESULT
    use: Callable[[Any], Any] = type if value == wanted else partial(_compare, call(right))
    try:
        return judge(partial(call, argument), use)
    except Finding as finding:
        return f"FINDING {finding}"


def _compare(expected: Any, found: Any) -> None:
    if not np.array_equal(np.asarray(expected), np.asarray(found)):
        raise Wrong("another result than that of the plain array")
