"""Patience with the storage of a search: other processes lock it, and its server may be away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, first_line

if TYPE_CHECKING:
    import optuna

OPENING_PAUSES = (0.2, 0.4, 0.8, 1.6)  # seconds before a storage is opened again
PATIENCE = 60.0  # seconds for which an operation is tried again
LONGEST_PAUSE = 5.0  # seconds between two tries


def open_patiently(opening: Callable[[], optuna.Study], file: Path | None) -> optuna.Study:
    """The study that `opening` gives: tried a few times, since of several processes that make the storage's
    tables at once all but one fail. The operations of its storage are patient.

    `file` is the storage where that is a file in the sweep's folder, for messages.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    for pause in OPENING_PAUSES:
        try:
            study = opening()
            break
        except (SQLAlchemyError, StorageInternalError):
            time.sleep(pause)
    else:
        study = opening()
    storage, tries = study._storage, _Tries(file)
    for name in (name for name in dir(storage) if not name.startswith("_")):
        setattr(storage, name, tries.of(getattr(storage, name)))
    return study


def named_cause(error: Exception, in_full: bool = False) -> str:
    """What the database has reported: `OperationalError`, or `in_full` `OperationalError: disk is full`.

    In full only where the storage is a file here: the address of another one may hold a password.
    """
    cause = error.__cause__ or error
    text = f": {first_line(getattr(cause, 'orig', None) or cause)}" if in_full else ""
    return f"{type(cause).__name__}{text}"


class _Tries:
    """Lets the operations of a storage be tried again for PATIENCE while it does not answer.

    After that UserError; what follows is tried once, until the storage answers again.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._given_up = False

    def of(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import InterfaceError, OperationalError

        @wraps(operation)
        def patient(*args: Any, **kwargs: Any) -> Any:
            end, pause = time.monotonic() + PATIENCE, 0.1
            while True:
                try:
                    result = operation(*args, **kwargs)
                except (StorageInternalError, InterfaceError, OperationalError) as error:
                    if self._given_up or time.monotonic() + pause > end:
                        self._given_up = True
                        storage = self._file or "the storage of the study"
                        cause = named_cause(error, in_full=self._file is not None)
                        raise UserError(
                            f"{storage} could not be used for {PATIENCE:.0f} s ({cause}). Once it can, the same "
                            "command resumes the search"
                        ) from error
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    self._given_up = False
                    return result

        return patient
