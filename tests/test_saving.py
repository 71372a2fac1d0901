"""Saving a checkpoint: killed at any line, on a disk that fills at any byte, by several threads and processes."""

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interruptions import killed_before

from pegasusx_ref import (
    CheckpointError,
    InputError,
    OutputError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
)
from pegasusx_ref.checkpoint.bitsandbytes import Form
from pegasusx_ref.checkpoint.saving import shard_size, write_checkpoint
from pegasusx_ref.checkpoint.weight_file import read_weight_file
from pegasusx_ref.files.writing import check_replaceable, is_temporary, replacing, replacing_all, write_text

FILES = {"config.json", "generation_config.json", "model.safetensors"}
CONFIG = PegasusXConfig.preset("tiny", encoder_layers=1, decoder_layers=1, d_model=8, vocab_size=128)
# The same shapes as CONFIG, so that only the identity tells their files apart.
CONFIGS = (CONFIG, CONFIG.replace(activation_function="gelu"))

forks = multiprocessing.get_context("forkserver")  # a clean process each, forked in milliseconds
forks.set_forkserver_preload(["pegasusx_ref", "test_saving"])


def model(kind: int) -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(CONFIGS[kind], seed=kind)


def in_child(function: Callable[..., None], *arguments: Any) -> int:
    """Call a function in a process of its own; return its exit code, below 0 for a signal."""
    process = forks.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kind_of(folder: Path) -> int | None:
    """Which of the two models a folder holds, or None if loading refuses a mixture of both."""
    try:
        loaded = PegasusXForConditionalGeneration.from_pretrained(folder)
    except CheckpointError as error:
        if "was not saved together with config.json" in str(error):
            return None
        raise
    kind = [config.activation_function for config in CONFIGS].index(loaded.config.activation_function)
    expected = model(kind).state_dict()
    assert all(np.array_equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    return kind


def save_and_die(folder: Path, line: int) -> None:
    """Save the second model; end without any clean-up before the given line of the writing code is executed."""
    second = model(1)
    with killed_before(line):
        second.save_pretrained(folder)


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one_or_is_refused(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    step, found, line = 1 if request.config.getoption("--long") else 97, set(), 1
    while True:
        folder = tmp_path / str(line)
        model(0).save_pretrained(folder)
        exit_code = in_child(save_and_die, folder, line)
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        assert content(folder).keys() >= FILES
        found.add(kind_of(folder))
        model(0).save_pretrained(folder)  # also clears what the killed process left
        assert content(folder).keys() == FILES
        assert kind_of(folder) == 0
        line += step
    assert line > 100
    assert kind_of(folder) == 1
    assert {0} <= found <= {0, 1, None}


def rename_and_die(folder: Path) -> None:
    replace = Path.replace

    def replace_first(path: Path, target: Path) -> None:
        replace(path, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace_first  # type: ignore[method-assign, assignment]
    model(1).save_pretrained(folder)


def test_a_mixture_of_two_saves_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model(0).save_pretrained(tmp_path)
    assert in_child(rename_and_die, tmp_path) == -signal.SIGKILL
    assert kind_of(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* save the model again"):
        PegasusXForConditionalGeneration.from_pretrained(tmp_path)


def test_weights_of_other_programs_have_no_identity_and_load(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model(0).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt"})
    assert kind_of(tmp_path) == 0
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    assert kind_of(tmp_path) == 0


def test_a_copied_config_keeps_the_identity(tmp_path: Path) -> None:
    model(0).save_pretrained(tmp_path)
    PegasusXConfig.from_pretrained(tmp_path).replace(dropout=0.3).save_pretrained(tmp_path)
    assert PegasusXForConditionalGeneration.from_pretrained(tmp_path).config.dropout == 0.3


def test_equal_models_are_saved_as_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        model(1).save_pretrained(tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")


# --- shards ----------------------------------------------------------------------------------------------------------

SIZES = {"one file": None, "5 shards": 4_000, "6 shards": 3_300}


def save(kind: int, folder: Path, layout: str, config: PegasusXConfig = CONFIG) -> list[Path]:
    """Save the weights of a model in some layout."""
    tensors = model(kind).state_dict()
    return write_checkpoint(
        folder,
        {name: Form(tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()},
        tensors.__getitem__,
        "model.",
        {"config.json": config.to_dict(), "generation_config.json": {}},
        SIZES[layout],
    )


def weights_in(folder: Path, old_config: PegasusXConfig | None = None) -> int | None:
    """Whose weights a folder holds, or None if loading refuses a mixture; the first model's have the old settings."""
    try:
        loaded = PegasusXForConditionalGeneration.from_pretrained(folder)
    except CheckpointError as error:
        if re.search("was not saved together with config.json|no weights found|missing, although", str(error)):
            return None
        raise
    found = loaded.state_dict()
    (kind,) = [k for k in range(2) if all(np.array_equal(t, found[name]) for name, t in model(k).state_dict().items())]
    if old_config is not None:
        assert loaded.config.activation_function == (CONFIG if kind else old_config).activation_function
    return kind


@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("old_layout", SIZES)
def test_weights_of_an_earlier_save_are_replaced_in_every_layout(
    old_layout: str, layout: str, transformers: Any, tmp_path: Path
) -> None:
    save(0, tmp_path, old_layout)
    (tmp_path / "notes.safetensors").write_text("another file")
    written = save(1, tmp_path, layout)
    assert set(written) == {path for path in tmp_path.iterdir() if path.name != "notes.safetensors"}
    shards = [path for path in written if path.suffix == ".safetensors"]
    assert len(shards) == (1 if layout == "one file" else int(layout[0]))
    assert weights_in(tmp_path) == 1
    if layout == "one file":
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    expected = model(1).state_dict()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert sorted(set(index["weight_map"].values())) == [path.name for path in shards]
    assert shards[0].name == f"model-00001-of-0000{len(shards)}.safetensors"
    largest = max(tensor.nbytes for tensor in expected.values())
    assert all(path.stat().st_size < max(SIZES[layout] or 0, largest) + 3_000 for path in shards)  # with the header
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(np.array_equal(tensor, theirs[f"model.{name}"].numpy()) for name, tensor in expected.items())


class Killed(BaseException):
    pass


@contextmanager
def killed_after(num_operations: int) -> Iterator[None]:
    """Raise `Killed` in place of the next rename or removal of a file that is no temporary."""
    replace, unlink, left = Path.replace, Path.unlink, num_operations

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def counted_replace(path: Path, target: Path) -> Path:
        count()
        return replace(path, target)

    def counted_unlink(path: Path, missing_ok: bool = False) -> None:
        if not is_temporary(path):
            count()
        unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counted_replace)
        patch.setattr(Path, "unlink", counted_unlink)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["equal settings", "other settings", "settings of another program"])
@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("old_layout", SIZES)
def test_a_save_that_is_killed_between_two_renames_leaves_no_mixture(
    old_layout: str, layout: str, settings: str, tmp_path: Path
) -> None:
    found: list[int | None] = []
    old_config = CONFIGS[settings != "equal settings"]
    for num_operations in range(20):
        folder = tmp_path / str(num_operations)
        save(0, folder, old_layout, old_config)
        if settings.startswith("settings"):
            for path in folder.iterdir():
                path.write_bytes(path.read_bytes().replace(b"weights_id", b"weights_is"))
        with suppress(Killed), killed_after(num_operations):
            save(1, folder, layout)
            break
        found.append(weights_in(folder, old_config))
    assert len(found) >= 3
    assert found[0] == 0
    if old_layout == "one file" != layout:  # which is read until it is removed
        assert found == [0] * (len(found) - 1) + [None]
    assert weights_in(folder) == 1
    known = [kind for kind in found if kind is not None]
    assert known == sorted(known)


def test_a_reader_of_shards_that_are_being_replaced_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(0, tmp_path, "5 shards")
    is_first = True

    def read_while_another_process_saves(path: Path, quantized: bool) -> Any:
        nonlocal is_first
        result = read_weight_file(path, quantized)
        if is_first:
            save(1, tmp_path, "5 shards")
        is_first = False
        return result

    monkeypatch.setattr("pegasusx_ref.checkpoint.folder.read_weight_file", read_while_another_process_saves)
    with pytest.raises(CheckpointError, match="was not saved together with config\\.json"):
        PegasusXForConditionalGeneration.from_pretrained(tmp_path)


def test_equal_models_are_saved_as_equal_shards(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(1, tmp_path / name, "5 shards")
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("200MiB", 200 * 2**20), ("3 kB", 3000), ("7B", 7), ("1tib", 2**40), (12, 12), (None, None)],
)
def test_sizes_are_read_as_transformers_writes_them(text: Any, size: int | None) -> None:
    assert shard_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "-5GB", "0GB", 0, -1, True, 2.5, "1e9B", "5XB", "9" * 5000 + "B", [1]])
def test_other_sizes_are_refused(text: Any) -> None:
    with pytest.raises(InputError, match="must be a number of bytes"):
        shard_size(text)


# --- full disks, threads, processes ----------------------------------------------------------------------------------


def save_on_a_full_disk(folder: Path, num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    message = os.strerror(errno.EFBIG)  # Python ignores SIGXFSZ
    with pytest.raises(OutputError, match=f"cannot be written: {message}"):
        model(1).save_pretrained(folder)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_files_alone(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model(0).save_pretrained(tmp_path)
    before = content(tmp_path)
    size = len(before["model.safetensors"])
    rng = np.random.default_rng(0)
    count = 1000 if request.config.getoption("--long") else 12
    for num_bytes in {0, 1, 7, 8, 100, size - 1, *rng.integers(0, size, count).tolist()}:
        assert in_child(save_on_a_full_disk, tmp_path, num_bytes) == 0
        assert content(tmp_path) == before


def save_both(folder: Path, times: int) -> None:
    models = [model(kind) for kind in range(2)]
    for i in range(times):
        models[i % 2].save_pretrained(folder)


@pytest.mark.slow
def test_threads_and_processes_that_save_into_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    processes = [forks.Process(target=save_both, args=(tmp_path, 20)) for _ in range(3)]
    errors: list[BaseException] = []

    def save() -> None:
        try:
            save_both(tmp_path, 20)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    workers: list[Any] = [*processes, *threads]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert [process.exitcode for process in processes] == [0] * 3
    assert content(tmp_path).keys() == FILES
    assert kind_of(tmp_path) in (0, 1)


def test_files_of_one_save_are_renamed_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, other = Path.replace, threading.Thread(target=lambda: model(0).save_pretrained(tmp_path))
    was_waiting: list[bool] = []

    def replace_while_another_thread_saves(path: Path, target: Path) -> Path:
        result = replace(path, target)
        if not was_waiting and threading.current_thread() is threading.main_thread():
            other.start()
            other.join(0.5)
            was_waiting.append(other.is_alive())  # for the lock on the folder
        return result

    monkeypatch.setattr(Path, "replace", replace_while_another_thread_saves)
    model(1).save_pretrained(tmp_path)
    other.join()
    assert was_waiting == [True]
    assert kind_of(tmp_path) == 0


def test_a_tokenizer_is_saved_whole_even_over_its_own_files(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = PegasusTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(tmp_path)
    before = content(tmp_path)
    assert before.keys() == {"spiece.model", "tokenizer_config.json"}
    assert before["spiece.model"] == (tokenizer_folder / "spiece.model").read_bytes()
    PegasusTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert content(tmp_path) == before


# --- replacing -------------------------------------------------------------------------------------------------------


def test_temporaries_of_running_processes_stay_and_leftovers_go(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with replacing(path) as live:
        write_text(path, "of another save")
        assert live.exists()
        live.write_text("of this one")
    assert path.read_text() == "of this one"
    abandoned = tmp_path / f".report.html.{'0' * 16}.tmp"
    others = [tmp_path / name for name in (".report.html.tmp", f".report.htm.{'0' * 16}.tmp", ".report.html.0.tmp")]
    for file in (abandoned, *others):
        file.write_text("unfinished")
    write_text(path, "new")
    assert not abandoned.exists()
    assert all(other.exists() for other in others)


def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    paths[0].write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing_all(paths) as (one, _):
        one.write_text("new \udcff", encoding="utf-8")
    assert content(tmp_path) == {"one": b"old"}


def test_permissions_survive_and_are_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    write_text(path, "first")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    path.chmod(0o640)
    write_text(path, "second")
    assert path.stat().st_mode & 0o777 == 0o640


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_links_are_replaced_and_their_targets_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "cached", tmp_path / "config.json"
    target.write_text("shared")
    link.symlink_to(target)
    write_text(link, "own")
    assert not link.is_symlink()
    assert (target.read_text(), link.read_text()) == ("shared", "own")


@pytest.mark.parametrize("kind", ["folder", "FIFO", "device"])
def test_what_is_not_a_regular_file_is_never_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "output"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(OutputError, match=f"{path}: is not a regular file"):
        write_text(path, "text")
    with pytest.raises(OutputError, match=f"{path}: is not a regular file"):
        check_replaceable(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["output"]


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    check_replaceable(dangling)
    check_replaceable(tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["link"]
    assert dangling.is_symlink()


@pytest.mark.parametrize("name", ["ö" * 127, "x" * 255, "[a-z]*?.json", "a b\n\x1b[31m", "\udcff.bin"])
def test_any_name_that_the_system_takes_can_be_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "text")
    write_text(tmp_path / name, "again")
    assert content(tmp_path) == {name: b"again"}


def test_a_file_that_cannot_be_created_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "inside", tmp_path / ("x" * 256)):
        with pytest.raises(OutputError, match="cannot be written: ") as caught:
            write_text(path, "text")
        assert isinstance(caught.value, OSError)


def test_files_are_on_the_disk_before_the_first_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("fsync")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        calls.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    model(0).save_pretrained(tmp_path)
    assert calls == [*["fsync"] * 3, "model.safetensors", "generation_config.json", "config.json", "fsync"]
