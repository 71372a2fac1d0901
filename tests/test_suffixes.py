"""The watch on dimension suffixes sees what it should see."""

import numpy as np
import suffixes


def test_true_names_pass() -> None:
    rng = np.random.default_rng(0)
    assert (
        suffixes.find_mistakes({"x_BTD": rng.random((2, 3, 4)), "mask_BT": None, "mean_BT1": rng.random((2, 3, 1))})
        == []
    )


def test_each_kind_of_lie_is_seen() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, 4))
    assert "x_BT has shape" in suffixes.find_mistakes({"x_BT": x})[0]
    assert "B is 2 (x_BTD)" in suffixes.find_mistakes({"x_BTD": x, "y_BT": x[0]})[0]
    assert "broadcast axis" in suffixes.find_mistakes({"y_1TD": x})[0]
    assert "a list, not an array" in suffixes.find_mistakes({"y_BT": [[1]]})[0]


def test_the_watch_sees_functions_of_the_package() -> None:
    from pegasusx_ref.golden.normalization import layer_norm

    rng = np.random.default_rng(0)
    with suffixes.watched() as mistakes:
        layer_norm(rng.random((2, 3)), rng.random(3), rng.random(3), 1e-5)
    assert any("normalization.py:layer_norm: x_BTD has shape (2, 3)" in mistake for mistake in mistakes)
