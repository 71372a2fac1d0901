"""Threads share a model and a tokenizer: each call gives the bits that it gives alone, on every backend and dtype.

The long form makes 20,000 calls: python -m pytest --long tests/test_threads.py
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from random import random
from threading import Barrier, Semaphore, Thread
from time import sleep
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
from pegasusx_numpy import thread_pool
from small_chunks import small_chunks
from suffixes import is_checked
from tolerances import assert_close

from pegasusx_ref import (
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    available_backends,
    get_backend,
)
from pegasusx_ref.model.kv_cache import DecoderCache
from pegasusx_ref.model.outputs import EncoderOutput, ModelOutput
from pegasusx_ref.model.weights import random_weights
from pegasusx_ref.tracing import listen, record

pytestmark = pytest.mark.slow

NUM_THREADS = 8
SHORT, LONG = 400, 20_000  # calls, of all tests together
PAUSE = 1e-3  # seconds
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"cache_implementation": "static"},
    {"do_sample": True, "seed": 7, "num_return_sequences": 2},
)
PATTERNS = ("encoder.layers.*", "decoder.layers.1.*", "*.fc1", "*.probs", "lm_head")
RUNNABLE = [
    (name, device, dtype)
    for name, info in available_backends().items()
    for device in info.devices
    for dtype in info.dtypes
]


def in_threads(work: Callable[[int], None], count: int = NUM_THREADS) -> None:
    """Call `work` with the number of each thread, start all of them together, and raise the first error."""
    start, errors = Barrier(count, timeout=60), []  # a thread that ends early is an error, and not waited for
    arrived = Semaphore(0)

    def run(number: int) -> None:
        arrived.release()
        try:
            start.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
        arrived.acquire(timeout=60)  # Python 3.11 cannot install the trace functions of two new threads at once
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


@pytest.fixture(autouse=True)
def interruptions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stop every new thread some times before each line of the packages, so that the others work meanwhile."""
    before, pauses = (sys.getswitchinterval(), threading.gettrace()), Counter[Any]()
    pauses_per_line = 10 if is_long(request) else 1

    def pause(frame: FrameType, event: str, argument: Any) -> Any:
        if not is_checked(frame.f_code.co_filename):
            return None
        line = threading.get_ident(), frame.f_code, frame.f_lineno
        if event == "line" and pauses[line] < pauses_per_line and random() < 0.2:  # at different times
            pauses[line] += 1
            sleep(PAUSE)
        return pause

    sys.setswitchinterval(1e-5)
    threading.settrace(pause)
    yield
    sys.setswitchinterval(before[0])
    threading.settrace(before[1])


def beginning(model: PegasusXForConditionalGeneration, encoded: EncoderOutput) -> DecoderCache:
    """Decode two texts of three tokens: the caches have room for the next token."""
    past: DecoderCache | None = None
    for ids in ([[0], [0]], [[7], [9]], [[8], [7]]):
        past = model(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=past).past_key_values
    assert past is not None
    return past


class Shared(NamedTuple):
    """What the threads share."""

    model: PegasusXForConditionalGeneration
    tokenizer: PegasusTokenizer
    encoded: EncoderOutput
    pasts: list[DecoderCache]

    @classmethod
    def create(
        cls, config: PegasusXConfig, backend: tuple[str, str, str], tokenizer: PegasusTokenizer, num_pasts: int
    ) -> "Shared":
        name, device, dtype = backend
        model = PegasusXForConditionalGeneration(config, random_weights(config, 3), get_backend(name, device, dtype))
        encoded = model.encode([[7, 8, 9], [9, 10, 0]], [[1, 1, 1], [1, 1, 0]])
        return cls(model, tokenizer, encoded, [beginning(model, encoded) for _ in range(num_pasts)])

    def source(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw texts without a mask, of different lengths, or with holes."""
        config = self.model.config
        B, T = rng.integers(1, 4), rng.integers(1, 3 * config.block_size)
        lengths = np.arange(T) < rng.integers(1, T + 1, (B, 1))
        mask = (None, lengths, lengths, rng.integers(0, 2, (B, T)))[rng.integers(4)]
        return {"input_ids": rng.integers(2, config.vocab_size, (B, T)), "attention_mask": mask}

    def batch(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw texts with targets."""
        source = self.source(rng)
        size = (len(source["input_ids"]), rng.integers(1, 5))
        return source | {"decoder_input_ids": rng.integers(2, self.model.config.vocab_size, size), "use_cache": False}


# --- the calls: each computes the same from the same random numbers --------------------------------------------------


def forward(shared: Shared, rng: np.random.Generator) -> Any:
    return shared.model(**shared.batch(rng))


def outputs(shared: Shared, rng: np.random.Generator) -> Any:
    return shared.model(**shared.batch(rng), output_attentions=True, output_hidden_states=True)


def loss(shared: Shared, rng: np.random.Generator) -> Any:
    batch = shared.batch(rng)
    return shared.model(**batch, labels=batch["decoder_input_ids"])


def encode(shared: Shared, rng: np.random.Generator) -> Any:
    return shared.model.encode(**shared.source(rng))


def generate(shared: Shared, rng: np.random.Generator) -> Any:
    settings = SETTINGS[rng.integers(len(SETTINGS))]
    return shared.model.generate(**shared.source(rng), min_new_tokens=4, max_new_tokens=5, **settings)


def continued(shared: Shared, rng: np.random.Generator) -> Any:
    """Continue a beginning by one token, and that by two."""
    logits, past = [], shared.pasts[rng.integers(len(shared.pasts))]
    for length in (1, 2):
        ids = rng.integers(2, shared.model.config.vocab_size, (2, length))
        output = shared.model(encoder_outputs=shared.encoded, decoder_input_ids=ids, past_key_values=past)
        logits.append(output.logits)
        assert output.past_key_values is not None
        past = output.past_key_values
    return logits


def tokenize(shared: Shared, rng: np.random.Generator) -> Any:
    ids = rng.integers(0, shared.tokenizer.vocab_size, 30)
    text = shared.tokenizer.decode(ids)
    return [text, shared.tokenizer.encode(text), shared.tokenizer.decode(ids, skip_special_tokens=True)]


def recorded(shared: Shared, rng: np.random.Generator) -> Any:
    with record(*PATTERNS) as trace:
        logits = forward(shared, rng)
    return [list(trace), [shared.model.ops.to_numpy(value) for value in trace.values()], logits]


def replaced(shared: Shared, rng: np.random.Generator) -> Any:
    with listen(lambda name, value: 2 * value, "encoder.layers.0.tokens.input", "decoder.layers.1.fc2"):
        return forward(shared, rng)


CALLS = (forward, outputs, loss, encode, generate, continued, tokenize, recorded, replaced)


def flat(result: Any) -> list[np.ndarray]:
    """List all arrays in a result, in order."""
    if isinstance(result, ModelOutput):
        result = result.to_tuple()
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, Sequence) and not isinstance(result, str):
        return [array for part in result for array in flat(part)]
    return [np.asarray(result)]


def assert_same_bits(label: str, found: Any, expected: Any) -> None:
    pairs = list(zip(flat(found), flat(expected), strict=True))
    for i, (x, y) in enumerate(pairs):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), f"{label}, array {i}: {x.shape} {x.dtype}"
        if x.tobytes() != y.tobytes():
            error = f"{np.abs(x - y).max()}" if x.dtype.kind == "f" else f"{x} instead of {y}"
            raise AssertionError(f"{label}, array {i} of {len(pairs)} differs from the call alone: {error}")


# --- the whole model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chunked", [False, True], ids=["whole", "chunks"])
@pytest.mark.parametrize("backend", RUNNABLE, ids="-".join)
def test_calls_give_the_same_bits_as_alone(
    backend: tuple[str, str, str],
    is_chunked: bool,
    tokenizer: PegasusTokenizer,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole tensors, or small chunks on the NumPy backend's own threads as well; torch packs all weights."""
    num_calls = -(-(LONG if is_long(request) else SHORT) // (2 * len(RUNNABLE) * NUM_THREADS))  # of each thread
    num_inputs = 20 if is_long(request) else 2  # of each kind of call
    changes = {"block_size": 6, "num_global_tokens": 3} if is_chunked else {}
    config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size, init_std=0.5, **changes)
    if backend[0] == "torch":
        monkeypatch.setattr(import_module("pegasusx_torch.linear"), "MIN_ONEDNN_WEIGHT_SIZE", 0)
        for module in ("linear", "global_local"):  # torch's own attention core too, and MKL's products
            monkeypatch.setattr(import_module(f"pegasusx_torch.{module}"), "IS_MKL_SLOW", not is_chunked)

    def call(shared: Shared, kind: int, number: int) -> Any:
        return CALLS[kind](shared, np.random.default_rng([kind, number]))

    with small_chunks() if is_chunked else nullcontext():
        alone = Shared.create(config, backend, tokenizer, num_inputs)
        expected = [[call(alone, kind, number) for number in range(num_inputs)] for kind in range(len(CALLS))]
        shared = Shared.create(config, backend, tokenizer, num_inputs)

        def work(thread: int) -> None:
            rng = np.random.default_rng(thread)
            for _ in range(num_calls):
                kind, number = int(rng.integers(len(CALLS))), int(rng.integers(num_inputs))
                found = call(shared, kind, number)
                assert_same_bits(f"{CALLS[kind].__name__} {number}", found, expected[kind][number])

        in_threads(work)


@pytest.mark.parametrize("backend", RUNNABLE, ids="-".join)
def test_threads_continue_the_same_beginning(
    backend: tuple[str, str, str], tokenizer: PegasusTokenizer, request: pytest.FixtureRequest
) -> None:
    """All at once, each with its own tokens: one appends to the cache in place, the others copy it."""
    config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size, init_std=0.5, decoder_layers=1)
    shared = Shared.create(config, backend, tokenizer, 20 if is_long(request) else 3)

    def steps(past: DecoderCache | None, first: int) -> list[np.ndarray]:
        logits = []
        for token in range(first, first + 5):
            output = shared.model(
                encoder_outputs=shared.encoded, decoder_input_ids=[[token], [token + 1]], past_key_values=past
            )
            logits.append(output.logits)
            past = output.past_key_values
        return logits

    expected = [steps(beginning(shared.model, shared.encoded), token) for token in range(NUM_THREADS)]
    for past in shared.pasts:

        def work(thread: int, past: DecoderCache = past) -> None:
            assert_same_bits(f"thread {thread}", steps(past, thread), expected[thread])

        in_threads(work)


@pytest.mark.skipif(not thread_pool._blas().lib_controllers, reason="threadpoolctl does not know this NumPy's BLAS")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_threads_of_blas_change_the_rounding_at_most(dtype: str, tolerance: float, tokenizer: PegasusTokenizer) -> None:
    """While one thread works in parallel, BLAS computes the products of the others on one thread: see spec 15."""
    (blas, *_) = thread_pool._blas().lib_controllers
    before, num_threads = blas.num_threads, thread_pool.num_threads
    blas.set_num_threads(2)
    try:
        with small_chunks() as patch:
            patch.setattr(thread_pool, "num_threads", num_threads)
            config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size, init_std=0.5)
            shared = Shared.create(config, ("numpy", "cpu", dtype), tokenizer, 1)
            expected = [forward(shared, np.random.default_rng(number)).logits for number in range(4)]

            def work(thread: int) -> None:
                for number in (thread % 4, (thread + 1) % 4):
                    logits = forward(shared, np.random.default_rng(number)).logits
                    assert_close("logits", logits, expected[number], tolerance)

            in_threads(work)
        assert blas.num_threads == 2
    finally:
        blas.set_num_threads(before)
