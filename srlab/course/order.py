"""When cells are run out of order: say which one comes first, in place of a bare NameError."""

import symtable
import sys
from pathlib import Path
from typing import Any

from srlab.course import paths


def explain_missing_names(notebook: Path) -> None:
    """From now on, a NameError in this kernel names the cell of the chapter that makes the name.

    Does nothing outside IPython.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if not shell:
        return

    def explain(
        shell: Any, kind: type, error: NameError, trace: Any, tb_offset: Any = None
    ) -> None:
        first = cell_that_makes(error.name or "", notebook)
        if first:
            error.args = (
                f"`{error.name}` is made in an earlier cell. Run this one first: {first}",
            )
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    shell.set_custom_exc((NameError,), explain)


def cell_that_makes(name: str, notebook: Path) -> str | None:
    """The first line of the first cell of a notebook that binds ``name``, or None."""
    for cell in paths.read_json(notebook).get("cells", ()):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and name in _made(source):
            return source.strip().splitlines()[0]
    return None


def _made(source: str) -> set[str]:
    try:
        symbols = symtable.symtable(source, "cell", "exec").get_symbols()
    except SyntaxError:  # a magic, or an exercise that is half written
        return set()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
