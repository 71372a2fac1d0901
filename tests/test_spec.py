"""Spec sections and golden functions are in one-to-one correspondence."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pegasusx_ref"
SECTION = re.compile(r"^## (\d+\.\d+) ", re.MULTILINE)
CODE = re.compile(r"^Code: \[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)$", re.MULTILINE)


def sections() -> dict[str, str]:
    """Text of every numbered section of the spec by number."""
    found: dict[str, str] = {}
    for page in sorted((ROOT / "spec").glob("[0-9]*.md")):
        text = page.read_text(encoding="utf-8")
        for match in SECTION.finditer(text):
            number = match.group(1)
            assert number not in found, f"section {number} twice"
            assert int(page.name.split("-")[0]) == int(number.split(".")[0]), f"section {number} in {page.name}"
            rest = text[match.end() :]
            found[number] = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return found


def functions() -> dict[str, tuple[str, str]]:
    """Dotted name and file of every function or class whose docstring carries a section's number."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(ROOT)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        for name, node in definitions(ast.parse(file.read_text(encoding="utf-8"))):
            for number in re.findall(r"\[spec (\d+\.\d+)\]", ast.get_docstring(node) or ""):
                assert number not in found, f"[spec {number}] twice: {found[number]} and {name}"
                found[number] = (f"{module}.{name}", relative.as_posix())
    return found


def definitions(tree: ast.Module) -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    found: list[tuple[str, ast.FunctionDef | ast.ClassDef]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((node.name, node))
        if isinstance(node, ast.ClassDef):
            found += [(f"{node.name}.{n.name}", n) for n in node.body if isinstance(n, ast.FunctionDef)]
    return found


SECTIONS, FUNCTIONS = sections(), functions()
WITHOUT_EXAMPLE = {"16.12"}  # transformers, which the pages do without
IN_ORDER = sorted(FUNCTIONS, key=lambda number: [int(part) for part in str(number).split(".")])


def test_every_section_has_its_function_and_every_function_its_section() -> None:
    assert SECTIONS.keys() == FUNCTIONS.keys()
    assert len(SECTIONS) > 50


@pytest.mark.parametrize("number", IN_ORDER)
def test_a_section_links_its_function(number: str) -> None:
    links = CODE.findall(SECTIONS[number])
    assert links == [FUNCTIONS[number]], f"section {number} needs one line: Code: [`name`](../file)"
    module, _, name = links[0][0].rpartition(".")
    owner: Any
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:  # a method: the class comes before it
        module, _, class_name = module.rpartition(".")
        owner = getattr(importlib.import_module(module), class_name)
    assert hasattr(owner, name)


def prose_of(section: str) -> str:
    """Leave out code, equations, tables and the line that links the function."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|^Code: .*?$|^\|.*?$", "", section, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


@pytest.mark.parametrize("number", IN_ORDER)
def test_a_section_explains_and_shows(number: str) -> None:
    section = SECTIONS[number]
    words, sentences = prose_of(section).split(), re.findall(r"[.:](?: |$)", prose_of(section))
    assert len(words) >= 15, f"section {number} says {len(words)} words"
    assert len(sentences) >= 2, f"section {number} has {len(sentences)} sentences"
    assert number in WITHOUT_EXAMPLE or "\n>>> " in section, f"section {number} has no example"


def test_every_note_on_a_difference_has_its_test() -> None:
    chapter = (ROOT / "spec" / "17-differences.md").read_text(encoding="utf-8")
    notes = re.findall(r"^### N(\d+)\. ", chapter, re.MULTILINE)
    tests = re.findall(r"^def test_n(\d+)_", (ROOT / "tests" / "test_differences.py").read_text(), re.MULTILINE)
    assert [int(number) for number in notes] == list(range(1, len(notes) + 1))
    assert set(tests) == set(notes)
    assert len(notes) >= 25


@pytest.mark.parametrize("page", sorted((ROOT / "spec").glob("*.md")), ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, anchor = "".join(target).partition("#")
        if path.startswith("https:"):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {anchor_of(heading) for heading in headings}, f"{page.name}: {path}#{anchor}"


def anchor_of(heading: str) -> str:
    """Name a heading as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_is_in_the_reading_order() -> None:
    readme = (ROOT / "spec" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "spec").glob("[0-9]*.md"):
        assert page.name in readme
