"""Conformance vectors: the committed ones equal a new run and transformers, and work without this package."""

import hashlib
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import independent_implementation as independent
import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from emulated import COMPILER
from hf_reference import hf_reference
from jsonschema import Draft202012Validator
from safetensors.numpy import load_file, save, save_file
from tolerances import FLOAT64, VECTOR_TOLERANCES, VECTORS, assert_close

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend
from pegasusx_ref.cli import main
from pegasusx_ref.verification import from_backend, from_transformers
from pegasusx_ref.verification.candidates.inputs import INPUTS
from pegasusx_ref.verification.checking.operations import LOWEST
from pegasusx_ref.verification.vectors import CASES, Vector, make_vector, read_vector
from pegasusx_ref.verification.vectors.kept_rows import Selection
from pegasusx_ref.verification.vectors.quantized import QUANTIZED

pytestmark = pytest.mark.unwatched

FOLDER = Path(__file__).parents[1] / "spec" / "vectors"
EXAMPLE = FOLDER / "example"
SCHEMA = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
MAX_BYTES = 3_200_000
every_case = pytest.mark.parametrize("name", CASES)


@cache
def committed(name: str) -> independent.Folder:
    return independent.Folder(FOLDER / name)


@cache
def fresh(name: str) -> Vector:
    """Build a vector; 16,384 tokens in every arithmetic would take 20 seconds."""
    return make_vector(name, ("float64",) if name == "long" else ("float64", "float32"))


def model_of(name: str, backend: str, dtype: str) -> PegasusXForConditionalGeneration:
    config = PegasusXConfig.from_dict(committed(name).manifest["config"])
    return PegasusXForConditionalGeneration(config, committed(name).weights, get_backend(backend, dtype=dtype))


@cache
def dump_of(name: str, dtype: str) -> dict[str, np.ndarray]:
    """Return every tensor of the NumPy backend's run."""
    return dict(from_backend(model_of(name, "numpy", dtype))({key: committed(name).inputs[key] for key in INPUTS}))


def stored_part(entry: dict[str, Any], tensor: np.ndarray) -> np.ndarray:
    return Selection(**entry["sampled"]).take(tensor) if "sampled" in entry else tensor


def seen(array: np.ndarray) -> np.ndarray:
    """Return scores with 0 for the masked ones, which are too large to compare with."""
    return np.where(array == LOWEST, 0.0, array)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["vectors", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def check(name: str, tensors: dict[str, np.ndarray], tmp_path: Path, *options: str) -> Result:
    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, tmp_path / "dump.safetensors")
    return run("check", FOLDER / name, "--dump", tmp_path / "dump.safetensors", *options)


# --- the committed vectors -------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_case
def test_new_weights_and_inputs_have_the_same_bytes(name: str) -> None:
    for file, tensors in (("weights", fresh(name).weights), ("inputs", fresh(name).inputs)):
        found = hashlib.sha256(save(tensors)).hexdigest()
        assert found == committed(name).manifest["files"][f"{file}.safetensors"]["sha256"], file


@every_case
def test_checksums_are_those_of_the_files(name: str) -> None:
    assert read_vector(FOLDER / name).trace.keys() == committed(name).trace.keys()


@pytest.mark.slow
@every_case
def test_newly_computed_tensors_are_the_same(name: str) -> None:
    assert fresh(name).trace.keys() == committed(name).trace.keys()
    for tensor, value in fresh(name).trace.items():
        expected = committed(name).trace[tensor]
        assert np.array_equal(value == LOWEST, expected == LOWEST), tensor
        assert_close(tensor, seen(value), seen(expected), VECTORS)


@pytest.mark.slow
@every_case
def test_a_new_manifest_is_the_same(name: str) -> None:
    found, expected = (json.loads(json.dumps(m)) for m in (fresh(name).manifest, committed(name).manifest))
    assert {k: v for k, v in found.items() if k != "tensors"} == {
        k: v for k, v in expected.items() if k not in ("tensors", "files")
    }
    for one, other in zip(found["tensors"], expected["tensors"], strict=True):
        for arithmetic, ways in one.pop("tolerances").items():
            for way, pair in ways.items():
                a, b = np.array(pair), np.array(other["tolerances"][arithmetic][way])
                is_same = (a <= VECTOR_TOLERANCES * b) & (b <= VECTOR_TOLERANCES * a)
                assert is_same.all(), (one["name"], arithmetic, way, a, b)
        del other["tolerances"]
        assert one == other


@every_case
def test_vectors_are_what_transformers_computes(transformers: ModuleType, name: str) -> None:
    """In float64, on every row that counts: a check by another implementation."""
    folder = committed(name)
    hf_model = hf_reference(transformers, model_of(name, "numpy", "float64"))
    hf_model.set_attn_implementation("eager")
    theirs = from_transformers(hf_model)({key: folder.inputs[key] for key in INPUTS})
    for entry in folder.tensors:
        valid = independent.rows_that_count(folder, entry)
        if not valid.any():
            continue
        found = stored_part(entry, theirs[entry["name"]])[valid]
        expected = folder.trace[entry["name"]][valid]
        hidden = expected == LOWEST
        assert (found[hidden] < -1e300).all(), entry["name"]
        assert_close(entry["name"], np.where(hidden, 0.0, found), seen(expected), FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.has_gradients])
def test_gradients_equal_a_new_run_and_transformers(name: str, transformers: ModuleType) -> None:
    gradients = read_vector(FOLDER / name).gradients
    assert gradients.keys() == fresh(name).gradients.keys()
    hf_model = hf_reference(transformers, model_of(name, "numpy", "float64"))
    hf_model.set_attn_implementation("eager")
    inputs = {key: committed(name).inputs[key] for key in INPUTS}
    theirs = from_transformers(hf_model)(inputs | {"labels": gradients["labels"], "label_smoothing": 0.0})
    for tensor, gradient in gradients.items():
        assert_close(tensor, fresh(name).gradients[tensor], gradient, FLOAT64)
        if tensor != "labels":
            assert_close(tensor, theirs[tensor], gradient, FLOAT64)


@pytest.mark.slow
@every_case
def test_manifests_fit_the_schema_and_the_files(name: str) -> None:
    folder = committed(name)
    Draft202012Validator(SCHEMA).validate(folder.manifest)
    names = [entry["name"] for entry in folder.tensors]
    assert sorted(names) == sorted(folder.trace)
    for entry in folder.tensors:
        assert stored_part(entry, np.empty(entry["shape"])).shape == folder.trace[entry["name"]].shape
        assert set(entry["inputs"]) <= {*names[: names.index(entry["name"])], *folder.inputs}, entry["name"]
        assert set(entry.get("weights", {}).values()) <= folder.weights.keys()


def test_the_schema_refuses_wrong_manifests() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    good = json.dumps(committed("one-token").manifest)
    for old, new in (
        ('"variant:hf"', '"variant:other"'),
        ('"variant:hf"', '"T<K"'),
        ('"valid.source"', '"valid.all"'),
        ('"dims": "BTD"', '"dims": "BQD"'),
        ('"end_to_end"', '"whole"'),
        ('"block_size"', '"blocks"'),
    ):
        assert old in good
        assert not Draft202012Validator(SCHEMA).is_valid(json.loads(good.replace(old, new))), new


def test_every_flag_occurs() -> None:
    occur = {flag for name in CASES for flag in committed(name).manifest["flags"]}
    assert occur == set(SCHEMA["properties"]["flags"]["items"]["enum"])
    assert not all("stagger" in committed(name).manifest["flags"] for name in CASES)
    activations = {committed(name).manifest["config"]["activation_function"] for name in CASES}
    assert activations == {"relu", "gelu", "gelu_new"}


def test_the_page_lists_the_vectors() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([\w-]+)\]\(\1\) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    manifests = [committed(name).manifest for name in CASES]
    assert rows == [(m["case"], ", ".join(f"`{flag}`" for flag in m["flags"]), m["about"]) for m in manifests]
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == {*CASES, QUANTIZED, "example"}


def test_the_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < MAX_BYTES


@every_case
def test_every_arithmetic_holds_the_weights_exactly(name: str) -> None:
    for tensor, weight in committed(name).weights.items():
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            assert np.array_equal(weight.astype(dtype).astype(np.float64), weight), tensor
        assert len(np.unique(weight)) > 1, tensor


# --- without this package --------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(
    ("arithmetic", "way"),
    [("float64", "exact"), ("float32", "rounded"), ("bfloat16", "rounded"), ("float16", "rounded")],
)
def test_each_operation_can_be_tested_alone(name: str, arithmetic: str, way: str) -> None:
    """From the manifest and the vector's tensors alone, by the rule of spec/vectors/README.md."""
    folder = committed(name)
    alone = [entry for entry in folder.tensors if independent.is_alone(folder, entry)]
    assert len(alone) > 60
    for entry in alone:
        found = independent.computed(folder, entry, arithmetic)
        assert independent.passes(folder, entry, found, arithmetic, way), entry["name"]


@every_case
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_whole_run_passes_by_the_plain_rule(name: str, dtype: str) -> None:
    folder, dump = committed(name), dump_of(name, dtype)
    for entry in folder.tensors:
        found = stored_part(entry, dump[entry["name"]])
        assert independent.passes(folder, entry, found, dtype, "end_to_end"), entry["name"]


@pytest.mark.parametrize("name", ["staggered", "masked-row", "flax"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_passes_by_the_plain_rule(transformers: ModuleType, name: str, dtype: str) -> None:
    folder = committed(name)
    dump = from_backend(model_of(name, "torch", dtype))({key: folder.inputs[key] for key in INPUTS})
    for entry in folder.tensors:
        found = stored_part(entry, dump[entry["name"]])
        assert independent.passes(folder, entry, found, dtype, "end_to_end"), entry["name"]


def test_the_plain_rule_detects_errors() -> None:
    folder = committed("masked-block")

    def verdict(tensor: str, found: np.ndarray, arithmetic: str = "float32", way: str = "rounded") -> bool:
        (entry,) = (e for e in folder.tensors if e["name"] == tensor)
        return independent.passes(folder, entry, found, arithmetic, way)

    fc1 = "encoder.layers.0.tokens.fc1"
    value = folder.trace[fc1]
    padding = ~folder.inputs["valid.source"]
    assert verdict(fc1, value)
    assert not verdict(fc1, value * (1 + 3e-6))
    assert not verdict(fc1, np.where(np.arange(value.shape[2]) == 3, np.nan, value))
    assert verdict(fc1, np.where(padding[..., None], 7.0, value))
    one_element = value.copy()
    one_element[1, 12, 5] += 1e-5
    assert not verdict(fc1, one_element)
    scores = "encoder.layers.0.self_attn.local.1.scores"
    assert verdict(scores, np.where(folder.trace[scores] == LOWEST, -np.inf, folder.trace[scores]))
    masked = "encoder.layers.0.self_attn.local.0.scores"
    assert not verdict(masked, seen(folder.trace[masked]))


# --- the command -----------------------------------------------------------------------------------------------------


@every_case
def test_our_dumps_pass_the_check(name: str, tmp_path: Path) -> None:
    for dtype in ("float32",) if name == "long" else ("float64", "float32"):
        result = check(name, dump_of(name, dtype), tmp_path, "--arithmetic", dtype)
        assert (result.exit_code, result.stderr) == (0, "")
        counts, shown = result.stdout.splitlines()
        assert re.fullmatch(rf"\d+ tensors in {dtype}: \d+ pass(, \d+ blind)?", counts)
        assert re.fullmatch(r"Shown: (\d+) of \1 tensors of the run", shown)


def test_a_wrong_dump_fails(tmp_path: Path) -> None:
    wrong = dump_of("staggered", "float32") | {
        "encoder.layers.1.tokens.activation": dump_of("staggered", "float32")["encoder.layers.1.tokens.fc1"]
    }
    result = check("staggered", wrong, tmp_path)
    assert result.exit_code == 1
    first, diagnosis, *_ = result.stdout.splitlines()
    assert first.startswith("First wrong: encoder.layers.1.tokens.activation (activation)")
    assert diagnosis == "Likely bug: the activation is missing"
    report = json.loads(check("staggered", wrong, tmp_path, "--json").stdout)
    assert (report["passed"], report["first_failure"]) == (False, "encoder.layers.1.tokens.activation")
    everything = check("staggered", wrong, tmp_path, "--all")
    assert len(everything.stdout.splitlines()) > len(committed("staggered").tensors)


def test_a_dump_of_the_kept_rows_is_compared_with_them(tmp_path: Path) -> None:
    folder, whole = committed("long"), dump_of("long", "float32")
    kept = {entry["name"]: stored_part(entry, whole[entry["name"]]) for entry in folder.tensors}
    late = "encoder.embeddings"
    (rows,) = (entry["sampled"]["indices"] for entry in folder.tensors if entry["name"] == late)
    padding = np.array([4096 < row < 4120 for row in rows])[:, None]
    assert padding.sum() == 1
    probs, scores = (f"encoder.layers.1.self_attn.{name}" for name in ("global.probs", "local.64.scores"))
    is_masked = folder.trace[scores] == LOWEST
    assert is_masked.any()

    for right in ({}, {late: np.where(padding, np.nan, kept[late])}, {scores: np.where(is_masked, -2e4, kept[scores])}):
        result = check("long", kept | right, tmp_path)
        assert (result.exit_code, result.stdout) == (
            0,
            f"{len(kept)} tensors in float32: {len(kept)} pass\nShown: {len(kept)} of {len(kept)} tensors of the run\n",
        )

    angles = np.array(rows, dtype=np.float32)[:, None] * np.float32(0.01)
    off = np.sin(angles * np.float32(1 + 1e-6)) - np.sin(angles)  # positions with float32 frequencies
    for name, wrong in (
        (late, kept[late] + off * (np.arange(6) == 1)),
        (late, np.where(padding, kept[late], np.nan)),
        (late, kept[late][:, 1:]),
        (probs, kept[probs] * 1.01),
        (scores, np.where(is_masked, 0.0, kept[scores])),
    ):
        result = check("long", kept | {name: wrong}, tmp_path)
        assert result.exit_code == 1
        assert result.stdout.startswith(f"First wrong: {name} (")

    # Errors of single rows are end to end: what comes after the first failure may follow from it.
    after = {name: x if "embed" in name or "scores" in name else x * np.float32(1.01) for name, x in kept.items()}
    assert check("long", after, tmp_path).stdout.count(" wrong: ") == 1


def test_a_dump_with_other_names_is_checked_and_reported(tmp_path: Path) -> None:
    page, xml, names = (tmp_path / file for file in ("page.html", "report.xml", "map.toml"))
    names.write_text('"encoder.layers.{i}.tokens.fc1" = { name = "mlp{i}", reshape = ["B", "T", "M"] }\n')
    whole = dump_of("staggered", "float32")
    other = {f"mlp{i}": whole.pop(f"encoder.layers.{i}.tokens.fc1") for i in range(2)}
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in other.items()}
    options = ("--map", str(names), "--html", str(page), "--junit", str(xml))
    result = check("staggered", whole | flat, tmp_path, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "<h1>dump.safetensors in float32, vector staggered</h1>" in page.read_text("utf-8")
    assert 'name="encoder.layers.1.tokens.fc1"' in xml.read_text("utf-8")
    result = check("staggered", whole | flat | {"mlp1": flat["mlp1"] * np.float32(1.01)}, tmp_path, *options)
    assert result.exit_code == 1
    assert "<code>encoder.layers.1.tokens.fc1</code>" in page.read_text("utf-8").split('<p class="banner fail">')[1]
    kept = {entry["name"]: stored_part(entry, whole[entry["name"]]) for entry in committed("staggered").tensors[:3]}
    assert check("staggered", kept, tmp_path, "--html", str(page)).exit_code == 0
    result = check("staggered", kept, tmp_path, "--strict")
    assert (result.exit_code, "Failed: --strict: " in result.stdout) == (1, True)
    result = check("staggered", kept, tmp_path, "--map", "flax")  # comes along; nothing here has its names
    assert (result.exit_code, result.stderr) == (0, "")
    result = check("staggered", kept, tmp_path, "--map", str(tmp_path / "none.toml"))
    assert (result.exit_code, "none.toml: no such file; the maps that come" in result.stderr) == (2, True)


@pytest.mark.slow
def test_write_writes_what_is_committed(tmp_path: Path) -> None:
    result = run("write", tmp_path / "out", "--preset", "one-token", "--preset", "masked-row")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(tmp_path / "out" / name) for name in ("one-token", "masked-row")]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["one-token", "masked-row"]
    for name in ("one-token", "masked-row"):
        files = {path.name for path in (tmp_path / "out" / name).iterdir()}
        gradients = {"gradients.safetensors"} if name == "one-token" else set()
        assert files == gradients | {f"{kind}.safetensors" for kind in ("weights", "inputs", "trace")} | {
            "manifest.json"
        }
        written = independent.Folder(tmp_path / "out" / name).manifest
        Draft202012Validator(SCHEMA).validate(written)
        assert written["config"] == committed(name).manifest["config"]
    again = run("write", tmp_path / "out", "--preset", "one-token", "--no-progress")
    assert (again.exit_code, again.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["check", "nowhere", "--dump", "good.safetensors"],
            "nowhere/manifest.json: no such file; give the folder",
        ),
        (["check", "vector"], "Missing option '--dump'"),
        (["check", "vector", "--dump", "nowhere.npz"], "nowhere.npz: no such file"),
        (["check", "vector", "--dump", "broken.safetensors"], "broken.safetensors: not a complete safetensors file"),
        (["check", "vector", "--dump", "unknown.safetensors"], "the candidate has no tensor with a trace point's name"),
        (
            ["check", "vector", "--dump", "good.safetensors", "--arithmetic", "int8"],
            "--arithmetic int8 is not known: pass",
        ),
        (["check", "damaged", "--dump", "good.safetensors"], "damaged/weights.safetensors: has sha256 "),
        (
            ["check", "incomplete", "--dump", "good.safetensors"],
            "incomplete/inputs.safetensors: cannot be read: No such file or directory: write the vector",
        ),
        (["check", "no-json", "--dump", "good.safetensors"], "no-json/manifest.json: not a JSON object ("),
        (["check", "later", "--dump", "good.safetensors"], "has format 'pegasusx-vectors-9'; this version reads"),
        (["check", "empty", "--dump", "good.safetensors"], "empty/manifest.json: has no 'config'"),
        (["write", "others"], "others: holds 'thesis.txt', which is not part of a vector; give a new or empty folder"),
        (["write", "damaged-too"], "damaged-too/one-token: holds 'thesis.txt', which is not part of a vector"),
        (["write", "good.safetensors"], "good.safetensors: is a file; give a folder to write vectors into"),
        (["write", "good.safetensors/new"], "good.safetensors/new: Not a directory"),
        (["check", "vector", "--dump", "other.safetensors"], "input_ids of the dump differ from the vector's"),
        (["write", "new", "one-token"], "one-token is not expected behind new: name a vector by --preset one-token"),
        (["write", "new", "--preset", "large"], "'large' is not one of 'staggered'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("vector", "damaged", "incomplete", "no-json", "later", "empty"):
        shutil.copytree(FOLDER / "one-token", folder)
    save_file({"input_ids": np.array([[1, 2, 3]])}, "other.safetensors")
    content = bytearray(Path("damaged/weights.safetensors").read_bytes())
    content[-1] ^= 1
    Path("damaged/weights.safetensors").write_bytes(content)
    Path("incomplete/inputs.safetensors").unlink()
    Path("no-json/manifest.json").write_text("{", encoding="utf-8")
    Path("later/manifest.json").write_text('{"format": "pegasusx-vectors-9"}', encoding="utf-8")
    Path("empty/manifest.json").write_text('{"format": "pegasusx-vectors-1"}', encoding="utf-8")
    for folder in ("others", "damaged-too/one-token"):
        Path(folder).mkdir(parents=True)
        Path(folder, "thesis.txt").write_text("three years", encoding="utf-8")
    save_file({"lm_head": committed("one-token").trace["lm_head"]}, "good.safetensors")
    save_file({"logits": committed("one-token").trace["lm_head"]}, "unknown.safetensors")
    Path("broken.safetensors").write_bytes(b"no header, and no more")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1


# --- the example in C++ ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attention_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the example."""
    if COMPILER is None:
        pytest.skip("g++ is not installed: it compiles the example of spec/vectors")
    program = tmp_path_factory.mktemp("example") / "attention_block"
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", str(EXAMPLE / "attention_block.cpp")]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def started(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [[], ["float"]], ids=["double", "float"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "long"])
def test_the_example_passes_on_every_block(attention_block: Path, name: str, precision: list[str]) -> None:
    scores = [
        re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.local\.(\d+)\.scores", t) for t in committed(name).trace
    ]
    blocks = [match.groups() for match in scores if match]
    assert blocks
    for layer, block in blocks:
        done = started(attention_block, FOLDER / name, layer, block, *precision)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["pass"] * 3
        errors = [float(error) for error in re.findall(r"row (\S+)", done.stdout)]
        assert (max(errors) > 1e-12) == (precision == ["float"])


def changed(name: str, tensor: str, factor: float, tmp_path: Path) -> Path:
    """Copy a vector and scale one of its tensors."""
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    trace = load_file(folder / "trace.safetensors")
    save_file(trace | {tensor: trace[tensor] * factor}, folder / "trace.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "wrong"),
    [
        ("tokens.q_proj", "scores"),
        ("globals.k_proj", "scores"),
        ("tokens.v_proj", "context"),
        ("globals.v_proj", "context"),
    ],
)
@pytest.mark.parametrize(("precision", "factor"), [([], 1 + 1e-12), (["float"], 1 + 1e-4)], ids=["double", "float"])
def test_the_example_detects_a_corrupted_vector(
    attention_block: Path, tensor: str, wrong: str, precision: list[str], factor: float, tmp_path: Path
) -> None:
    folder = changed("staggered", f"encoder.layers.1.self_attn.{tensor}", factor, tmp_path)
    done = started(attention_block, folder, 1, 1, *precision)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == [f"encoder.layers.1.self_attn.local.1.{wrong}:"]


@pytest.mark.slow
def test_the_example_reports_unreadable_files(attention_block: Path, tmp_path: Path) -> None:
    content = (FOLDER / "staggered" / "trace.safetensors").read_bytes()
    for num_bytes, message in (
        (0, "truncated, it has no header"),
        (5, "truncated, it has no header"),
        (1000, "truncated inside the header"),
        (len(content) - 8, "is not there as a whole"),
    ):
        folder = tmp_path / str(num_bytes)
        shutil.copytree(FOLDER / "staggered", folder)
        (folder / "trace.safetensors").write_bytes(content[:num_bytes])
        done = started(attention_block, folder, 1, 1)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(rf"Error: .*trace\.safetensors: .*{message}\n", done.stderr)
    for arguments, message in (
        ([], "usage: attention_block FOLDER LAYER BLOCK [float]"),
        ([tmp_path / "nowhere", 1, 1], "manifest.json: cannot be opened"),
        ([FOLDER / "staggered", 1, 9], "the vector has no tensor encoder.layers.1.self_attn.local.9.scores"),
        ([FOLDER / "long", 0, 0], "is sampled: a block needs all its rows"),
    ):
        done = started(attention_block, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
