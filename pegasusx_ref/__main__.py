"""``python -m pegasusx_ref``, the same as ``pegasusx-ref``."""

from pegasusx_ref.cli import main

main(prog_name="pegasusx-ref")
