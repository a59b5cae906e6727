"""The one base class of every error that srlab raises on purpose."""


class SrlabError(Exception):
    """Something the user can put right: the message names what was wrong and what to do.

    The command line prints it as one line without a traceback.
    """
