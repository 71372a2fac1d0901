"""Files that come with this package for implementations that many people have. [spec 16]"""

from importlib.resources import files
from pathlib import Path

IMPLEMENTATIONS = ("transformers", "flax")


def shipped_text(source: str | Path, folder: str, suffix: str) -> str | None:
    """Return the text of a file that comes along; None where a source names none.

    Args:
        source: the name of an implementation, or a path.
        folder: of the files.
        suffix: of their names.
    """
    if str(source) not in IMPLEMENTATIONS:
        return None
    return (files("pegasusx_ref.verification") / folder / f"{source}{suffix}").read_text(encoding="utf-8")
