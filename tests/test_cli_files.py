"""Files of the command line: outputs never destroy inputs, special files are refused, any name works, full disks."""

import json
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_bench import results_of

from pegasusx_ref import DEMO_CHECKPOINT, OutputError, cli
from pegasusx_ref.benchmarking.storage import write_results
from pegasusx_ref.cli import main
from pegasusx_ref.cli.commands import Command, FileType, InputFile, InputFolder, OutputFile, OutputFolder
from pegasusx_ref.errors import CONTROL
from pegasusx_ref.files.writing import is_temporary
from pegasusx_ref.verification.vectors import make_vector, write_vector

VECTOR = Path(__file__).parents[1] / "spec" / "vectors" / "one-token"
TEXT = "A small library that reads and writes files.\n"


def commands(group: click.Group = main, *above: str) -> Iterator[tuple[list[str], click.Command]]:
    for name, command in group.commands.items():
        assert command.name == name
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield [*above, name], command


FILE_PARAMETERS = {
    f"{' '.join(name)} {param.opts[0]}": (name, command, param)
    for name, command in commands()
    for param in command.params
    if isinstance(param.type, FileType)
}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a text, which every command starts in."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    np.savez("dump.npz", lm_head=np.zeros((1, 1, 1)))


def run(*arguments: object, stdin: bytes = b"") -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def error_line(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, (arguments, result.output)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert line.startswith("Error: "), line
    assert result.stdout == ""
    return line.removeprefix("Error: ")


def arguments_of(name: list[str], command: click.Command, **given: object) -> list[object]:
    """Complete the arguments of a command.

    Args:
        name: of the command, in words.
        command: the command.
        given: values of its parameters.
    """
    arguments: list[object] = list(name)
    for param in command.params:
        value = given.get(param.name or "")
        if value is None and (param.required or (isinstance(param, click.Argument) and param.name != "place")):
            value = {
                InputFile: "dump.npz" if "--dump" in param.opts else "text.txt",
                OutputFile: "new.png",
                OutputFolder: "new",
                InputFolder: "folder",
                click.types.StringParamType: "text.txt",  # a file or an address
            }[type(param.type)]
        if value is not None and not (
            command.name == "verify" and param.name == "file" and {"dump", "mapping"} & {*given}
        ):
            arguments += [param.opts[0], value] if isinstance(param, click.Option) else [value]
    if "mapping" in given:
        arguments += ["--dump", "dump.npz"]
    return arguments


# --- one rule for all commands ---------------------------------------------------------------------------------------


def test_every_path_has_a_file_type_and_every_command_checks_them() -> None:
    for name, command in commands():
        assert isinstance(command, Command), name
        for param in command.params:
            if isinstance(param.type, click.Path | click.File) or param.metavar == "FILE":
                assert isinstance(param.type, FileType), (name, param)
    assert len(FILE_PARAMETERS) > 20


def test_commands_print_by_functions_that_escape() -> None:
    for file in Path(cli.__file__).parent.glob("*.py"):
        calls = re.findall(r"click\.echo\(|\bprint\(|\.write\(", file.read_text(encoding="utf-8"))
        assert not calls or file.name in ("printing.py", "messages.py", "streams.py"), file.name


KINDS = ("the same", "another spelling", "a link", "a hard link", "a new file")
PAIRS = [
    pytest.param(name, command, first, second, kind, id=f"{' '.join(name)} {first.opts[0]} {second.opts[0]}, {kind}")
    for name, command in commands()
    for i, first in enumerate(command.params)
    for second in command.params[i + 1 :]
    for kind in KINDS
    if (types := {type(first.type), type(second.type)}) == {OutputFile}
    or (types in ({InputFile, OutputFile}, {InputFolder, OutputFile}) and kind != "a new file")
]


@pytest.mark.parametrize(("name", "command", "first", "second", "kind"), PAIRS)
def test_an_output_that_is_another_file_of_the_command_is_refused(
    name: list[str], command: click.Command, first: click.Parameter, second: click.Parameter, kind: str
) -> None:
    is_folder = isinstance(first.type, InputFolder) or isinstance(second.type, InputFolder)
    if is_folder:
        shutil.copytree(DEMO_CHECKPOINT, "folder")
    read = Path("folder/config.json" if is_folder else "input.npz")
    content = read.read_bytes() if is_folder else TEXT.encode()
    if kind != "a new file":
        read.write_bytes(content)
    written = {
        "the same": read,
        "another spelling": Path("..") / Path.cwd().name / read,
        "a link": Path("link.png"),
        "a hard link": Path("hard.png"),
        "a new file": Path.cwd() / read,
    }[kind]
    if kind == "a link":
        written.symlink_to(read)
    if kind == "a hard link":
        written.hardlink_to(read)
    others = iter((read, written))
    given = {
        param.name or "": "folder" if isinstance(param.type, InputFolder) else written if is_folder else next(others)
        for param in sorted((first, second), key=lambda param: isinstance(param.type, OutputFile))
    }
    before = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in Path.cwd().rglob("*")}
    line = error_line(*arguments_of(name, command, **given))
    assert " are the same file: name another file to write" in line
    for param in (first, second):
        assert param.opts[0] in line or param.human_readable_name.strip("[].") in line
    assert {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in Path.cwd().rglob("*")} == before


def test_standard_streams_are_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pegasusx_ref.cli.commands as module

    with (tmp_path / "text.txt").open("rb") as file:
        monkeypatch.setattr(module, "STANDARD_INPUT", file.fileno())
        assert error_line("explore", "--out", "text.txt").startswith("--out text.txt and standard input are the same")
        monkeypatch.setattr(module, "STANDARD_OUTPUT", file.fileno())
        assert error_line("summarize", "text.txt").startswith("standard output and FILE text.txt are the same file")


def test_the_embedded_checkpoint_is_an_input() -> None:
    before = (DEMO_CHECKPOINT / "spiece.model").stat()
    assert "and --model's /" in error_line("trace", "text.txt", "--save", DEMO_CHECKPOINT / "spiece.model")
    assert (DEMO_CHECKPOINT / "spiece.model").stat() == before


def test_a_results_file_that_is_shown_is_an_input(tmp_path: Path) -> None:
    write_results(tmp_path / "bench.json", results_of())
    (tmp_path / "bench.json").chmod(0o444)
    assert run("bench", "--show").exit_code == 0
    (tmp_path / "bench.png").hardlink_to("bench.json")
    assert "--plot bench.png and --out bench.json are the same" in error_line("bench", "--show", "--plot", "bench.png")


# --- links and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["new.svg", "old.svg", "below/new.svg"])
def test_a_link_stays_and_its_target_is_replaced(target: str) -> None:
    Path("below").mkdir()
    Path("old.svg").write_text("old")
    Path("link.svg").symlink_to(target)
    assert run("picture", "index-map", "--out", "link.svg").exit_code == 0
    assert str(Path("link.svg").readlink()) == target
    assert "</svg>" in Path(target).read_text()


@pytest.mark.parametrize("target", ["nowhere/new.svg", "link.svg"])
def test_a_link_that_leads_nowhere_is_refused_and_stays(target: str) -> None:
    Path("link.svg").symlink_to(target)
    line = error_line("picture", "index-map", "--out", "link.svg")
    assert re.search("the folder .*/nowhere does not exist: create it first|Too many levels of symbolic links", line)
    assert str(Path("link.svg").readlink()) == target


def test_a_missing_folder_is_refused_before_the_run() -> None:
    before = set(Path.cwd().rglob("*"))
    for name, command, param in FILE_PARAMETERS.values():
        if isinstance(param.type, OutputFile):
            arguments = arguments_of(name, command, **{param.name or "": "typo/x.png"})
            assert error_line(*arguments).endswith("typo/x.png: the folder typo does not exist: create it first")
    assert set(Path.cwd().rglob("*")) == before


# --- special files ---------------------------------------------------------------------------------------------------


@contextmanager
def no_hang(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


PLACES_AND_KINDS = [
    (place, kind)
    for place in FILE_PARAMETERS
    for kind in ("FIFO", "device", "folder")
    if (place, kind) != ("convert destination", "folder")  # which may hold other files
]


@pytest.mark.parametrize(("place", "kind"), PLACES_AND_KINDS)
def test_special_files_are_refused_in_every_place(place: str, kind: str) -> None:
    name, command, param = FILE_PARAMETERS[place]
    shutil.copytree(DEMO_CHECKPOINT if command.name == "convert" else VECTOR, "folder")
    special = Path("special.npz")
    if kind == "FIFO":
        os.mkfifo(special)
    elif kind == "folder":
        special.mkdir()
        (special / "file").touch()  # no model, no vector, and no place for one
    else:
        special = Path("/dev/zero")
    with no_hang(30):
        line = error_line(*arguments_of(name, command, **{param.name or "": special}))
        if param.opts[0] == "--out" and command.name == "bench":
            error_line("bench", "--show", "--out", special)
    assert str(special) in line
    if kind == "FIFO" and name[0] in ("summarize", "explore", "trace") and isinstance(param, click.Argument):
        assert line.endswith('copy its content to a file or pipe it to standard input ("-")')


def test_documents_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_ref.cli.documents.MAX_SIZE", 10)
    said = "larger than 10 bytes, the limit for this kind of file"
    assert error_line("summarize", "text.txt") == f"text.txt: {said}"
    result = run("summarize", "-", stdin=TEXT.encode())
    assert (result.exit_code, result.stderr) == (2, f"Error: standard input: {said}\n")


# --- names -----------------------------------------------------------------------------------------------------------

HOSTILE = ["a\x1b[31m\r\u202eb\x9b\x7f\n", os.fsdecode(b"\xff"), "\x1b]0;title\x07"]


def assert_printable(text: str) -> None:
    assert not CONTROL.search(text.replace("\n", "")), ascii(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_with_control_characters_and_undecodable_ones_work_and_are_escaped(name: str) -> None:
    text = Path(f"{name}.txt")
    text.write_text(TEXT * 3)
    shutil.copytree(DEMO_CHECKPOINT, name)
    page, junit, trace, picture = (Path(f"{name}.{suffix}") for suffix in ("html", "xml", "safetensors", "svg"))
    model, short = ("--model", name), ("--max-new-tokens", 3)
    for command in (
        ("summarize", text, *model, *short),
        ("explore", text, *model, "--out", page, *short),
        ("trace", text, *model, "--save", trace, *short),
        ("verify", text, *model, "--against", "numpy", "--target-tokens", 2, "--html", page, "--junit", junit),
        ("verify", "--dump", trace, *model, "--html", page),
        ("picture", "attention", text, *model, "--out", picture),
        ("explain", "lm_head", *model),
        ("vectors", "write", f"{name}.vectors", "--preset", "one-token"),
    ):
        result = run(*command)
        assert result.exit_code == 0, (command, result.stderr)
        assert_printable(result.stdout + result.stderr)
        if page.exists():
            assert_printable(page.read_text())
    assert_printable(junit.read_text())
    result = run("summarize", text, *model, *short, "--json", "--no-progress")
    assert_printable(result.stdout)
    assert json.loads(result.stdout)["document"] == str(text)
    for wrong in (("summarize", f"{name}?"), ("explain", name), ("explain", f"--{name}"), ("vectors", name)):
        assert_printable(error_line(*wrong))


@pytest.mark.parametrize("as_json", [False, True])
def test_tensors_with_control_characters_in_their_names_are_escaped(as_json: bool, tmp_path: Path) -> None:
    vector = make_vector("one-token", ["float64", "float32"])
    write_vector(tmp_path / "vector", make_vector("one-token"))
    dump: dict[str, Any] = dict.fromkeys(("lm_head", *HOSTILE[::2]), vector.trace["lm_head"])
    np.savez("dump.npz", **dump)
    result = run("vectors", "check", "vector", "--dump", "dump.npz", "--all", *(["--json"] if as_json else []))
    assert "31m" in result.stdout
    assert_printable(result.output)


# --- errors of the machine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 3 GiB"), "out of memory: use a shorter text or a smaller model (Unable to "),
        (RecursionError(), "an input is nested too deeply"),
        (OutputError("no space"), "no space"),
        (OSError(28, "No space left on device", "/tmp/x\x1b"), "/tmp/x\\x1b: No space left on device"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_the_machine_are_one_line(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pegasusx_ref.cli.backends.print_table", fail)
    assert error_line("backends").startswith(said)


@contextmanager
def full_after(num_bytes: int) -> Iterator[None]:
    """Let every write beyond a number of bytes of a file fail."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


OUTPUTS: dict[str, tuple[object, ...]] = {
    "x.png": ("picture", "index-map", "--out", "x.png"),
    "x.svg": ("picture", "spread", "--out", "x.svg"),
    "x.pdf": ("picture", "index-map", "--out", "x.pdf"),
    "x.html": ("explore", "text.txt", "--out", "x.html", "--max-new-tokens", 3),
    "x.safetensors": ("trace", "text.txt", "--save", "x.safetensors", "--max-new-tokens", 3),
    "page.html": ("verify", "--against", "numpy", "--tokens", 20, "--target-tokens", 2, "--html", "page.html"),
    "x.xml": ("verify", "--against", "numpy", "--tokens", 20, "--target-tokens", 2, "--junit", "x.xml"),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", OUTPUTS)
def test_a_full_disk_leaves_the_old_output(file: str, request: pytest.FixtureRequest) -> None:
    assert run(*OUTPUTS[file]).exit_code == 0
    size, draw = Path(file).stat().st_size, random.Random(file)
    before = set(Path.cwd().rglob("*"))
    Path(file).write_text("old")
    for cut in [0, size - 1] + [draw.randrange(size) for _ in range(98 if request.config.getoption("--long") else 1)]:
        with full_after(cut):
            result = run(*OUTPUTS[file])
        assert result.exit_code == 2, cut
        assert result.stderr.splitlines()[-1] == f"Error: {file}: cannot be written: File too large"
        assert Path(file).read_text() == "old"
        assert set(Path.cwd().rglob("*")) == before


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_vector_and_results(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    vector, results, draw = make_vector("one-token"), results_of(), random.Random(0)
    folder = write_vector(tmp_path / "vector", vector)
    write_results(tmp_path / "bench.json", results)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sizes = {path: len(content) for path, content in files.items() if path.parent == folder}
    changed = vector._replace(weights={name: tensor + 1 for name, tensor in vector.weights.items()})
    for _ in range(1000 if request.config.getoption("--long") else 20):
        cut = draw.randrange(max(sizes.values()))
        with full_after(cut), pytest.raises(OutputError, match=r"vector: cannot be written: File too large"):
            write_vector(folder, changed)
        cut = draw.randrange(sizes[folder / "manifest.json"] and len(files[tmp_path / "bench.json"]))
        with full_after(cut), pytest.raises(OutputError, match=r"bench\.json: cannot be written: File too large"):
            write_results(tmp_path / "bench.json", results)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_leftovers_of_a_killed_process_do_not_keep_a_vector_from_being_written(tmp_path: Path) -> None:
    (tmp_path / "vectors" / "one-token").mkdir(parents=True)
    leftover = tmp_path / "vectors" / "one-token" / ".trace.safetensors.0123456789abcdef.tmp"
    leftover.touch()
    assert is_temporary(leftover)
    assert run("vectors", "write", "vectors", "--preset", "one-token").exit_code == 0
    assert not leftover.exists()
