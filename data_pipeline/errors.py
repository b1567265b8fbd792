"""The one exception that this package raises for anything a user can cause or repair."""

from __future__ import annotations


class DataError(Exception):
    """A problem with text, a dataset or a setting, told in one sentence.

    The message names the thing (file, shard, block, value), the rule that it breaks and what to do about it, so that
    a command line can print it as it is, without a traceback. Programming errors keep their built-in exceptions.
    """


class Interrupted(DataError):
    """A failure that another try need not meet again (a server, a connection, a worker): what was finished is kept."""
