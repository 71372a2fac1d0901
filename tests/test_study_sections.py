"""The specification by section and by place: every section is found, and every place has sections."""

import shutil
import tomllib
from pathlib import Path

import pytest

import pegasusx_ref
from pegasusx_ref.errors import InputError
from pegasusx_ref.study.spec_sections import SCOPES, TENSORS, golden_source, places, sections, sections_at, spec_folder
from pegasusx_ref.tracing.trace_points import TRACE_POINTS


def test_every_section_and_introduction_is_read_in_order() -> None:
    numbers = list(sections())
    assert numbers == sorted(numbers, key=lambda number: [int(part) for part in number.split(".")])
    assert [number for number in numbers if "." not in number] == [str(n) for n in range(1, 21)]
    headings = sum(
        line.startswith("## ") and line[3].isdigit()
        for page in spec_folder().glob("[0-9]*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
    )
    assert sum("." in number for number in numbers) == headings > 90


def test_a_section_has_title_text_equations_and_function() -> None:
    section = sections()["7.1"]
    assert section.title == "Local attention"
    assert section.functions == ("pegasusx_ref.golden.global_local.local_attention",)
    assert section.text.startswith("Each block is one call")
    assert ">>> " in section.text
    assert ">>> " not in section.prose
    assert "Code:" not in section.text
    assert len(section.equations) == 1
    assert section.equations[0].startswith(r"y_t = \mathrm{attention}")
    assert sections()["11"].equations[0].startswith(r"\mathrm{logits}")


@pytest.mark.parametrize("number", [number for number in sections() if "." in number])
def test_golden_source_is_the_code_of_the_function(number: str) -> None:
    (name,) = sections()[number].functions
    source = golden_source(name)
    text = (Path(pegasusx_ref.__file__).parents[1] / source.path).read_text(encoding="utf-8").splitlines()
    assert tuple(text[source.first_line - 1 : source.first_line - 1 + len(source.lines)]) == source.lines
    assert any(f"[spec {number}]" in line for line in source.lines)
    assert name.rpartition(".")[2] in source.lines[0] + source.lines[1]


def test_every_trace_point_and_every_scope_has_sections() -> None:
    assert {name.rpartition(".")[2] for name in TRACE_POINTS} == set(TENSORS)
    scopes = {name[:i] for name in TRACE_POINTS for i, letter in enumerate(name) if letter == "."}
    assert scopes - {"encoder.layers", "decoder.layers"} == set(SCOPES)
    for place in places():
        assert sections_at(place), place


def test_the_most_specific_section_of_a_place_comes_first() -> None:
    def numbers(place: str) -> list[str]:
        return [section.number for section in sections_at(place)]

    assert numbers("encoder.layers.1.self_attn")[:2] == ["9.1", "7.4"]
    assert numbers("encoder.layers.0.self_attn.local.12.probs")[:3] == ["6.3", "6.4", "7.1"]
    assert numbers("decoder.layers.{i}.encoder_attn_residual")[0] == "10.5"
    assert numbers("lm_head")[0] == "11"


def test_an_unknown_place_suggests_similar_ones() -> None:
    with pytest.raises(InputError, match=r"did you mean encoder\.layers\.3\.self_attn"):
        sections_at("encoder.layers.3.self_atn")
    with pytest.raises(InputError, match="pegasusx-ref explain lists all"):
        sections_at("xyzzy")
    with pytest.raises(InputError, match="not a function or class"):
        golden_source("pegasusx_ref.golden.global_local.no_such_function")


def test_the_specification_is_found_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegasusx_ref, "__file__", str(tmp_path / "pegasusx_ref" / "__init__.py"))
    with pytest.raises(InputError, match="the specification is neither in"):
        spec_folder()
    shutil.copytree(Path(__file__).parents[1] / "spec", tmp_path / "pegasusx_ref" / "spec")
    assert spec_folder() == tmp_path / "pegasusx_ref" / "spec"


def test_the_wheel_contains_every_page() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    pages = [f"spec/{page.name}" for page in (root / "spec").glob("[0-9]*.md")]
    assert included == {page: f"pegasusx_ref/{page}" for page in pages}
