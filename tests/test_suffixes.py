"""The check of dimension suffixes finds each kind of mistake and reports it where it belongs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import suffixes

RNG = np.random.default_rng(0)


def test_correct_names_pass() -> None:
    arrays = {"x_BTD": RNG.random((2, 3, 4)), "mask_BT": None, "mean_BT1": RNG.random((2, 3, 1))}
    assert suffixes.find_mistakes(arrays) == []


def test_each_kind_of_mistake_is_found() -> None:
    x = RNG.random((2, 3, 4))
    assert "x_BT has shape" in suffixes.find_mistakes({"x_BT": x})[0]
    assert "B is 2 (x_BTD)" in suffixes.find_mistakes({"x_BTD": x, "y_BT": x[0]})[0]
    assert "broadcast axis" in suffixes.find_mistakes({"y_1TD": x})[0]
    assert "a list, not an array" in suffixes.find_mistakes({"y_BT": [[1]]})[0]


# A package under test whose `double` is right only for matrices, and tests that call it.
TESTS = """
import concurrent.futures, threading

import numpy as np
import pytest
import suffixes

exec(compile("def double(x_BD):\\n    return 2 * x_BD", suffixes.PACKAGES[0] + "/doubling.py", "exec"))
matrix, vector = np.eye(2), np.ones(2)


@pytest.fixture(scope="module")
def pool():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool


def test_right():
    double(matrix)


def test_wrong():
    double(vector)


def test_right_after_wrong():
    double(matrix)


def test_wrong_in_a_thread():
    thread = threading.Thread(target=double, args=[vector])
    thread.start()
    thread.join()


def test_right_in_a_pool(pool):
    pool.submit(double, matrix).result()


def test_wrong_in_a_pool_that_an_earlier_test_started(pool):
    pool.submit(double, vector).result()


@pytest.mark.unwatched
def test_unwatched():
    double(vector)


def test_wrong_after_an_unwatched_one():
    double(vector)
"""


def test_a_wrong_suffix_is_an_error_of_its_test_in_every_thread(tmp_path: Path) -> None:
    file = tmp_path / "test_doubling.py"
    file.write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = unwatched")
    # On a CI system pytest repeats each error in its summary.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    environment["PYTHONPATH"] = str(Path(suffixes.__file__).parent)
    command = [sys.executable, "-m", "pytest", "-p", "suffixes", "-q", "-rE", file.name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    wrong = ["test_wrong", "test_wrong_in_a_thread", "test_wrong_in_a_pool_that_an_earlier_test_started"]
    wrong.append("test_wrong_after_an_unwatched_one")
    errors = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    assert errors == [f"test_doubling.py::{name}" for name in wrong], done.stdout + done.stderr
    assert done.stdout.count("\ndoubling.py:double: x_BD has shape (2,)") == len(wrong), done.stdout
    assert "8 passed, 4 errors" in done.stdout


def test_functions_of_the_package_are_checked() -> None:
    from pegasusx_ref.golden.normalization import layer_norm

    assert suffixes.take_mistakes() == []
    layer_norm(RNG.random((2, 3)), RNG.random(3), RNG.random(3), 1e-5)
    assert "normalization.py:layer_norm: x_BTD has shape (2, 3)" in suffixes.take_mistakes()
