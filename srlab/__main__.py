"""``python -m srlab`` is ``srlab``."""

from srlab.cli import main

main()
