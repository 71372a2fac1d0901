"""MkDocs hook: publish the Markdown files of the repository from where they are, and link them with the API pages.

Every page keeps its path, so the links between pages work as on GitHub. A link to a module of the package leads to its
API page, a link to another source file or folder to a page that shows it. Equations become MathML at build time, and
`[spec n.m]` in a docstring becomes a link to the section.
"""

import html
import posixpath
import re
from pathlib import Path

from markupsafe import Markup
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

from pegasusx_ref.study.explore.mathml import as_mathml

ROOT = Path(__file__).parents[1]
PUBLISHED = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "spec/**/*.md", "spec/pictures/*.png", "backends/README.md"),
    *("benchmarks/**/*.md", "benchmarks/results/*.png", "pegasusx_ref/demo/README.md"),
)
# Of files in a folder that is listed.
LANGUAGES = {".py": "python", ".cpp": "cpp", ".hpp": "cpp", ".h": "cpp", ".cu": "cuda", ".cuh": "cuda"}

FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^]]*)\]\(([^)\s#]+)(#[^)]*)?\)")
PICTURE = re.compile(r'<img src="([^"]+)" width="(\d+)" alt="([^"]+)">')
EQUATION = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[])]</\1>', re.DOTALL)
MARK = re.compile(r"\[spec (\d+(?:\.\d+)?(?:, \d+(?:\.\d+)?)*)\]")
HEADING = re.compile(r"^##? (\d+(?:\.\d+)?) .*$", re.MULTILINE)

log = get_plugin_logger("hooks")
slug = slugify(case="lower")


def sections() -> dict[str, str]:
    """Map the number of every chapter and section to its address, as spec/07-global-local.md#71-local-attention."""
    found = {}
    for page in sorted((ROOT / "spec").glob("[0-9]*.md")):
        for heading in HEADING.finditer(page.read_text(encoding="utf-8")):
            number = heading[1]
            anchor = "#" + slug(heading[0].lstrip("# "), "-") if "." in number else ""
            found[number] = f"spec/{page.name}{anchor}"
    return found


SECTIONS = sections()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the published files, and a page for every source file or folder that they link."""
    paths = sorted({path for pattern in PUBLISHED for path in ROOT.glob(pattern)})
    for path in paths:
        files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    for path in paths:
        if path.suffix == ".md":
            text = FENCED.sub("", path.read_text(encoding="utf-8"))
            for _, target, _ in LINK.findall(text):
                add_source(files, config, (path.parent / target).resolve())
    return files


def add_source(files: Files, config: MkDocsConfig, path: Path) -> None:
    """Add a page that shows a file or lists a folder, unless the target is published, absent or an API page."""
    if not path.exists() or not path.is_relative_to(ROOT):
        return  # MkDocs reports a link to nothing
    name = path.relative_to(ROOT).as_posix()
    if files.get_file_from_path(name) or files.get_file_from_path(source_page(name)) or module_of(name):
        return
    if path.is_dir():
        children = sorted(child for child in path.iterdir() if child.is_file())
        for child in children:
            if child.suffix in LANGUAGES:
                add_source(files, config, child)
        lines = []
        for child in children:
            shown = files.get_file_from_path(source_page(f"{name}/{child.name}"))
            title = f"[`{child.name}`]({path.name}/{child.name}.md)" if shown else f"`{child.name}`"
            lines.append(f"- {title}, {child.stat().st_size:,} bytes")
        content = "\n".join(lines)
    elif path.suffix in LANGUAGES or path.stat().st_size < 10_000:
        content = f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}````"
    else:
        content = f"{path.stat().st_size:,} bytes, in the repository."
    hidden = "---\nsearch: {exclude: true}\n---\n"
    files.append(File.generated(config, source_page(name), content=f"{hidden}# `{name}`\n\n{content}\n"))


def source_page(name: str) -> str:
    """Name the page that shows a source file or lists a folder."""
    return f"source/{name}.md"


def module_of(name: str) -> str | None:
    """Name the module of a file if an API page documents it."""
    room = re.match(r"pegasusx_ref/(\w+)/.*\.py$", name)
    if room is None or not (ROOT / "docs" / "api" / f"{room[1]}.md").exists():
        return None
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to source files, pictures with a width, and fences with a prompt or inside a list."""
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        name = posixpath.normpath(posixpath.join(here, target))
        number = text.removeprefix("spec ")
        if not anchor and SECTIONS.get(number, "").startswith(f"{name}#"):
            return f"[{text}]({target}#{SECTIONS[number].partition('#')[2]})"
        if module := module_of(name):
            dotted = text.strip("`")
            return f"[{text}][{dotted if dotted.startswith(module + '.') else module}]"
        if files.get_file_from_path(source_page(name)):
            return f"[{text}]({posixpath.relpath(source_page(name), here or '.')})"
        return match[0]

    def rewritten(part: str) -> str:
        if part.lstrip().startswith("```"):
            part = re.sub(r"^ {3}(?=\S| )", "    ", part, flags=re.MULTILINE) if part.startswith("   `") else part
            return re.sub(r"^( *)```python\n(?= *>>> )", r"\1```pycon\n", part)
        part = PICTURE.sub(r'![\3](\1){ width="\2" }', part)
        return LINK.sub(link, part)

    return "".join(rewritten(part) for part in FENCED.split(markdown))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Set the equations, and link the marks of specification sections."""

    def equation(match: re.Match[str]) -> str:
        parts = as_mathml(html.unescape(match[2]))
        if match[1] == "div":
            return f'<div class="equation">{"".join(parts)}</div>'
        return "".join(parts).replace('display="block"', 'display="inline"')

    def mark(match: re.Match[str]) -> str:
        links = [section_link(number, page, files) for number in match[1].split(", ")]
        return f'<span class="spec-mark">[spec {", ".join(links)}]</span>'

    return MARK.sub(mark, EQUATION.sub(equation, content))


def section_link(number: str, page: Page, files: Files) -> str:
    """Link a section from a page, or warn that there is none."""
    path, _, anchor = SECTIONS.get(number, "").partition("#")
    target = files.get_file_from_path(path)
    if target is None:
        log.warning("%s: [spec %s] names no section", page.file.src_uri, number)
        return number
    address = target.url_relative_to(page.file) + (f"#{anchor}" if anchor else "")
    return Markup('<a href="{}">{}</a>').format(address, number)
