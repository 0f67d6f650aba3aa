"""The state of a training run on disk, `last.pth`: everything that an exact resume needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import json_object
from utils.runs import writing_to
from utils.tensor_files import load_tensors, save_tensors

log = logging.getLogger("wavegms")

LAST_STATE = "last.pth"
STATE_BEFORE = "last.previous.pth"
FORMAT = 1


def state_files(folder: Path) -> list[Path]:
    """Where the states of a run may lie, the newest first."""
    return [folder / name for name in (LAST_STATE, f"{LAST_STATE}.new", STATE_BEFORE)]


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `last.pth`, keeping the one before it until the new one is whole.

    UserError if that fails; what was saved before is then still there.
    """
    last, before = folder / LAST_STATE, folder / STATE_BEFORE
    incoming = folder / f"{LAST_STATE}.new"
    with writing_to(folder):
        save_tensors(incoming, {"format": FORMAT} | state)
        if last.exists():
            last.replace(before)
        incoming.replace(last)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot do it
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_version(folder: Path, state: Mapping[str, Any]) -> None:
    """UserError where an older version of this code saved the `state` of the run in `folder`."""
    if "progress" not in state or "loss_names" in state:
        return
    commit = json_object(folder / "environment.json").get("commit")
    started = f" (the run was started with commit {commit})" if commit else ""
    raise UserError(
        f"the state in {folder} was saved by an older version of this code: go on with that one{started}, or start "
        "again with resume=never"
    )


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole state in `folder`, or None if the run has not saved one.

    A damaged file is reported and the one before it is taken. UserError if all are damaged.
    """
    damaged = []
    for path in state_files(folder):
        if not path.exists():
            continue
        try:
            state = load_tensors(path)
            if not isinstance(state, dict) or state.get("format") != FORMAT:
                raise ValueError("is not a training state of this version")
        except (OSError, ValueError) as error:
            log.warning("%s cannot be used (%s); trying the one before", path, error)
            damaged.append(str(path))
            continue
        return state
    if damaged:
        raise UserError(
            f"no saved state of this run can be read: {', '.join(damaged)}. "
            "Delete them, or set resume=never, to start again"
        )
    return None
