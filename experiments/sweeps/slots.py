"""Slots: which processes may run a sweep. One per folder, or several where they share an Optuna study.

All hold the lock of the sweep's folder while they live, those that share a study together. A slot is a folder
in it whose lock only one process holds; `owner.id` in it has the slot's identity. What was running under it
when the process died is resumed by the next one that holds the slot, or by another sweep in the folder, which
finds the slot free.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from utils.files import atomic_write
from utils.locks import FolderInUse, locked
from utils.runs import create_run_folder, writing_to

SLOTS = ".sweeps"


@contextmanager
def held_slot(folder: Path, shared: bool) -> Iterator[str]:
    """Hold a slot of the sweep in `folder`; yields the slot's identity.

    FolderInUse, which names the holder, where another sweep is at work here, unless both are `shared`.
    """
    create_run_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(locked(folder, shared))
        for number in itertools.count():
            own = folder / SLOTS / str(number)
            create_run_folder(own)
            try:
                stack.enter_context(locked(own))
            except FolderInUse:  # by another sweep of this study
                continue
            yield _identity(own)
            return


@contextmanager
def free_slots(folder: Path) -> Iterator[set[str]]:
    """Identities of the slots whose sweeps have ended; no other process can take these meanwhile."""
    with ExitStack() as stack:
        identities = set()
        for slot in sorted((folder / SLOTS).glob("*")):
            with suppress(FolderInUse):
                stack.enter_context(locked(slot))
                identities.add(_identity(slot))
        yield identities


def _identity(folder: Path) -> str:
    path = folder / "owner.id"
    if not path.is_file():
        with writing_to(folder):
            atomic_write(path, f"{uuid.uuid4().hex}\n")
    return path.read_text(encoding="utf-8").strip()
