"""`pegasusx-ref explain`: sections, shapes, costs and code, on a terminal and piped."""

import json
import re

import pytest
from click.testing import CliRunner, Result

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.cli import main
from pegasusx_ref.study.spec_sections import places, sections, sections_at

TINY = ("--config", "tiny", "--tokens", "21", "--target-tokens", "3")


def run(*arguments: object, terminal: bool = False) -> Result:
    result = CliRunner().invoke(main, ["explain", *map(str, arguments)], color=terminal)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_explain_lists_every_place() -> None:
    header, *lines = run().stdout.splitlines()
    assert header.split() == ["place", "shape", "section"]
    assert [line.split()[0] for line in lines] == places()
    assert json.loads(run("--json").stdout)["encoder.layers.{i}.self_attn"][:2] == ["9.1", "7.4"]


def test_explain_shows_section_shapes_cost_and_code() -> None:
    result = run("encoder.layers.1.self_attn", *TINY)
    assert (result.exit_code, result.stderr) == (0, "")
    text = result.stdout
    section, second, third = sections()["9.1"], sections()["7.4"], sections()["7.1"]
    assert text.startswith(f"9.1 {section.title}\n\n{section.prose.splitlines()[0]}\n")
    assert r"q = x W_q^\top" in text
    assert ">>>" not in text
    assert "encoder.layers.1.self_attn in tiny, 21 source and 3 target tokens, float32" in text
    assert re.search(r"local\.\*\.scores × 4 +BHSX 1×4×1-8×5-12", text)
    assert "\n4,096 parameters of 16.0 KiB, " in text
    assert "def encoder_self_attention(" in text
    assert re.search(r"^pegasusx_ref/model/encoder\.py:\d+$", text, re.MULTILINE)
    assert f"See also: 7.4 {second.title}, 7.1 {third.title}" in text


@pytest.mark.parametrize("place", [*places(), "7.1", "11", "12.4"])
def test_every_place_can_be_explained(place: str) -> None:
    result = run(place, *TINY, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    closest = sections()[place] if place in sections() else sections_at(place)[0]
    assert found["sections"][0]["number"] == closest.number
    assert bool(found["steps"]) == (place not in sections())
    assert found["source"] or place == "11"
    assert run(place, *TINY).stdout.startswith(f"{closest.number} {closest.title}\n")


def test_explain_shows_the_cost_of_a_model() -> None:
    result = run("--cost", "--config", "large", "--tokens", "16384")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line.split("  ")[0]: re.split(r" {2,}", line)[1:] for line in result.stdout.splitlines()}
    assert rows["all"][:3] == ["569 M", "2.12 GiB", "8.79 T"]
    assert rows["dense"] == ["4.29 G", "17.6 T", "16.0 GiB"]
    assert rows["block-local and global"] == ["202 M", "821 G", "129 MiB"]
    found = json.loads(run("--cost", *TINY, "--json").stdout)
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    assert found["total"]["parameters"] == model.num_parameters()
    assert found["total"]["flops"] == sum(part["flops"] for part in found["parts"])
    half_precision = json.loads(run("--cost", *TINY, "--json", "--dtype", "bfloat16").stdout)
    assert (half_precision["itemsize"], found["itemsize"]) == (2, 4)


def test_explain_shows_the_flops_formula_of_a_matrix_product() -> None:
    assert "\n1,024 parameters of 4.00 KiB, 43.0 k FLOPs = 2 B T D D, 1 tensor of " in (
        run("encoder.layers.0.self_attn.tokens.q_proj", *TINY).stdout
    )
    assert " FLOPs = 2 B H S X F, " in run("encoder.layers.0.self_attn.local.0.scores", *TINY).stdout
    assert "FLOPs = " not in run("encoder.layers.0.self_attn.tokens", *TINY).stdout


def test_explain_uses_the_shapes_of_a_checkpoint(model_folder: object) -> None:
    found = json.loads(run("lm_head", "--model", model_folder, "--json").stdout)
    assert found["steps"][0]["shape"] == [1, 128, 500]


@pytest.mark.slow
def test_a_terminal_gets_markdown_and_numbered_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_ref.cli.printing.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    text = run("encoder.layers.1.self_attn", *TINY).stdout
    assert "*same*" not in text  # it is in italics
    assert r"\qquad\text{for tokens and for global tokens}" in text
    assert "$$" not in text
    assert re.search(r"^ +\d+ def encoder_self_attention\($", text, re.MULTILINE)
    for section in sections().values():
        assert run(section.number).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encoder.layers.12.self_attn",), "does not occur in a run of these shapes: did you mean encoder.layers."),
        (("encoder.layers.1.selfattn",), "is unknown: did you mean encoder.layers.1.self_attn"),
        (("7.99",), "place '7.99' is unknown: pegasusx-ref explain lists all places"),
        (("lm_head", "--cost"), "--cost and lm_head exclude each other"),
        (("--config", "tiny", "--model", "x"), "--config tiny and --model x exclude each other"),
        (("lm_head", "--model", "nowhere"), "nowhere"),
        (("--config", "huge"), "'huge' is not one of 'tiny', 'base', 'large'"),
        (("--tokens", "0"), "0 is not in the range x>=1"),
    ],
)
def test_explain_reports_errors_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
