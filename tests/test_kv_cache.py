"""Dynamic caches grow by doubling and never change the rows of an earlier step; padding is zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs, seeds

from pegasusx_ref import PegasusXForConditionalGeneration
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.model.kv_cache import DynamicKV, padded


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
