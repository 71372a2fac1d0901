"""`pegasusx-ref summarize`: summaries on stdout, everything else on stderr, exit codes."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pegasusx_ref
from pegasusx_ref import PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.cli import main

NEW_TOKENS = 8
LIMIT = ("--max-new-tokens", str(NEW_TOKENS))
SPEED = r"in [\d.]+ s \([\d.e+]+/s\)"
FIGURES = re.compile(rf"read (\d+) tokens {SPEED}, wrote (\d+) {SPEED}$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(wordy_folder: Path) -> Path:
    return wordy_folder


@pytest.fixture(scope="module")
def texts(prose: str) -> list[str]:
    return [prose[:800], prose[2000:2600], prose[9000:9300]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> list[Path]:
    paths = [tmp_path_factory.mktemp("documents") / f"document {i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def summaries(folder: Path, texts: list[str]) -> list[str]:
    """The summaries of the Python API."""
    model = PegasusXForConditionalGeneration.from_pretrained(folder)
    tokenizer = PegasusTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        batch = tokenizer(text, max_length=model.config.max_position_embeddings, return_tensors="np")
        ids = model.generate(**batch, max_new_tokens=NEW_TOKENS)
        found.append(" ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split()))
    assert all(found)
    assert len(set(found)) == len(found)
    return found


def load(folder: Path) -> tuple[PegasusTokenizer, PegasusXForConditionalGeneration]:
    return PegasusTokenizer.from_pretrained(folder), PegasusXForConditionalGeneration.from_pretrained(folder)


def run(*arguments: object, stdin: bytes | str | None = None) -> Result:
    result = CliRunner().invoke(main, ["summarize", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def error_line(*arguments: object, stdin: bytes | str | None = None) -> str:
    """The one-line error message."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in line
    return line.removeprefix("Error: ")


# --- summaries -------------------------------------------------------------------------------------------------------


def test_one_file_gives_one_line_equal_to_the_api(folder: Path, files: list[Path], summaries: list[str]) -> None:
    result = run(files[0], "--model", folder, *LIMIT)
    assert result.exit_code == 0
    assert result.stdout == summaries[0] + "\n"


def test_several_files_give_a_line_each_in_their_order(folder: Path, files: list[Path], summaries: list[str]) -> None:
    result = run(files[2], files[0], files[1], "--model", folder, *LIMIT)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [summaries[2], summaries[0], summaries[1]]


def test_standard_input_is_read_without_a_file_and_for_a_dash(
    folder: Path, files: list[Path], texts: list[str], summaries: list[str]
) -> None:
    for arguments in ((), ("-",)):
        result = run(*arguments, "--model", folder, *LIMIT, stdin=texts[1])
        assert result.stdout == summaries[1] + "\n"
        assert len(FIGURES.findall(result.stderr)) == 1
    result = run(files[0], "-", "--model", folder, *LIMIT, stdin=texts[1].encode())
    assert result.stdout.splitlines() == summaries[:2]


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_documents_that_are_processed_together(
    folder: Path, files: list[Path], summaries: list[str], batch_size: int
) -> None:
    arguments = (*files, "--model", folder, *LIMIT, "--json")
    together = run(*arguments, "--batch-size", batch_size)
    assert [json.loads(line)["summary_text"] for line in together.stdout.splitlines()] == summaries
    assert together.stdout == run(*arguments).stdout  # with each document's own number of tokens
    assert len(FIGURES.findall(together.stderr)) == -(-3 // batch_size)
    assert f"{files[0]} and {min(batch_size, 3) - 1} more: read" in together.stderr
    assert "--batch-size" in error_line(*arguments, "--batch-size", 0)


def test_a_command_does_not_wait_for_the_imports_of_others(folder: Path, files: list[Path]) -> None:
    code = (
        "import sys\nfrom pegasusx_ref.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n"
        "print({name.split('.')[1] for name in sys.modules if name.startswith('pegasusx_ref.')})"
    )
    arguments = ("summarize", files[0], "--model", folder, *LIMIT)
    result = subprocess.run((sys.executable, "-c", code, *map(str, arguments)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rooms = set(ast.literal_eval(result.stdout.splitlines()[-1]))
    assert "summarization" in rooms
    assert not rooms & {"benchmarking", "corpus", "finetuning", "study", "verification"}


def test_a_misspelled_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(main, ["sumarize"])
    assert result.exit_code == 2
    assert "Did you mean 'summarize'?" in result.stderr


def test_a_text_without_visible_characters_is_empty(folder: Path, files: list[Path], tmp_path: Path) -> None:
    message = "standard input is empty: there is nothing to summarize"
    assert error_line("--model", folder, stdin="\u200b \ufeff") == message
    hidden = tmp_path / "hidden.txt"
    hidden.write_text("\u200b", encoding="utf-8")
    result = run(files[0], hidden, "--model", folder, *LIMIT, "--batch-size", 2)
    assert result.stderr.splitlines()[-1] == f"Error: {hidden} is empty: there is nothing to summarize"


def test_a_byte_order_mark_is_ignored(folder: Path, files: list[Path], tmp_path: Path, summaries: list[str]) -> None:
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + files[0].read_bytes())
    result = run(marked, files[0], "--model", folder, *LIMIT)
    assert result.stdout.splitlines() == [summaries[0]] * 2
    first, second = re.findall(r"read (\d+) tokens", result.stderr)
    assert first == second


def test_float64_is_computed_in_float64(
    folder: Path, files: list[Path], summaries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    generate = PegasusXForConditionalGeneration.generate

    def spy(model: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(model.dtype)
        return generate(model, *arguments, **options)

    monkeypatch.setattr(PegasusXForConditionalGeneration, "generate", spy)
    result = run(files[0], "--model", folder, "--dtype", "float64", *LIMIT)
    assert result.stdout == summaries[0] + "\n"
    assert run(files[0], "--model", folder, "--backend", "numpy", "--device", "cpu", *LIMIT).exit_code == 0
    assert seen == ["float64", "float32"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("beams", ["1", "3"])
def test_the_torch_backend_writes_what_numpy_writes(folder: Path, files: list[Path], dtype: str, beams: str) -> None:
    pytest.importorskip("torch")
    options = ("--model", folder, "--dtype", dtype, "--num-beams", beams, "--no-progress", *LIMIT)
    numpy, torch = (run(*files, *options, "--backend", backend) for backend in ("numpy", "torch"))
    assert numpy.stdout == torch.stdout
    assert len(set(numpy.stdout.splitlines())) == len(files)


@pytest.mark.parametrize("new_tokens", [1, 3, 12])
def test_max_new_tokens_bounds_the_summary(folder: Path, files: list[Path], new_tokens: int) -> None:
    result = run(files[1], "--model", folder, "--max-new-tokens", new_tokens, "--min-length", new_tokens + 1)
    found = FIGURES.search(result.stderr)
    assert found is not None
    assert int(found[2]) == new_tokens


def test_min_length_keeps_a_summary_from_ending(folder: Path, texts: list[str], tmp_path: Path) -> None:
    model, tokenizer = (
        PegasusXForConditionalGeneration.from_pretrained(folder),
        PegasusTokenizer.from_pretrained(folder),
    )
    ids = model.generate(**tokenizer(texts[1], return_tensors="np"), max_new_tokens=NEW_TOKENS)
    shutil.copytree(folder, tmp_path / "model")
    defaults = {"max_length": 15, "eos_token_id": int(ids[0, 3])}  # the third token now ends the text
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(defaults))
    ends = list(ids[0]).index(ids[0, 3])
    short = run("--model", tmp_path / "model", stdin=texts[1])
    long = run("--model", tmp_path / "model", "--min-length", "9", stdin=texts[1])
    written = [int(re.findall(r"wrote (\d+)", result.stderr)[0]) for result in (short, long)]
    assert written[0] == ends < 8 <= written[1]


def test_defaults_come_from_the_checkpoints_generation_config(
    folder: Path, texts: list[str], tmp_path: Path, summaries: list[str]
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    defaults = {"max_length": NEW_TOKENS + 1, "num_beams": 1, "typical_p": 0.5, "forced_eos_token_id": 1}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(defaults))
    result = run("--model", tmp_path / "model", "--no-progress", stdin=texts[0])
    assert result.stdout == summaries[0] + "\n"
    assert result.stderr == "Note: ignoring unsupported settings of the checkpoint: typical_p=0.5\n"


def test_beams_are_asked_for_by_the_checkpoint_or_the_option(folder: Path, texts: list[str], tmp_path: Path) -> None:
    options = ("--no-progress", "--max-new-tokens", "12")
    by_option = run("--model", folder, "--num-beams", "4", "--length-penalty", "2.0", *options, stdin=texts[0])
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 4, "length_penalty": 2.0}))
    by_checkpoint = run("--model", tmp_path / "model", *options, stdin=texts[0])
    assert by_option.stdout == by_checkpoint.stdout
    tokenizer, model = load(folder)
    ids = model.generate(**tokenizer(texts[0], return_tensors="np"), num_beams=4, length_penalty=2.0, max_new_tokens=12)
    assert by_option.stdout.split() == tokenizer.decode(ids[0], skip_special_tokens=True).split()


def test_json_has_the_summary_and_the_token_counts(
    folder: Path, files: list[Path], texts: list[str], summaries: list[str], tokenizer: PegasusTokenizer
) -> None:
    result = run(files[1], "-", "--model", folder, *LIMIT, "--json", stdin=texts[2])
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "document": name,
            "summary_text": summaries[i],
            "num_source_tokens": len(tokenizer.encode(texts[i])),
            "num_dropped_tokens": 0,
        }
        for i, name in ((1, str(files[1])), (2, "standard input"))
    ]


def test_json_counts_dropped_tokens_and_keeps_letters(
    folder: Path, prose: str, tokenizer: PegasusTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PegasusTokenizer, "decode", lambda *_, **__: " Grüße,\n Welt ")
    long = prose[20000:23000]
    result = run("--model", folder, *LIMIT, "--json", "--no-progress", stdin=long)
    assert "Grüße, Welt" in result.stdout
    found = json.loads(result.stdout)
    assert found["num_source_tokens"] == 512
    assert found["num_dropped_tokens"] == len(tokenizer.encode(long)) - 512


def test_an_empty_summary_prints_an_empty_line_and_a_note(folder: Path, files: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    defaults = {"eos_token_id": 1, "forced_eos_token_id": 1}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(defaults))
    result = run(files[0], "--model", tmp_path / "model", "--max-new-tokens", "1", "--no-progress")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr == f"Note: {files[0]}: the summary is empty\n"


# --- stderr ----------------------------------------------------------------------------------------------------------


def test_speed_of_every_document_is_on_stderr(
    folder: Path, files: list[Path], texts: list[str], tokenizer: PegasusTokenizer
) -> None:
    result = run(files[0], files[2], "--model", folder, *LIMIT)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 2
    for line, path, text in zip(lines, (files[0], files[2]), (texts[0], texts[2]), strict=True):
        assert line.startswith(f"{path}: read ")
        found = FIGURES.search(line)
        assert found is not None
        assert int(found[1]) == len(tokenizer.encode(text))
        assert 1 <= int(found[2]) <= NEW_TOKENS


def test_progress_without_a_terminal_is_one_line_a_document(folder: Path, files: list[Path]) -> None:
    result = run(files[0], files[2], "--model", folder, *LIMIT)
    assert len(result.stderr.splitlines()) == 2  # and no empty ones
    assert "\x1b" not in result.stderr


def test_no_progress_prints_nothing_on_stderr(folder: Path, files: list[Path], summaries: list[str]) -> None:
    result = run(*files, "--model", folder, *LIMIT, "--no-progress")
    assert result.stdout.splitlines() == summaries
    assert result.stderr == ""


@pytest.mark.parametrize("progress", ["--progress", "--no-progress"])
def test_long_document_is_cut_with_a_warning_that_counts(
    folder: Path, prose: str, tmp_path: Path, tokenizer: PegasusTokenizer, progress: str
) -> None:
    text = prose[20000:23000]
    limit = 512
    ids = tokenizer.encode(text)
    assert len(ids) > limit + 100
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    result = run(path, "--model", folder, *LIMIT, progress)
    assert result.exit_code == 0
    warning = result.stderr.splitlines()[0]
    assert warning == (f"Note: {path} is longer than the model's 512 tokens: the last {len(ids) - limit} were dropped")
    model = PegasusXForConditionalGeneration.from_pretrained(folder)
    expected = model.generate([[*ids[: limit - 1], 1]], max_new_tokens=NEW_TOKENS)
    summary = " ".join(tokenizer.decode(expected[0], skip_special_tokens=True).split())
    assert result.stdout == summary + "\n"
    if progress == "--progress":
        assert f"{path}: read 512 tokens" in result.stderr
    else:
        assert len(result.stderr.splitlines()) == 1


def test_a_document_of_exactly_the_limit_is_not_cut(
    folder: Path, prose: str, tmp_path: Path, tokenizer: PegasusTokenizer
) -> None:
    ids = tokenizer.encode(prose[22000:25000], max_length=512)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(tokenizer.encode(text)) == 512
    result = run("--model", folder, *LIMIT, "--no-progress", stdin=text)
    assert (result.exit_code, result.stderr) == (0, "")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_empty_input_is_rejected(folder: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    assert error_line(path, "--model", folder) == f"{path}: the document is empty"
    assert error_line("--model", folder, stdin=content) == "standard input: the document is empty"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not UTF-8 text (byte 0 is 0x89)"),
        ("Grüße".encode("latin-1"), "not UTF-8 text (byte 2 is 0xfc)"),
        ("text in UTF-16".encode("utf-16-le"), "a binary file, not text (it contains a zero byte)"),
        (b"%PDF\0\1\2", "a binary file, not text (it contains a zero byte)"),
    ],
    ids=["png", "latin-1", "utf-16", "zero byte"],
)
def test_a_binary_file_is_rejected(folder: Path, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "binary"
    path.write_bytes(content)
    assert error_line(path, "--model", folder) == f"{path}: {reason}"
    assert error_line("-", "--model", folder, stdin=content) == f"standard input: {reason}"


def test_a_missing_file_is_rejected_before_any_summary(folder: Path, files: list[Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    assert error_line(files[0], missing, "--model", folder) == f"{missing}: No such file or directory"
    assert error_line(tmp_path, "--model", folder) == f"{tmp_path}: a folder, not a file"


def test_a_missing_model_folder_is_rejected(files: list[Path], tmp_path: Path) -> None:
    line = error_line(files[0], "--model", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in line
    assert "does not exist" in line
    assert str(tmp_path / "config.json") in error_line(files[0], "--model", tmp_path)


def test_a_damaged_model_is_rejected(folder: Path, files: list[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(folder, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert str(weights) in error_line(files[0], "--model", damaged)
    weights.unlink()
    assert "no weights found" in error_line(files[0], "--model", damaged)
    shutil.copy(folder / "model.safetensors", weights)
    (damaged / "spiece.model").unlink()
    assert f"{damaged}: no tokenizer: copy spiece.model" in error_line(files[0], "--model", damaged)


def test_an_unknown_backend_is_rejected_with_the_choices(folder: Path, files: list[Path]) -> None:
    line = error_line(files[0], "--model", folder, "--backend", "abacus")
    assert "backend 'abacus' is not installed: available here: golden, numpy" in line


def test_an_unknown_dtype_is_rejected_with_the_choices(folder: Path, files: list[Path]) -> None:
    line = error_line(files[0], "--model", folder, "--dtype", "float12")
    assert "'numpy' does not compute in 'float12': it declares float32, float64" in line


def test_an_unknown_device_is_rejected(folder: Path, files: list[Path]) -> None:
    assert "not on 'cuda:3'" in error_line(files[0], "--model", folder, "--device", "cuda:3")


def test_another_models_tokenizer_is_rejected(files: list[Path], tmp_path: Path, tokenizer: PegasusTokenizer) -> None:
    config = PegasusXConfig.preset("tiny", vocab_size=tokenizer.vocab_size - 1)
    PegasusXForConditionalGeneration.from_random(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    line = error_line(files[0], "--model", tmp_path)
    assert line == f"{tmp_path / 'spiece.model'} has 500 ids, but the model 499: use the model's own tokenizer"


def test_contradictory_lengths_are_noted(folder: Path, files: list[Path]) -> None:
    result = run(files[0], "--model", folder, "--min-length", "30", "--max-new-tokens", "9", "--no-progress")
    assert result.exit_code == 0
    assert result.stderr == (
        "Note: the minimum length of 30 tokens exceeds the maximum of 10 (both count the start token): "
        "the maximum applies\n"
    )


@pytest.mark.parametrize(
    "arguments", [("--model",), ("--no-such-option",), ("--max-new-tokens", "0"), ("--length-penalty", "x")], ids=str
)
def test_wrong_options_are_reported_in_one_line(arguments: tuple[str, ...]) -> None:
    assert arguments[0] in error_line(*arguments, stdin="A text.")


def test_a_group_without_a_command_prints_its_help() -> None:
    result = CliRunner().invoke(main, ["picture"])
    assert "index-map" in result.output


# --- the command itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("summarize", "--help")], ids=str)
def test_help_goes_to_stdout(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "summarize" in result.stdout
    assert result.stderr == ""


def test_version_is_the_packages() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"pegasusx-ref, version {pegasusx_ref.__version__}\n"


@pytest.mark.parametrize("own", [None, "26"])
def test_threads_of_blas_sleep_early_unless_the_user_decided(own: str | None) -> None:
    code = "import sys; from pegasusx_ref.__main__ import main; sys.argv[1:] = ['--version']; main()"
    after = "import atexit, os; atexit.register(lambda: print(os.environ['OPENBLAS_THREAD_TIMEOUT'])); "
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    environment |= {} if own is None else {"OPENBLAS_THREAD_TIMEOUT": own}
    run = subprocess.run((sys.executable, "-c", after + code), env=environment, capture_output=True, text=True)
    assert run.stdout.split()[-1] == (own or "18")


def process(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-W", "error", "-m", "pegasusx_ref", "summarize", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)


def test_a_real_process_summarizes_a_pipe_and_files(
    folder: Path, files: list[Path], texts: list[str], summaries: list[str]
) -> None:
    done = process("-", files[2], "--model", folder, *LIMIT, stdin=texts[1].encode())
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [summaries[1], summaries[2]]
    lines = [line for line in done.stderr.decode().splitlines() if line]
    assert len(lines) == 2
    assert all(FIGURES.search(line) for line in lines)


def test_a_real_process_is_silent_on_request(folder: Path, files: list[Path], summaries: list[str]) -> None:
    done = process(files[0], "--model", folder, *LIMIT, "--no-progress")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, summaries[0] + "\n", b"")


@pytest.mark.slow
def test_a_real_process_reports_errors_in_one_line(folder: Path, tmp_path: Path) -> None:
    done = process(tmp_path / "missing.txt", "--model", folder)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"Error: {tmp_path / 'missing.txt'}: No such file or directory\n"
    done = process("--model", folder)
    assert done.returncode == 2
    assert done.stderr.decode() == "Error: standard input: the document is empty\n"


@pytest.mark.slow
def test_ctrl_c_prints_one_line_and_keeps_summaries(folder: Path, files: list[Path], summaries: list[str]) -> None:
    documents = map(str, files[:2] * 500)
    command = [sys.executable, "-m", "pegasusx_ref", "summarize", *documents, "--model", str(folder), *LIMIT]
    restored = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job of a shell ignores SIGINT
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": restored}
    with subprocess.Popen(command, **pipes) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        done = [running.stdout.readline().decode() for _ in range(2)]
        running.send_signal(signal.SIGINT)
        rest, messages = running.communicate(timeout=60)
    assert done == [line + "\n" for line in summaries[:2]]
    assert set(rest.decode().splitlines()) <= set(summaries[:2])
    *figures, last = messages.decode().splitlines()
    assert last == "Interrupted"
    assert all(FIGURES.search(line) for line in figures)
    assert running.returncode == 130


def test_progress_bars_do_not_interpret_markup_in_names(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Square brackets are rich's markup; only a terminal shows bars."""
    from pegasusx_ref.cli.progress import summary_progress
    from pegasusx_ref.tracing import tap

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with summary_progress(True, "x[/y]a[bold]b", 7, PegasusXConfig.preset("tiny"), 9):
        tap("lm_head", 0)  # leaving the block draws the bars once more
    assert capsys.readouterr().err.count("x[/y]a[bold]b: ") >= 2
