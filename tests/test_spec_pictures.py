"""The committed pictures of the specification are up to date."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "spec" / "pictures"


def descriptions(png: bytes) -> list[str]:
    """Read the "Description" texts of a PNG file."""
    found, position = [], 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        if kind == b"tEXt" and content.startswith(b"Description\0"):
            found.append(content.partition(b"\0")[2].decode())
        position += 12 + length
    return found


@pytest.fixture(scope="module")
def spec_pictures() -> Any:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[study]'")
    import spec_pictures

    return {name: spec_pictures.fingerprint(figure) for name, figure in spec_pictures.figures().items()}


def test_pictures_have_the_fingerprints_of_the_current_figures(spec_pictures: dict[str, str]) -> None:
    stored = {path.name: descriptions(path.read_bytes()) for path in FOLDER.iterdir()}
    remedy = "review the difference, then run: python tools/spec_pictures.py"
    assert stored == {name: [fingerprint] for name, fingerprint in spec_pictures.items()}, remedy


def test_every_picture_is_small_and_shown_on_a_page() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "spec").glob("*.md"))
    shown = set(re.findall(r'src="pictures/([\w.-]+)"', pages))
    assert shown == {path.name for path in FOLDER.iterdir()}
    assert all(path.stat().st_size < 100_000 for path in FOLDER.iterdir())
