"""The documentation site: its navigation and its API index are complete. CI builds it with `mkdocs build --strict`."""

import re
from pathlib import Path

from pegasusx_ref import public
from pegasusx_ref.study.explore.mathml import as_mathml

ROOT = Path(__file__).parents[1]


def test_the_navigation_follows_the_reading_order() -> None:
    readme = (ROOT / "spec" / "README.md").read_text(encoding="utf-8")
    chapters = re.findall(r"^\| \[\d+\]\(([\w.-]+)\)", readme, re.MULTILINE)
    navigation = re.findall(r"- spec/(\d[\w.-]+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert navigation == chapters
    assert len(chapters) >= 17


def test_the_api_index_documents_every_public_name() -> None:
    index = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: pegasusx_ref\.(?:verification\.)?(\w+)$", index, re.MULTILINE)) == sorted(
        public.__all__
    )


def test_every_api_page_is_a_room_of_the_package() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    assert pages
    for page in pages:
        assert (ROOT / "pegasusx_ref" / page / "__init__.py").exists()
        assert f"::: pegasusx_ref.{page}\n" in (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")


def test_an_underscore_in_the_name_of_a_setting_is_not_a_subscript() -> None:
    for latex in (r"\mathrm{min\_length}", r"\text{min\_length}"):
        (element,) = as_mathml(latex)
        assert "<msub>" not in element
        text = re.sub("<[^>]+>", "", element).replace("&#x0005F;", "_")
        assert text == "min_length"
