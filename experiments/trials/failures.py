"""Stopping a sweep in which nothing works, before it has tried all of its trials in vain."""

from __future__ import annotations

from pathlib import Path

from experiments.trials.records import RECORD, read_record
from experiments.trials.trial import Outcome
from utils.errors import UserError

MAX_IN_A_ROW = 3


class Failures:
    """The trials that have failed one after the other, of a sweep in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._in_a_row = folder, 0

    def check(self, outcome: Outcome) -> None:
        """UserError after MAX_IN_A_ROW trainings that failed, where none in the folder has ever succeeded.

        Trials that were skipped do not count.
        """
        if not outcome.ran:
            return
        failed = outcome.record.status == "failed" and not outcome.record.trained
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self._in_a_row >= MAX_IN_A_ROW and not _anything_works(self._folder):
            raise UserError(
                f"{self._in_a_row} trials have failed one after the other, and none was trained yet. The last one, "
                f"{outcome.trial.name}:\n  {outcome.record.error}\nIf they have a common cause, remove it and try them "
                "again by --retry-failed; the same command without it goes on with the other trials"
            )


def _anything_works(folder: Path) -> bool:
    """Whether a trial in the folder is trained, or got so far that it was pruned."""
    records = (read_record(path.parent) for path in folder.glob(f"*/epochs_*/{RECORD}"))
    return any(r is not None and (r.trained or r.status == "pruned") for r in records)
