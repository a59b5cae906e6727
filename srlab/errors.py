"""The one base class of every error that srlab raises on purpose."""

from importlib.util import find_spec


class SrlabError(Exception):
    """Something the user can put right: the message names what was wrong and what to do.

    The command line prints it as one line without a traceback.
    """


def require(extra: str, *modules: str) -> None:
    """Check that an optional part of srlab was installed; nothing is imported.

    Args:
        extra: as in ``pip install "srlab[course]"``.
        modules: what that part imports.

    Raises:
        SrlabError: one of the modules is missing; the message names the extra.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise SrlabError(
            f'This needs {", ".join(missing)}: pip install "srlab[{extra}]", then try again.'
        )
