"""SIGINT and SIGTERM at any moment of a command: the exit code, the messages, the outputs, and no temporary left.

The moments start when the process handles signals. In the 20 ms before that, Python itself starts.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from pegasusx_ref.files.writing import is_temporary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the moment is read from Linux's /proc"),
]

COMMAND = (sys.executable, "-m", "pegasusx_ref")
SHORT = ("explore", "trace", "vectors")
NUM_KILLS, NUM_KILLS_LONG = 2, 30  # of a command by each signal
CACHES = "torchinductor_*"  # torch keeps it


def is_page(path: Path) -> bool:
    return path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def is_picture(path: Path) -> bool:
    return path.read_bytes().endswith(b"IEND\xaeB`\x82")


def is_vector(path: Path) -> bool:
    return set(json.loads(path.read_text())["files"]) < {file.name for file in path.parent.iterdir()}


# The arguments, the output, and a check that it is complete; the heaviest imports and worker processes are among them.
RUNS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "explore": ("explore text.txt --out page.html --tokens 20 --max-new-tokens 4", "page.html", is_page),
    "trace": ("trace text.txt --save trace.safetensors --max-new-tokens 4", "trace.safetensors", load_file),
    "verify": ("verify --tokens 20 --target-tokens 2 --dtype float64 --html page.html", "page.html", is_page),
    "picture": (
        "picture index-map --out map.png",
        "map.png",
        is_picture,
    ),
    "vectors": ("vectors write vectors --preset one-token", "vectors/one-token/manifest.json", is_vector),
    "bench": (
        "bench --suite quick --case load-tiny --preset tiny --rounds 1 --fresh --out bench.json",
        "bench.json",
        lambda path: json.loads(path.read_text()),
    ),
    "summarize": ("summarize text.txt text.txt text.txt", "text.txt", Path.read_text),
}


def start(arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command whose temporary files are in the folder's tmp, and wait until it handles signals."""
    (folder / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*COMMAND, *arguments.split()],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )
    while process.poll() is None and not handles_sigterm(process.pid):
        time.sleep(0.0005)
    return process


def handles_sigterm(pid: int) -> bool:
    """Return whether a process has a handler of SIGTERM, which Python itself has not."""
    found = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("name", RUNS)
def test_a_kill_leaves_the_old_output_or_the_new_one(
    name: str, prose: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_long = request.config.getoption("--long")
    if not is_long and name not in SHORT:
        pytest.skip("this command is killed with --long only")
    arguments, file, is_whole = RUNS[name]
    output = tmp_path / file
    (tmp_path / "text.txt").write_text(prose[:300], encoding="utf-8")
    began = time.perf_counter()
    _, messages = (process := start(arguments, tmp_path)).communicate(timeout=300)
    duration = time.perf_counter() - began
    assert process.returncode == 0, messages
    assert is_whole(output)
    draw, codes = random.Random(name), Counter[int]()
    for number in [signal.SIGINT, signal.SIGTERM] * (NUM_KILLS_LONG if is_long else NUM_KILLS):
        moment, old = draw.uniform(0, 1.1 * duration), output.read_bytes()
        process = start(arguments, tmp_path)
        time.sleep(moment)
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)
        repro = f"{number.name} {moment:.4f} s after the start of {arguments!r}: {process.returncode}\n{messages}"
        # 0 where it came too late; -number while Python itself ends, which has restored its default effect by then
        assert process.returncode in (0, 128 + number, -number), repro
        assert "Traceback" not in messages, repro
        assert "Exception ignored" not in messages, repro
        assert messages.count("Interrupted") == messages.endswith("Interrupted\n"), repro
        assert output.read_bytes() == old or is_whole(output), repro
        assert not [path for path in tmp_path.rglob("*") if is_temporary(path)], repro
        assert not [path for path in (tmp_path / "tmp").iterdir() if not path.match(CACHES)], repro
        codes[process.returncode] += 1
    print(f"{name} ({duration:.1f} s): {dict(codes)}")


# --- signals that are caught, lost or repeated -----------------------------------------------------------------------

# A command that is writing a file when it gets a signal; each test says what happens then.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import pegasusx_ref.__main__ as entry
import pegasusx_ref.cli
from pegasusx_ref.files.writing import replacing

def kill():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)

def act():
    ACT

def command(**_):
    with replacing(Path("out.txt")) as temporary:
        temporary.write_text("new")
        act()

pegasusx_ref.cli.main = command
entry.main()
"""


def run_script(act: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    (folder / "out.txt").write_text("old")
    script = SCRIPT.replace("ACT", "\n    ".join(act.splitlines()))
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize(
    "act",
    [
        "kill()",
        "try:\n    kill()\nfinally:\n    time.sleep(1.1)\n    kill()\n    time.sleep(9)",
        "try:\n    kill()\nexcept BaseException:\n    raise ImportError('torch')",
        "class Dying:\n    def __del__(self):\n        kill()\nDying()\ntime.sleep(9)",
        "import multiprocessing\nmultiprocessing.Process(target=time.sleep, args=[99], daemon=True).start()\nkill()",
        "import threading\nthreading.Thread(target=time.sleep, args=[0.3]).start()\nkill()",
    ],
    ids=["once", "twice", "as another error", "in a destructor", "with a worker", "with a thread"],
)
def test_a_signal_ends_the_command_whatever_becomes_of_its_exception(act: str, tmp_path: Path) -> None:
    done = run_script(act, tmp_path)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr in ("Interrupted\n", "")
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "old"


def test_a_signal_that_comes_twice_at_once_does_not_cut_the_cleanup(tmp_path: Path) -> None:
    """timeout(1) sends it to the process and to the group of processes."""
    done = run_script("try:\n    kill()\nfinally:\n    kill()", tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "Interrupted\n")


def test_a_swallowed_signal_is_the_exit_code(tmp_path: Path) -> None:
    done = run_script("try:\n    kill()\nexcept BaseException:\n    pass", tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "Interrupted\n")


def test_a_signal_after_the_command_ends_the_process(tmp_path: Path) -> None:
    done = run_script("import atexit\natexit.register(kill)", tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
    assert (tmp_path / "out.txt").read_text() == "new"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    done = run_script("kill()", tmp_path, preexec_fn=partial(signal.signal, signal.SIGTERM, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.txt").read_text() == "new"
