"""The embedded checkpoint: a small PEGASUS-X for synopses of Debian packages. README.md is its model card."""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent
NO_MODEL = (
    "no model was given: using the embedded checkpoint, which can only write the one-line synopsis of a Debian package"
)
