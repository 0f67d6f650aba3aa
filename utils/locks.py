"""Locks on files, which the operating system frees with the process that holds them."""

from __future__ import annotations

import fcntl
from typing import IO, Any

from utils.errors import UserError


def try_lock(file: IO[Any]) -> bool:
    """Lock the open file until it is closed; False where another process holds its lock.

    UserError where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.name} cannot be locked ({error.strerror}): the file system has no flock; use a folder on "
            "another disk"
        ) from error
    return True
