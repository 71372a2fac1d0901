"""The embedded checkpoint: a small PEGASUS-X that writes the synopsis of a Debian package. README.md is its card."""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent
