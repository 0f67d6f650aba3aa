"""What an earlier run left in the folder of predictions, and whether another may go on from it."""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.prediction.folder_layout import (
    COLUMNS,
    DIRECTORY,
    OUTPUT_FOLDERS,
    PARTIAL_TABLE,
    SETTINGS,
    TABLE,
    PredictionRow,
    is_used,
)
from engine.prediction.output_names import printable
from utils.errors import UserError
from utils.mappings import differing

log = logging.getLogger("wavegms")


class EarlierOutputs:
    """Predictions in `folder` before a run with these `settings` writes its own."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self._settings_file = folder / SETTINGS
        self._table, self._partial = folder / TABLE, folder / PARTIAL_TABLE

    def check_nothing_else_is_there(self) -> None:
        """UserError if files lie where predictions would go, such as the masks of a data set.

        The settings of a run that was killed before its first row may be there.
        """
        if self._settings_file.exists() and (
            (before := self._settings_there()) is None or before.keys() != self.settings.keys()
        ):
            raise UserError(
                f"{self._settings_file} is not of an earlier run, and would be replaced: name another folder by --out"
            )
        for name in OUTPUT_FOLDERS.values():
            if (other := next((self.folder / name).glob("[!.]*"), None)) is not None:
                raise UserError(
                    f"{other} is no prediction of an earlier run, and predictions would lie among such files or "
                    "replace them: name another folder by --out"
                )

    def rows_to_resume(self) -> list[PredictionRow]:
        """The rows of an earlier run; UserError where its settings differ or its table cannot be read."""
        before = self._settings_there()
        if before is None:
            raise UserError(
                f"{self._settings_file} cannot be read, so it is not known what made these predictions: "
                "--overwrite with all images starts again"
            )
        if changed := self._changed(before):
            raise UserError(
                f"{self.folder} was predicted by other settings ({changed}): use the same, "
                "--overwrite with all images, or another --out"
            )
        return self._rows()

    def rows_to_overwrite(self, is_given: Callable[[PredictionRow], bool]) -> list[PredictionRow]:
        """The rows to keep. If settings changed, only those of images given again (`is_given`); UserError if
        predictions of others would remain.

        Empty, with a warning, if the table cannot be read.
        """
        try:
            rows = self._rows()
        except UserError:
            log.warning(
                f"the rows of {self._last_table()} cannot be read: predictions of other images in {self.folder} "
                "stay without rows"
            )
            return []
        before = self._settings_there()
        changed = "settings.json cannot be read" if before is None else self._changed(before)
        if not changed:
            return rows
        given = [row for row in rows if is_given(row)]
        others = [row["file"] for row in rows if row["status"] == "ok" and not is_given(row)]
        if others:
            gone = [file for file in others if not os.path.exists(file)]  # noqa: PTH110 - never raises
            advice = (
                "use the same settings, give all images again, or name another folder by --out"
                if not gone
                else f"use the same settings, delete {self.folder}, or name another folder by --out; all images "
                f"cannot be given again, as {gone[0]} does not exist any more"
            )
            raise UserError(
                f"{self.folder} holds {len(others)} prediction{'s' * (len(others) > 1)} of other images by other "
                f"settings ({changed}), and one table would mix them: {advice}"
            )
        return given

    def _changed(self, before: Mapping[str, Any]) -> str:
        """Which settings differ from those in the folder; '' for none."""
        return "; ".join(
            f"{key}: {there} in the folder, {now} now"
            for key, (there, now) in differing(
                before, self.settings, {**before, **self.settings}
            ).items()
        )

    def _settings_there(self) -> dict[str, Any] | None:
        """The settings in the folder, None where the file cannot be read."""
        settings = self._content_of_settings()
        if settings is None:
            return None
        settings.pop(DIRECTORY, None)
        return settings

    def _content_of_settings(self) -> dict[str, Any] | None:
        """What settings.json holds, None where it cannot be read."""
        try:
            content = json.loads(self._settings_file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _last_table(self) -> Path:
        """The table that an earlier run wrote last, finished or not."""
        return self._partial if self._partial.exists() else self._table

    def _rows(self) -> list[PredictionRow]:
        """The rows of an earlier run, one a name, with paths as seen from the present directory.

        UserError without the columns.
        """
        path = self._last_table()
        # a table program may have saved it with a byte-order mark
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        # after the last line break comes nothing, or a line cut off by a kill
        reader = csv.DictReader(lines[:-1])
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise UserError(
                f"{path} has no columns {', '.join(missing)}, so it is not known what is done: "
                "--overwrite starts again"
            )
        rows = {
            row["name"]: row
            for row in reader
            if None not in row
            and None not in row.values()
            and row["status"] in ("ok", "failed")
            and _is_plain(row["name"])
        }
        directory = (self._content_of_settings() or {}).get(DIRECTORY)
        if isinstance(directory, str) and Path(directory) != Path.cwd():
            for row in rows.values():
                row["file"] = _from_here(row["file"], directory)
        return list(rows.values())


def check_unused(folder: Path, may_be_used: bool) -> None:
    """UserError if the folder holds predictions and nothing says what to do with them."""
    if is_used(folder) and not may_be_used:
        raise UserError(
            f"{folder} already holds predictions: --resume continues them, --overwrite "
            "starts again, or name another folder by --out"
        )


def places() -> Callable[[str], Path]:
    """A function from a file, as named in a table, to its absolute path; a link itself is not followed."""
    resolve = functools.cache(Path.resolve)
    return lambda file: resolve(Path(file).parent) / Path(file).name


def _is_plain(name: str) -> bool:
    """Whether a name leads into no other folder; one in a table that was edited may."""
    return name != "" and Path(name).name == name


def _from_here(file: str, directory: str) -> str:
    """The absolute path of `file`, which is named as seen from `directory`.

    `file` itself if it exists seen from the present directory only, as when images and predictions were
    moved together.
    """
    there = str(Path(directory) / file)
    if os.path.exists(file) and not os.path.exists(there):  # noqa: PTH110 - never raises
        return file
    return printable(there)
