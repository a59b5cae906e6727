"""Show a component's real source in a chapter, so that page and package cannot drift apart."""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from srlab.course.paths import CourseError


@dataclass(frozen=True, repr=False)
class Source:
    """Source code that a notebook displays: highlighted as HTML, plain as text.

    The text is what nbval compares: a changed component makes the chapter that shows it stale.
    """

    name: str
    code: str

    def __repr__(self) -> str:
        return f"# {self.name}\n{self.code}"

    def _repr_html_(self) -> str:
        from jupyterlab_pygments import JupyterStyle
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        # The colours are JupyterLab's own variables, so they follow its light and dark themes.
        # Where there are none (GitHub) the code takes the page's colour.
        font = "font-family: var(--jp-code-font-family, monospace)"
        style = HtmlFormatter(style=JupyterStyle, noclasses=True, prestyles=font)
        return highlight(repr(self), PythonLexer(), style)


def source(obj: Any, docstring: bool = True, part: str = "") -> Source:
    """The source of a class, function or module, headed by its qualified name.

    Args:
        obj: the component; for an instance its class is shown.
        docstring: ``False`` leaves out the component's own docstring.
        part: how a statement in it begins, such as ``"with run:"``: only this statement is shown,
            with all that it holds.

    Raises:
        CourseError: it has no Python source, or no such statement.
    """
    if not (inspect.ismodule(obj) or inspect.isclass(obj) or inspect.isroutine(obj)):
        obj = type(obj)
    name = obj.__name__ if inspect.ismodule(obj) else f"{obj.__module__}.{obj.__qualname__}"
    try:
        code = textwrap.dedent(inspect.getsource(obj)).rstrip()
    except (OSError, TypeError) as error:
        raise CourseError(f"{name} has no Python source to show.") from error
    if part:
        return Source(f"from {name}", _statement(code, part, name))
    return Source(name, code if docstring else _without_docstring(code, inspect.ismodule(obj)))


def _statement(code: str, beginning: str, name: str) -> str:
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.stmt) and lines[node.lineno - 1].strip().startswith(beginning):
            return textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    raise CourseError(f"{name} has no statement that begins with {beginning!r}.")


def _without_docstring(code: str, is_module: bool) -> str:
    tree = ast.parse(code)
    owner: Any = tree if is_module else tree.body[0]
    if ast.get_docstring(owner) is None or len(owner.body) == 1:
        return code
    lines = code.splitlines()
    first = owner.body[0]
    # With the docstring goes the blank line below it.
    below = next(n for n in range(first.end_lineno, len(lines)) if lines[n].strip())
    return "\n".join(lines[: first.lineno - 1] + lines[below:])
