"""Backends of the CPU work in pieces: small tensors go their ways too where the pieces are made small."""

import os
import signal
import time
from collections.abc import Iterator
from threading import Barrier, Event, Thread, current_thread, get_ident
from typing import Any

import numpy as np
import pegasusx_numpy.attention
import pegasusx_numpy.backend
import pegasusx_numpy.products
import pegasusx_numpy.threads
import pytest
from agreement import check_model, check_operation
from backend_parameters import EVERYTHING, backend_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs, operations, seeds

from pegasusx_ref import PegasusXConfig, PegasusXModel, listen, record
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.model.layers import feed_forward
from pegasusx_ref.model.weights import Weights, random_weights

needs_blas = pytest.mark.skipif(
    not pegasusx_numpy.threads._blas().lib_controllers, reason="threadpoolctl does not know this NumPy's BLAS"
)
IN_PIECES = [each for each in EVERYTHING if each.values[0] in ("numpy", "torch")]
SMALL: dict[Any, dict[str, int]] = {
    pegasusx_numpy.attention: {"QUERIES": 3, "LITTLE": 0, "KEYS": 4},
    pegasusx_numpy.backend: {"ROWS": 5, "NUMBERS": 7, "MANY": 7, "LITTLE": 0, "WORTH_SHARING": 0},
    pegasusx_numpy.products: {"WORTH_SHARING": 0, "LARGE": 0, "SMALL": 60},
}


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    """Work in pieces of a few numbers, on three threads."""
    with pytest.MonkeyPatch.context() as patch:
        for module, values in SMALL.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        try:
            import pegasusx_torch.attention as attention
            import pegasusx_torch.backend as backend
            import pegasusx_torch.global_local as global_local
            import pegasusx_torch.products as products
        except ImportError:
            pass
        else:
            patch.setattr(backend, "ROWS", 5)
            patch.setattr(attention, "NUMBERS", 50)
            patch.setattr(attention, "MANY", 60)
            patch.setattr(global_local, "BLOCKS_AT_A_TIME", 2)
            patch.setattr(products, "LARGE", 0)
            patch.setattr(products, "PATIENCE", 1)
        patch.setattr(pegasusx_numpy.threads, "number", lambda: 3)
        yield


@pytest.mark.parametrize("name", ["linear", "linear_full_precision", "layer_norm", "activation", "attention", "add"])
@pytest.mark.parametrize(("backend", "dtype"), IN_PIECES)
@settings(max_examples=30)
@given(st.data())
def test_operations_in_pieces_agree(backend: str, dtype: str, name: str, data: st.DataObject) -> None:
    check_operation(backend_on_cpu(backend, dtype), data.draw(operations(name)))


@pytest.mark.parametrize(("backend", "dtype"), IN_PIECES)
@settings(max_examples=30)
@given(st.data())
def test_the_core_in_pieces_agrees(backend: str, dtype: str, data: st.DataObject) -> None:
    check_operation(backend_on_cpu(backend, dtype), data.draw(operations("global_local_attention")))


@pytest.mark.parametrize(("backend", "dtype"), IN_PIECES)
@settings(max_examples=20)
@given(st.data())
def test_models_in_pieces_agree(backend: str, dtype: str, data: st.DataObject) -> None:
    config = data.draw(configs(layer_norm_eps=1e-5, init_std=0.2))
    check_model(backend_on_cpu(backend, dtype), config, data.draw(seeds), data.draw(batches(config)))


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(max_examples=20)
@given(st.data())
def test_the_ways_of_other_processors_agree(dtype: str, is_slow: bool, data: st.DataObject) -> None:
    """What torch does on a CPU hangs on its make: both ways are taken here, whatever CPU this is."""
    pytest.importorskip("torch")
    import pegasusx_torch.attention as attention
    import pegasusx_torch.global_local as global_local
    import pegasusx_torch.products as products

    if is_slow and not products.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "IS_MKL_SLOW", is_slow)
        patch.setattr(global_local, "IS_MKL_SLOW", is_slow)
        patch.setattr(attention, "FEW", 1 if is_slow else 32)
        patch.setattr(attention, "HAS_BFLOAT16_PRODUCTS", is_slow)
        ops = backend_on_cpu("torch", dtype)
        for name in ("linear", "linear_full_precision", "attention", "global_local_attention"):
            check_operation(ops, data.draw(operations(name)))


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("length", [1, 4, 23])
def test_rows_in_pieces_are_those_of_the_whole(backend: str, dtype: str, length: int) -> None:
    ops = backend_on_cpu(backend, dtype)
    x_BTD = ops.add_positions(ops.asarray(np.random.default_rng(length).standard_normal((2, length, 6))), 0)
    seen: list[int] = []

    def square(x: Any) -> Any:
        seen.append(x.shape[0] * x.shape[1])
        return x * x + x

    found = ops.to_numpy(ops.apply_in_chunks(square, x_BTD))
    np.testing.assert_array_equal(found, ops.to_numpy(x_BTD * x_BTD + x_BTD))
    assert sum(seen) == 2 * length
    assert (len(seen) > 1) == (backend in ("numpy", "torch") and 2 * length > 5)


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_what_is_laid_out_anew_is_the_same(backend: str, dtype: str) -> None:
    ops = backend_on_cpu(backend, dtype)
    x_BTHF = ops.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 4)))
    found = ops.contiguous(x_BTHF.swapaxes(1, 2))
    np.testing.assert_array_equal(ops.to_numpy(found), ops.to_numpy(x_BTHF.swapaxes(1, 2)))
    if backend == "numpy":
        assert found.flags.c_contiguous
    if backend == "torch":
        assert found.is_contiguous()
        assert ops.contiguous(found) is found


@pytest.mark.parametrize("point", ["final_layer_norm", "fc1", "activation", "fc2", "output"])
def test_listeners_get_whole_tensors(point: str) -> None:
    """Inside the feed-forward sublayer nothing is cut where someone listens; its output never is."""
    config = PegasusXConfig.preset("tiny", activation_function="gelu")
    model = PegasusXModel.from_random(config, backend="numpy", dtype="float64")
    golden = PegasusXModel.from_random(config, backend="golden", dtype="float64")
    ids, traces = np.random.default_rng(0).integers(0, 256, (2, 30)), []
    for each in (model, golden):
        with record(f"encoder.layers.1.tokens.{point}") as trace:
            each.encode(ids)
        traces.append(next(iter(trace.values())))
    assert traces[0].shape[:2] == (2, 30)
    np.testing.assert_allclose(traces[0], traces[1], rtol=1e-12, atol=1e-13)


def test_who_listens_to_the_output_alone_leaves_the_rows_in_pieces() -> None:
    """Progress bars do, and must not cost memory."""
    config = PegasusXConfig.preset("tiny")
    weights = Weights(random_weights(config)).at("encoder.layers.0")
    seen: list[int] = []

    class Counting(pegasusx_numpy.NumpyBackend):
        def activation(self, x: np.ndarray, name: str) -> np.ndarray:
            seen.append(x.shape[1])
            return super().activation(x, name)

    x_BTD = np.random.default_rng(0).standard_normal((1, 30, config.d_model), dtype=np.float32)
    with listen(lambda *_: None, "output"):
        feed_forward(Counting(None, "float32"), weights, config, x_BTD)
    assert len(seen) > 1
    seen.clear()
    with listen(lambda *_: None, "fc1"):
        feed_forward(Counting(None, "float32"), weights, config, x_BTD)
    assert seen == [30]


def test_threads_share_the_pieces_and_pass_errors_on() -> None:
    done: list[int] = []
    pegasusx_numpy.threads.for_each(range(50), done.append)
    assert sorted(done) == list(range(50))

    def fail(piece: int) -> None:
        if piece == 7:
            raise ValueError("piece 7")

    with pytest.raises(ValueError, match="piece 7"):
        pegasusx_numpy.threads.for_each(range(50), fail)
    with pytest.raises(ValueError, match="piece 7"):
        pegasusx_numpy.threads.for_each([7], fail)


@pytest.mark.parametrize("where", ["here", "in another thread"])
def test_after_an_error_nothing_more_is_begun(where: str) -> None:
    here, both_are_at_work, begun = current_thread(), Barrier(2), []

    def work(piece: int) -> None:
        begun.append(piece)
        if piece < 2:
            both_are_at_work.wait(20)
            if (current_thread() is here) == (where == "here"):
                raise KeyboardInterrupt if where == "here" else ValueError("piece")
            time.sleep(0.3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pegasusx_numpy.threads, "number", lambda: 2)
        with pytest.raises(KeyboardInterrupt if where == "here" else ValueError):
            pegasusx_numpy.threads.for_each(range(50), work)
    assert sorted(begun) == [0, 1]


@needs_blas
def test_an_interrupt_while_others_finish_waits_for_them() -> None:
    """Ctrl-C, and again: BLAS has its threads back, and nobody is left at work."""
    threads, done = pegasusx_numpy.threads, []
    blas = threads._blas().lib_controllers[0]
    before = blas.num_threads
    main_thread, both_are_at_work = get_ident(), Barrier(2)

    def work(piece: int) -> None:
        both_are_at_work.wait(20)
        if get_ident() == main_thread:
            raise KeyboardInterrupt
        time.sleep(0.2)
        signal.pthread_kill(main_thread, signal.SIGINT)
        time.sleep(0.2)
        done.append(piece)

    if not hasattr(signal, "pthread_kill"):
        pytest.skip("no signals to threads here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "number", lambda: 2)
        with pytest.raises(KeyboardInterrupt):
            threads.for_each(range(2), work)
    assert len(done) == 1
    assert blas.num_threads == before


def test_threads_have_the_settings_of_the_one_who_calls() -> None:
    both_are_at_work = Barrier(2)
    here, errors = current_thread(), []

    def work(piece: int) -> None:
        both_are_at_work.wait(20)
        if current_thread() is not here:
            errors.append(np.geterr()["over"])

    with pytest.MonkeyPatch.context() as patch, np.errstate(over="raise"):
        patch.setattr(pegasusx_numpy.threads, "number", lambda: 2)
        pegasusx_numpy.threads.for_each(range(2), work)
    assert errors == ["raise"]


@needs_blas
def test_blas_gets_its_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two threads of the user's work in pieces at the same time, and one begins or ends within the other."""
    threads = pegasusx_numpy.threads
    blas = threads._blas().lib_controllers[0]
    before = blas.num_threads
    blas.set_num_threads(2)
    try:
        monkeypatch.setattr(threads, "number", lambda: 2)
        first_inside, second_inside, first_done = Event(), Event(), Event()

        def first(piece: int) -> None:
            first_inside.set()
            second_inside.wait(20)

        def second(piece: int) -> None:
            second_inside.set()
            first_done.wait(20)

        def begin_second() -> None:
            first_inside.wait(20)
            threads.for_each(range(2), second)

        other = Thread(target=begin_second)
        other.start()
        threads.for_each(range(2), first)
        first_done.set()
        other.join()
        assert blas.num_threads == 2
        seen: list[int] = []
        threads.for_each(range(4), lambda piece: seen.append(blas.num_threads))
        assert seen == [1, 1, 1, 1]
        assert blas.num_threads == 2
    finally:
        blas.set_num_threads(before)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_pieces_cover_a_length(length: int, most: int) -> None:
    pieces = pegasusx_numpy.threads.split(length, most)
    assert [i for piece in pieces for i in range(length)[piece]] == list(range(length))
    assert all(piece.stop - piece.start <= most for piece in pieces)


def test_a_child_process_has_threads_of_its_own() -> None:
    """After a fork the parent's threads are gone: work that waited for them would never end."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")

    def meet() -> int:
        together = Barrier(3)  # as many as there are threads: each waits for the others
        done: list[int] = []
        pegasusx_numpy.threads.for_each(range(3), lambda piece: done.append(together.wait(timeout=20)))
        return len(done)

    assert meet() == 3
    child = os.fork()
    if child == 0:
        os._exit(meet())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3


@needs_blas
def test_a_child_process_of_one_at_work_has_blas_s_threads() -> None:
    """The limit that the parent works under is lifted there by the parent's threads, which the child does not have."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    blas = pegasusx_numpy.threads._blas().lib_controllers[0]
    before = blas.num_threads
    at_work, forked, seen = Event(), Event(), []

    def fork() -> None:
        at_work.wait(20)
        child = os.fork()
        if child == 0:
            os._exit(blas.num_threads)
        seen.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        forked.set()

    def work(piece: int) -> None:
        at_work.set()
        forked.wait(20)
        seen.append(blas.num_threads)

    forking = Thread(target=fork)
    try:
        blas.set_num_threads(2)
        forking.start()
        pegasusx_numpy.threads.for_each(range(2), work)
        forking.join()
    finally:
        blas.set_num_threads(before)
    assert seen == [2, 1, 1]


def test_the_golden_backend_works_on_whole_tensors() -> None:
    ops = GoldenBackend("cpu", "float64")
    x_BTD = np.random.default_rng(0).standard_normal((1, 5000, 4))
    assert ops.apply_in_chunks(lambda x: x, x_BTD) is x_BTD
    assert ops.contiguous(x_BTD) is x_BTD
