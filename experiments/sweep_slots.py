"""Slots: which processes may run a sweep. One per folder, or several where they share an Optuna study.

A slot is a folder whose lock the process holds while it lives; `owner.id` in it has the slot's identity.
The next process that holds the slot resumes what was running under it when the last one died.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from utils.files import atomic_write
from utils.locks import FolderInUse, locked
from utils.runs import create_run_folder, writing_to

SLOTS = ".sweeps"


@contextmanager
def held_slot(folder: Path, shared: bool) -> Iterator[str]:
    """Hold a slot of the sweep in `folder`; yields the slot's identity.

    Without a shared study there is one slot; FolderInUse, which names the holder, if it is taken.
    """
    create_run_folder(folder)
    with ExitStack() as stack:
        if not shared:
            stack.enter_context(locked(folder))
            yield _identity(folder)
            return
        for number in itertools.count():
            own = folder / SLOTS / str(number)
            create_run_folder(own)
            try:
                stack.enter_context(locked(own))
            except FolderInUse:  # by another sweep of this study
                continue
            yield _identity(own)
            return


def _identity(folder: Path) -> str:
    path = folder / "owner.id"
    if not path.is_file():
        with writing_to(folder):
            atomic_write(path, f"{uuid.uuid4().hex}\n")
    return path.read_text().strip()
