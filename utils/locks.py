"""Locks on files, which the operating system frees with the process that holds them."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError
from utils.runs import writing_to


class FolderInUse(UserError):
    """Another process holds the folder's lock."""


def try_lock(file: IO[Any], shared: bool = False) -> bool:
    """Lock the open file until it is closed; False where another process holds its lock.

    Several processes may hold it together where all take it `shared`. UserError where the file system has no
    locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.name} cannot be locked ({error.strerror}): the file system has no flock; use a folder on "
            "another disk"
        ) from error
    return True


def holder_of(file: IO[bytes]) -> str:
    """The process that holds the lock, as its file names it."""
    file.seek(0)
    return file.read().decode().strip() or "another process"


def name_holder(file: IO[bytes], process: int, shared: bool = False) -> None:
    """Write into the file of the lock which process holds it; of a `shared` one, which did so last."""
    others = " or others that share it" if shared else ""
    file.truncate(0)
    file.write(f"process {process} on {socket.gethostname()}{others}\n".encode())


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the folder's lock; a second run in the same folder gets a FolderInUse naming the first.

    Several runs may hold it together where all take it `shared`. UserError where the file system has no
    locks. The operating system frees the lock with the process, however that ends.
    """
    path = folder / "run.lock"
    with ExitStack() as stack:
        with writing_to(folder):
            file = stack.enter_context(path.open("ab+", buffering=0))
        # loader processes outlive a killed run by seconds and must not hold its lock for so long
        os.register_at_fork(after_in_child=file.close)
        if not try_lock(file, shared):
            raise FolderInUse(
                f"{folder} is in use by {holder_of(file)}: wait for that run, stop it, "
                "or set another snapshot_path"
            )
        with writing_to(folder):
            name_holder(file, os.getpid(), shared)
        yield
