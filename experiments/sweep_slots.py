"""Who runs a sweep: one process per folder, or several where they share a study.

A slot is a folder whose lock a sweep holds while it lives, with an identity in `owner.id`. What was
running under the slot when its holder died is resumed by the next one that holds it.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from utils.files import atomic_write
from utils.runs import FolderInUse, create_run_folder, locked, writing_to

SLOTS = ".sweeps"


@contextmanager
def held_slot(folder: Path, shared: bool) -> Iterator[str]:
    """Hold a slot of the sweep in `folder`; gives its identity.

    Without a shared study there is one slot; FolderInUse that names its holder if it is taken.
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
