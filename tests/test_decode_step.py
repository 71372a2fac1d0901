"""Static caches and recorded decode steps generate the same tokens as dynamic caches."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import fake_cupy
import numpy as np
import pytest
from backend_parameters import DTYPES, IN_FLOAT64, MARKS, backend_on_cpu, quantized_weights, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs, seeds
from strict_arrays import FakeGraph, StrictArray

from pegasusx_ref import BackendError, InputError, PegasusXConfig, PegasusXForConditionalGeneration, listen, record
from pegasusx_ref.backend import GoldenBackend, Step
from pegasusx_ref.model import decode_step
from pegasusx_ref.model.kv_cache import StaticKV, padded
from pegasusx_ref.model.weights import random_weights

HOW = ({"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 1, "num_return_sequences": 2})


@pytest.fixture
def small_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with a capacity of two tokens, so that a few tokens exceed it several times."""
    monkeypatch.setattr(decode_step, "FIRST_CAPACITY", 2)


def written(model: Any, *args: Any, **how: Any) -> list[list[int]]:
    found: list[list[int]] = model.generate(*args, max_new_tokens=9, min_new_tokens=9, **how).tolist()
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("small_capacity")
@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("how", HOW, ids=str)
@settings(max_examples=15)
@given(st.data())
def test_static_caches_generate_the_same_tokens(backend: str, how: dict[str, Any], data: st.DataObject) -> None:
    config = data.draw(configs(init_std=0.5))
    batch = data.draw(batches(config))
    model = random_model(config, data.draw(seeds), backend)
    static, dynamic = (written(model, *batch[:2], cache_implementation=cache, **how) for cache in ("static", "dynamic"))
    assert static == dynamic


@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_caches_are_freed_without_the_garbage_collector(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they are large, and nothing there tells Python to collect."""
    alive: list[weakref.ref[Any]] = []
    initialize = decode_step.DynamicDecodeStep.__init__

    def noted(step: Any, *args: Any) -> None:
        initialize(step, *args)
        alive.append(weakref.ref(step))

    monkeypatch.setattr(decode_step.DynamicDecodeStep, "__init__", noted)
    model = random_model(PegasusXConfig.preset("tiny"), 0, backend)
    freed = fake_cupy.MemoryPool.num_freed
    gc.collect()
    gc.disable()
    try:
        for cache in ("dynamic", "static"):
            written(model, [[7, 8]], cache_implementation=cache)
        assert [step() for step in alive] == [None, None]
        assert fake_cupy.MemoryPool.num_freed - freed == (backend == "cupy")  # the graph's memory too
    finally:
        gc.enable()


def test_capacity_is_doubled_and_never_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def noted(ops: Any, rows_BHLF: Any, size: int) -> Any:
        sizes.append((rows_BHLF.shape[2], size))
        return padded(ops, rows_BHLF, size)

    monkeypatch.setattr(decode_step, "padded", noted)
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny", decoder_layers=1))
    how: dict[str, Any] = {"num_beams": 2, "cache_implementation": "static", "min_new_tokens": 200}
    model.generate([[7, 8]], max_new_tokens=200, **how)
    keys = sizes[::2]
    assert keys == [(2, 128), (128, 256), (256, 400)]  # in rows: two beams


class CompilingBackend(GoldenBackend):
    """Counts its compiled steps and holds them to what they promise: the same shapes at every call."""

    compiles = True

    def __init__(self) -> None:
        super().__init__("cpu", "float64")
        self.calls: list[int] = []

    def compile(self, step: Step) -> Step:
        shapes: set[Any] = set()
        number = len(self.calls)
        self.calls.append(0)

        def compiled(*arrays: np.ndarray) -> Any:
            shapes.add(tuple((array.shape, array.dtype) for array in arrays))
            assert len(shapes) == 1
            self.calls[number] += 1
            return step(*arrays)

        return compiled


@pytest.fixture
def compiling() -> PegasusXForConditionalGeneration:
    config = PegasusXConfig.preset("tiny", init_std=0.5)
    return PegasusXForConditionalGeneration(config, random_weights(config, 0), CompilingBackend())


@pytest.mark.usefixtures("small_capacity")
def test_where_compiling_pays_it_is_the_default(compiling: Any) -> None:
    growing = written(compiling, [[7, 8, 9]], cache_implementation="dynamic")
    assert compiling.ops.calls == []
    assert written(compiling, [[7, 8, 9]]) == growing
    assert compiling.ops.calls == [1, 2, 4, 1]  # capacities of 2, 4, 8 and 9 tokens; the first step is not compiled


@pytest.mark.usefixtures("small_capacity")
def test_progress_does_not_keep_steps_from_being_compiled(compiling: Any) -> None:
    """What the command line listens to is outside of the step."""
    seen = []
    with listen(lambda name, _: seen.append(name), "encoder.layers.*.tokens.output", "lm_head"):
        written(compiling, [[7, 8, 9]])
    assert compiling.ops.calls == [1, 2, 4, 1]
    assert seen.count("lm_head") == 9


@pytest.mark.usefixtures("small_capacity")
def test_nothing_is_compiled_while_someone_listens(compiling: Any) -> None:
    with record("decoder.layers.*.self_attn.probs") as trace:
        written(compiling, [[7, 8, 9]])
    assert {probs.shape[3] for probs in trace.values()} == {9}  # as on any backend
    with record("decoder.layers.*.self_attn.probs") as trace:
        written(compiling, [[7, 8, 9]], cache_implementation="static")
    assert len(trace) == compiling.config.decoder_layers
    assert compiling.ops.calls == []


def test_an_unknown_cache_is_refused() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(InputError, match="cache_implementation='offloaded' is unknown: pass one of dynamic, static"):
        model.generate([[7]], cache_implementation="offloaded")


# --- CUDA graphs, pretended ------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    torch = pytest.importorskip("torch")
    import fake_cuda_graphs

    for name, replacement in fake_cuda_graphs.REPLACED.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    fake_cuda_graphs.Graph.recorded.clear()
    yield fake_cuda_graphs.Graph.recorded
    fake_cuda_graphs.Graph.recorded.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("small_capacity")
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_replayed_steps_write_the_same(graphs: list[Any], dtype: str, how: dict[str, Any]) -> None:
    config = PegasusXConfig.preset("tiny", init_std=0.5)
    model = random_model(config, 3, "torch", dtype)
    ids = np.random.default_rng(0).integers(106, 256, (2, 21))
    mask = np.arange(21) < np.array([[21], [13]])
    growing = written(model, ids, mask, cache_implementation="static", **how)
    assert graphs == []
    model.ops.compiles = True  # type: ignore[misc]
    assert written(model, ids, mask, **how) == growing
    assert [graph.replays for graph in graphs] == [1, 2, 4, 1]


@pytest.mark.usefixtures("small_capacity")
def test_a_place_in_python_is_seen_to_fail(graphs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended graph is strict enough: what changes from step to step must be on the device."""

    def baked_in(rows: StaticKV, ops: Any, new: Any) -> StaticKV:
        first = int(rows.slots_L.tolist()[0]) if not graphs or graphs[-1].replays else 3
        rows.array[:, :, first : first + new.shape[2]] = new
        return rows

    model = random_model(PegasusXConfig.preset("tiny", init_std=0.5), 3, "torch")
    model.ops.compiles = True  # type: ignore[misc]
    right = written(model, [[7, 8, 9]])
    monkeypatch.setattr(StaticKV, "append", baked_in)
    assert written(model, [[7, 8, 9]]) != right


def test_a_recorded_step_asks_the_device_for_nothing(graphs: list[Any]) -> None:
    import torch
    from pegasusx_torch.cuda_graph import CudaGraphStep

    step = CudaGraphStep(lambda x: x * x.sum().item(), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        step(torch.ones(3))


def test_a_recorded_step_keeps_its_shapes(graphs: list[Any]) -> None:
    import torch
    from pegasusx_torch.cuda_graph import CudaGraphStep

    step = CudaGraphStep(lambda x: x + 1, torch.device("cpu"))
    assert step(torch.ones(3)).tolist() == [2, 2, 2]
    assert step(torch.zeros(3)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"called with shape \(1,\): the graph was captured with \(3,\)"):
        step(torch.zeros(1))


# --- CuPy's CUDA graphs, pretended -----------------------------------------------------------------------------------


@pytest.fixture
def cupy_graphs() -> Iterator[Any]:
    FakeGraph.graphs.clear()
    yield FakeGraph.graphs
    FakeGraph.graphs.clear()


needs_emulator: pytest.MarkDecorator = MARKS["cupy"]


@needs_emulator
@pytest.mark.slow
@pytest.mark.usefixtures("small_capacity")
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("dtype", DTYPES["cupy"])
def test_steps_that_cupy_captured_write_the_same(cupy_graphs: Any, dtype: str, how: dict[str, Any]) -> None:
    model = random_model(PegasusXConfig.preset("tiny", init_std=0.5), 3, "cupy", dtype)
    ids = np.random.default_rng(0).integers(106, 256, (2, 21))
    mask = np.arange(21) < np.array([[21], [13]])
    growing = written(model, ids, mask, cache_implementation="dynamic", **how)
    assert not cupy_graphs
    assert written(model, ids, mask, **how) == growing
    assert [graph.launches for graph in cupy_graphs] == [1, 2, 4, 1]


@needs_emulator
@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_cupy_captures_steps_of_quantized_matrices(cupy_graphs: Any, kind: str) -> None:
    config = PegasusXConfig.preset("tiny", d_model=64, init_std=0.3)
    weights = quantized_weights(config, 0, kind)
    model = PegasusXForConditionalGeneration(config, weights, backend_on_cpu("cupy", "float32"))
    assert written(model, [[7, 8, 9]]) == written(model, [[7, 8, 9]], cache_implementation="dynamic")
    assert [graph.launches for graph in cupy_graphs] == [8]


@needs_emulator
def test_cupy_launches_few_kernels_in_a_step(cupy_graphs: Any) -> None:
    """A layer: 3 LayerNorms, 8 linear maps, 2 new entries of the caches, 2 attentions, 3 additions, 1 relu."""
    for layers in (1, 2):
        model = random_model(PegasusXConfig.preset("tiny", decoder_layers=layers), 3, "cupy", "bfloat16")
        model.generate([[7, 8, 9]], [[1, 1, 0]], num_beams=2, max_new_tokens=4, min_new_tokens=4)
    first, second = (graph.num_kernels for graph in cupy_graphs)
    assert second - first == 19
    assert first == 19 + 3  # the last LayerNorm, the head, and a copy of its result


@needs_emulator
def test_more_rows_than_cupy_captures_are_computed_too(cupy_graphs: Any) -> None:
    model = random_model(PegasusXConfig.preset("tiny", init_std=0.5), 3, "cupy")
    ids = np.random.default_rng(0).integers(106, 256, (22, 5))
    dynamic, static = (
        model.generate(ids, num_beams=3, max_new_tokens=4, min_new_tokens=4, cache_implementation=cache).tolist()
        for cache in ("dynamic", "static")
    )
    assert dynamic == static
    assert not cupy_graphs


@needs_emulator
def test_a_step_that_cupy_cannot_capture_has_a_remedy(cupy_graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(PegasusXConfig.preset("tiny", init_std=0.5), 3, "cupy")
    append = StaticKV.append

    def asks_the_device(rows: StaticKV, ops: Any, new: Any) -> StaticKV:
        ops.to_numpy(rows.slots_L)
        return append(rows, ops, new)

    monkeypatch.setattr(StaticKV, "append", asks_the_device)
    with pytest.raises(BackendError, match=r"\(operation not permitted .*\): pass cache_implementation='dynamic'"):
        written(model, [[7, 8, 9]])
    assert len(written(model, [[7, 8, 9]], cache_implementation="dynamic")[0]) == 10


@needs_emulator
def test_a_step_that_cupy_captured_keeps_its_shapes(cupy_graphs: Any) -> None:
    ops = random_model(PegasusXConfig.preset("tiny"), 0, "cupy").ops
    step = ops.compile(lambda x: ops.activation(ops.add(x, x), "relu"))  # a kernel that is not loaded yet
    first = StrictArray(np.ones((1, 2, 3)))
    assert ops.to_numpy(step(first)).tolist() == [[[2, 2, 2], [2, 2, 2]]]
    assert ops.to_numpy(step(StrictArray(np.full((1, 2, 3), 2.0)))).tolist() == [[[4, 4, 4], [4, 4, 4]]]
    assert ops.to_numpy(first).tolist() == [[[1, 1, 1], [1, 1, 1]]]
    with pytest.raises(ValueError, match=r"called with shape \(1, 1, 3\): the graph was captured with \(1, 2, 3\)"):
        step(StrictArray(np.zeros((1, 1, 3))))
