"""Errors that are meant for the person at the keyboard."""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can mend: what was found, what was expected, what to do.

    Entry points print the message without a traceback and exit with code 2.
    """
