"""Dynamic caches grow by doubling and never change the rows of an earlier step; padding is zero."""

import copy
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import interrupted
from strategies import batches, configs, seeds

from pegasusx_ref import PegasusXForConditionalGeneration
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.model import kv_cache
from pegasusx_ref.model.kv_cache import AppendOnlyBuffer, DynamicKV, padded


class PoisoningBackend(GoldenBackend):
    """Fill new arrays with NaN, so that reading a position that is not written is found."""

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, np.nan, dtype=self.dtype)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), seeds)
def test_rows_are_all_that_was_appended(sizes: list[int], seed: int) -> None:
    ops = PoisoningBackend("cpu", "float64")
    rng = np.random.default_rng(seed)
    pieces = [rng.standard_normal((2, 3, n, 4)) for n in sizes]
    rows = DynamicKV.of(pieces[0])
    buffers = {id(rows.buffer)}
    for piece in pieces[1:]:
        rows = rows.append(ops, piece)
        buffers.add(id(rows.buffer))
    assert (rows.array == np.concatenate(pieces, axis=2)).all()
    assert len(buffers) <= 2 + np.log2(sum(sizes))


@given(st.data(), seeds)
def test_earlier_rows_never_change(data: st.DataObject, seed: int) -> None:
    """Append to any earlier rows, many times: the earlier rows keep their values."""
    ops = PoisoningBackend("cpu", "float64")
    rng = np.random.default_rng(seed)
    held = [DynamicKV.of(rng.standard_normal((1, 1, 2, 3)))]
    contents = [held[0].array.copy()]
    for _ in range(data.draw(st.integers(1, 15))):
        i = data.draw(st.integers(0, len(held) - 1))
        new = rng.standard_normal((1, 1, data.draw(st.integers(1, 3)), 3))
        held.append(held[i].append(ops, new))
        contents.append(np.concatenate([contents[i], new], axis=2))
    for rows, content in zip(held, contents, strict=True):
        assert (rows.array == content).all()


def test_another_continuation_at_any_line_changes_nothing() -> None:
    ops = PoisoningBackend("cpu", "float64")
    ours, theirs = np.full((1, 1, 2, 1), 1.0), np.full((1, 1, 1, 1), 2.0)
    other = DynamicKV.of(theirs)

    def interfere() -> None:
        nonlocal other
        other = beginning.append(ops, theirs)

    def is_free() -> bool:  # while a thread holds the lock, the others wait
        return not kv_cache._claiming.locked()

    for line in count(1):
        beginning = DynamicKV.of(np.zeros((1, 1, 3, 1))).append(ops, np.zeros((1, 1, 1, 1)))  # room for 6
        with interrupted([DynamicKV.append, AppendOnlyBuffer.claim], line, interfere, is_free) as seen:
            mine = beginning.append(ops, ours)
        assert mine.array.ravel().tolist() == [0, 0, 0, 0, 1, 1], f"after an interruption before line {line}"
        if seen.num_lines < line:
            break
        assert other.array.ravel().tolist() == [0, 0, 0, 0, 2], f"after an interruption before line {line}"
    assert line > 5


def test_a_cache_can_be_copied() -> None:
    rows = DynamicKV.of(np.zeros((1, 1, 2, 1)))
    assert (copy.deepcopy(rows).array == rows.array).all()


def test_padding_is_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 2, 3, 4))
    buffer = padded(PoisoningBackend("cpu", "float64"), rows, 5)
    assert (buffer[:, :, :3] == rows).all()
    assert (buffer[:, :, 3:] == 0).all()


@pytest.mark.slow
@settings(max_examples=20)
@given(st.data())
def test_nothing_is_read_beyond_the_written_positions(data: st.DataObject) -> None:
    config = data.draw(configs(decoder_layers=2, init_std=1.0))
    batch, seed = data.draw(batches(config)), data.draw(seeds)
    golden = PegasusXForConditionalGeneration.from_random(config, seed, dtype="float64")
    poisoned = PegasusXForConditionalGeneration(config, golden.state_dict(), PoisoningBackend("cpu", "float64"))
    for beams in (1, 3):
        texts = [m.generate(*batch[:2], num_beams=beams, max_new_tokens=9).tolist() for m in (golden, poisoned)]
        assert texts[0] == texts[1]
