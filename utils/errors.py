"""Errors that are meant for the user."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A problem that the user can fix: what was found, what was expected, what to do.

    Entry points print the message without a traceback and exit with code 2.
    """


def listed(items: Iterable[str], limit: int, separator: str = ", ") -> str:
    """Items for a message: the first `limit`, then how many more there are."""
    every = list(items)
    shown = separator.join(every[:limit])
    if len(every) <= limit:
        return shown
    between = separator if "\n" in separator else " "
    return f"{shown}{between}and {len(every) - limit} more"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
