"""The embedded checkpoint: a small PEGASUS-X for synopses of Debian packages. README.md is its model card."""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent
