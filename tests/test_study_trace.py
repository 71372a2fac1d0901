"""`pegasusx-ref trace`: its statistics, values and file are those of the recorded tensors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from strategies import batches, configs, seeds

from pegasusx_ref import PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration, listen, record
from pegasusx_ref.checkpoint.safetensors_writer import file_layout, safetensors_writer
from pegasusx_ref.cli import main
from pegasusx_ref.errors import InputError
from pegasusx_ref.rendering.tables import Table, as_lines, count, counted, size
from pegasusx_ref.study.shape_inference import steps, steps_at
from pegasusx_ref.study.step_table import as_table, table_rows
from pegasusx_ref.study.tensor_statistics import StatisticsListener, combined, statistics_of
from pegasusx_ref.study.tensor_values import Pieces, attention_lines, format_values, queries_and_keys

pytestmark = pytest.mark.slow


def run(*arguments: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["trace", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def text(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(prose[:200], encoding="utf-8")
    return file


# --- statistics and rows ---------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 4), st.booleans())
def test_combined_statistics_of_parts_are_those_of_the_whole(seed: int, num_parts: int, masked: bool) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.standard_normal((12, 5)) * 10 ** rng.uniform(-5, 5)
    if masked:
        whole[rng.random(whole.shape) < 0.5] = np.finfo(whole.dtype).min
        whole[0] = np.finfo(whole.dtype).min  # a part that is masked entirely
    expected = statistics_of(whole, is_scores=True)
    found = combined(statistics_of(part, is_scores=True) for part in np.split(whole, [1, *range(4, 4 + num_parts)]))
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-12)
    seen = whole[whole > np.finfo(whole.dtype).min]
    assert (expected.counted, expected.masked) == (seen.size, whole.size - seen.size)
    np.testing.assert_allclose(expected[1:4], (seen.min(), seen.max(), np.sqrt(np.mean(seen**2))), rtol=1e-12)


def test_statistics_of_masked_scores_and_nan() -> None:
    lowest = np.full((2, 3), np.finfo(np.float32).min)
    assert statistics_of(lowest, is_scores=True).masked == 6
    assert np.isnan(combined([statistics_of(lowest, is_scores=True)] * 2).rms)
    assert statistics_of(lowest, is_scores=False).masked == 0
    wrong = np.array([1.0, np.nan, 2.0])
    assert np.isnan(combined([statistics_of(np.ones(3), False), statistics_of(wrong, False)])[1:4]).all()


@settings(max_examples=20)
@given(st.data())
def test_rows_of_every_folding_have_the_totals_of_the_run(data: st.DataObject) -> None:
    config = data.draw(configs())
    batch = data.draw(batches(config))
    (B, T), L = batch.input_ids.shape, batch.decoder_input_ids.shape[1]
    listener = StatisticsListener()
    with record() as trace, listen(listener):
        PegasusXForConditionalGeneration.from_random(config)(*batch)
    made = list(steps(config, T, L, B))
    for fold in ("blocks", "layers", "nothing"):
        rows = table_rows(made, listener.statistics, fold)
        assert sum(row.tensors for row in rows) == len(trace)
        assert sum(row.size for row in rows) == sum(value.size for value in trace.values())
        assert sum(row.flops for row in rows) == sum(step.flops for step in made)
        for row in rows:
            assert row.statistics is not None
            assert row.statistics.counted + row.statistics.masked == row.size
        table = as_table(rows, "float32")
        assert len({len(line) for line in [table.header, *table.rows]}) == 1
        assert len(table.rows) == len(rows) + len(table.headings)
    unfolded = {row.name: row.statistics for row in table_rows(made, listener.statistics, "nothing")}
    assert list(unfolded) == [step.name for step in made]
    for name, value in trace.items():
        assert unfolded[name] == statistics_of(value, name.endswith("scores"))


def test_blocks_of_different_sizes_share_one_row() -> None:
    config = PegasusXConfig.preset("tiny")
    (row,) = table_rows(steps_at("encoder.layers.1.self_attn.local", steps(config, 21, 2)))[:1]
    assert (row.name, row.shape, row.tensors) == ("encoder.layers.1.self_attn.local.*.scores", (1, 4, "1-8", "5-12"), 4)
    lines = as_lines(as_table([row], "float32"))
    assert lines[-1].split() == ["local.*.scores", "×", "4", "BHSX", "1×4×1-8×5-12", "14.7", "k", "3.58", "KiB"]


def test_a_heading_has_the_sums_of_its_rows() -> None:
    made = list(steps(PegasusXConfig.preset("tiny"), 21, 2))
    table = as_table(table_rows(made), "float32")
    headings = [list(table.rows[i]) for i in sorted(table.headings)]
    layer = ["layers.0", "self_attn", "layers.1", "self_attn"]
    cross = ["layers.0", "self_attn", "encoder_attn", "layers.1", "self_attn", "encoder_attn"]
    assert [heading[0].strip() for heading in headings] == ["encoder", *layer, "decoder", *cross]
    inside = [step for step in made if step.name.startswith("decoder.layers.1.encoder_attn.")]
    sums = [count(sum(step.flops for step in inside)), size(4 * sum(step.size for step in inside))]
    assert headings[-1] == ["    encoder_attn", "", *sums]


def test_numbers_and_tables_are_formatted() -> None:
    assert [count(n) for n in (0, 7, 999, 1000, 12345, 999_950, 3 * 10**12)] == [
        "-", "7", "999", "1.00 k", "12.3 k", "1.00 M", "3.00 T",
    ]  # fmt: skip
    assert [size(n) for n in (0, 1023, 1024, 5 * 2**20)] == ["-", "1023 B", "1.00 KiB", "5.00 MiB"]
    assert [counted(1, "tensor"), counted(1234, "tensor")] == ["1 tensor", "1,234 tensors"]
    assert as_lines(Table(("a", "bb"), [("ccc", "d")])) == ["a    bb", "ccc   d"]


# --- values at a place ---------------------------------------------------------------------------------------------


def test_queries_and_keys_are_named() -> None:
    config = PegasusXConfig.preset("tiny")
    pieces = Pieces([f"s{t}" for t in range(21)], ["t0", "t1"])
    queries, keys = queries_and_keys("encoder.layers.1.self_attn.local.1.probs", config, pieces)
    assert queries == [f"token {t} 's{t}'" for t in range(4, 12)]  # odd layers start with half a block
    assert keys == [f"global {g}" for g in range(4)] + queries
    queries, keys = queries_and_keys("encoder.layers.0.self_attn.global.scores", config, pieces)
    assert (len(queries), len(keys), keys[4]) == (4, 25, "token 0 's0'")
    assert queries_and_keys("decoder.layers.0.encoder_attn.probs", config, pieces)[1][20] == "token 20 's20'"
    assert queries_and_keys("decoder.layers.0.self_attn.probs", config, pieces)[1][1] == "target 1 't1'"


def test_the_strongest_keys_come_first_and_masked_keys_are_omitted() -> None:
    config, pieces = PegasusXConfig.preset("tiny"), Pieces(["a", "b", "c"], ["x", "y", "z"])
    probs = np.zeros((1, 4, 3, 3))
    probs[0, :, 1] = [0.25, 0.75, 0.0]
    lines = attention_lines("decoder.layers.0.encoder_attn.probs", probs, config, pieces, 2)
    assert lines[2:] == ["target 1 'y' attends to token 1 'b' 0.75, token 0 'a' 0.25", "… and 1 more"]
    lowest = np.finfo(np.float64).min
    scores = np.array([[-3.0, lowest, lowest], [1.0, 2.0, lowest], [1.0, 2.0, -5.0]])
    scores = np.broadcast_to(scores, (1, 4, 3, 3))
    lines = attention_lines("decoder.layers.0.self_attn.scores", scores, config, pieces, 3)
    assert lines[1] == "target 0 'x' attends to target 0 'x' -3"
    assert lines[2] == "target 1 'y' attends to target 1 'y' 2, target 0 'x' 1"
    assert "-inf" in format_values(scores)
    assert "e+308" not in format_values(scores)


def test_an_unknown_place_suggests_similar_ones() -> None:
    made = list(steps(PegasusXConfig.preset("tiny"), 21, 2))
    assert [step.name for step in steps_at("lm_head", made)] == ["lm_head"]
    assert len(steps_at("encoder.layers.1.self_attn", made)) == 6 + 3 * 4 + 3 + 2
    with pytest.raises(InputError, match=r"did you mean encoder\.layers\.1\.self_attn"):
        steps_at("encoder.layers.2.self_attn", made)
    with pytest.raises(InputError, match="pegasusx-ref explain lists"):
        steps_at("xyzzy", made)


# --- the file -------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.data())
def test_a_saved_run_is_read_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    config = data.draw(configs())
    batch = data.draw(batches(config))
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    (B, T), L = batch.input_ids.shape, batch.decoder_input_ids.shape[1]
    path = tmp_path_factory.mktemp("saved") / "trace.safetensors"
    layout = file_layout({step.name: (step.shape, dtype) for step in steps(config, T, L, B)})
    with safetensors_writer(path, layout) as writer, listen(writer), record() as trace:
        PegasusXForConditionalGeneration.from_random(config, dtype=dtype)(*batch)
    assert path.stat().st_size == layout.size
    found = load_file(path)
    assert found.keys() == trace.keys()
    for name, value in trace.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_an_unfinished_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    layout = file_layout({"x": ((2,), "float32")})
    with pytest.raises(KeyError), safetensors_writer(path, layout):
        raise KeyError
    with pytest.raises(AssertionError, match="never written: x"), safetensors_writer(path, layout):
        pass
    assert list(tmp_path.iterdir()) == []


# --- the command ----------------------------------------------------------------------------------------------------


def test_trace_prints_a_row_for_every_kind_of_tensor(text: Path, model_folder: Path) -> None:
    result = run(text, "--model", model_folder, "--target", "of the class")
    assert (result.exit_code, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["step", "shape", "dtype", "min", "max", "rms", "masked", "FLOPs", "bytes"]
    assert lines[-1] == "target: of the class"
    assert sum(line.strip().startswith("local.*.scores ×") for line in lines) == 2
    assert any(line.startswith("    self_attn  ") for line in lines)
    everything = run(text, "--model", model_folder, "--target", "of the class", "--all").stdout
    assert "local.0.scores" in everything
    assert "local.*" not in everything


def test_trace_uses_the_summary_that_summarize_prints(text: Path, wordy_folder: Path) -> None:
    words = ("--model", wordy_folder, "--max-new-tokens", 6)
    summary = CliRunner().invoke(main, ["summarize", str(text), *map(str, words), "--no-progress"]).stdout
    result = run(*words, "--json", stdin=text.read_text(encoding="utf-8"))
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["target"] + "\n" == summary
    assert (found["document"], found["num_target_tokens"]) == ("standard input", 6)
    step = next(step for step in found["steps"] if step["name"] == "decoder.layers.1.self_attn.scores")
    assert (step["shape"], step["masked"]) == ([1, 4, 6, 6], 4 * 15)
    assert step["minimum"] > -1e6
    assert any(step["name"] == "encoder.layers.1.self_attn.local.0.probs" for step in found["steps"])


def test_trace_shows_the_values_at_a_place(text: Path, model_folder: Path, tokenizer: PegasusTokenizer) -> None:
    place = "encoder.layers.1.self_attn.local.1"
    result = run(text, "--model", model_folder, "--at", place, "--target", "of")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{place}.scores  BHSX 1×4×8×12  float32"
    pieces = tokenizer.tokenize(text.read_text(encoding="utf-8"))
    assert any(line.startswith(f"token 4 {pieces[4]!r} attends to ") for line in lines)
    assert sum(line.startswith("token 4 ") for line in lines) == 2  # scores and probs
    folded = run(text, "--model", model_folder, "--at", "encoder.layers.1.self_attn.local", "--target", "of").stdout
    assert "more encoder.layers.1.self_attn.local.*.probs: --all)" in folded
    with_all = run(text, "--model", model_folder, "--at", "encoder.layers.1.self_attn.local", "--target", "of", "--all")
    assert f"\n{place}.probs" in with_all.stdout


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_verify_accepts_what_trace_saved(text: Path, model_folder: Path, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "trace.safetensors"
    result = run(text, "--model", model_folder, "--save", path, "--dtype", dtype)
    assert result.exit_code == 0
    assert f"Note: {path}: " in result.stderr
    assert result.stderr.rstrip().endswith("iB")
    checked = CliRunner().invoke(main, ["verify", "--model", str(model_folder), "--dump", str(path), "--dtype", dtype])
    assert checked.exit_code == 0, checked.output
    num_tensors = int(result.stderr.split(f"{path}: ")[1].split()[0])
    assert checked.stdout.startswith(f"{num_tensors - 2} tensors in {dtype}: ")


def test_trace_reports_errors_in_one_line(
    text: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (["nowhere.txt"], "nowhere.txt: No such file or directory"),
        ([text, "--at", "encoder.layers.7.self_attn"], "did you mean encoder.layers.1.self_attn"),
        ([text, "--target", " "], "--target is empty"),
        ([text, "--at", "lm_head", "--json"], "--at and --json exclude each other"),
        ([text, "--save", tmp_path], "is not a regular file"),
        ([text, "--dtype", "float16"], "'float16' is not one of"),
    ):
        result = run(*arguments, "--model", model_folder)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr.splitlines()[-1]
    with monkeypatch.context() as patch:
        patch.setattr(PegasusXForConditionalGeneration, "generate", lambda *_, **__: pytest.fail("it wrote a summary"))
        assert run(text, "--at", "nowhere", "--model", model_folder).exit_code == 2
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2048}))
    result = run(text, "--model", model_folder, "--save", tmp_path / "x.safetensors")
    assert result.exit_code == 2
    assert "KiB, but only 2.00 KiB are free: use a shorter text" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_commands_in_the_readme_run(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pegasusx-ref ((?:trace|explain|explore|picture) .*?)(?: +#.*)?$", readme, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"trace", "explain", "explore", "picture"}
    for command in commands:
        assert CliRunner().invoke(main, command.split()).exit_code == 0, command
