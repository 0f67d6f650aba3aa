"""The folder that predictions go to: files of each image, a table, and the settings behind it.

    masks/<name>.png            0 or 255
    probabilities/<name>.png    probability x 65535, 16 bits
    uncertainties/<name>.png    standard deviation x 65535, 16 bits; with test-time augmentation
    overlays/<name>.jpg
    predictions.csv             one row per image
    settings.json

Every file appears whole or not at all. Rows are appended to predictions.partial.csv as images are
done, each row after the files of its image, so that a stopped run can be resumed. A relative path in `file`
starts at the `directory` that settings.json names.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.prediction.inputs import OUTPUT_FOLDERS, Job, printable, unique_names
from engine.prediction.predict import Segmentation
from utils.errors import UserError
from utils.files import atomic_write, try_to_write
from utils.images import encode_image, to_16_bit
from utils.overlay import draw_overlay
from utils.tables import csv_text

log = logging.getLogger("wavegms")
TABLE, PARTIAL_TABLE = "predictions.csv", "predictions.partial.csv"
DIRECTORY = "directory"  # where the run was started; beside the settings, and none of them
COLUMNS = (
    "name",
    "file",
    "width",
    "height",
    "area_pixels",
    "area_percent",
    "mean_uncertainty",
    "status",
    "message",
)

PredictionRow = dict[str, str]


class OutputFolder:
    """Predictions on disk.

    Args:
        folder: made if it does not exist.
        settings: what the files depend on; kept, and compared when a run is resumed.
        overlay: "jpg", "png" or "none".
        tta: whether there is an uncertainty.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], overlay: str, tta: bool, threshold: float
    ) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.threshold = threshold
        self._overlay = overlay
        self._tta = tta
        self._settings_file = folder / "settings.json"
        self._table, self._partial = folder / TABLE, folder / PARTIAL_TABLE
        self._rows: dict[str, PredictionRow] = {}
        self._earlier: list[PredictionRow] = []  # of images that are not among the jobs of this run
        self._names: dict[Path, str] = {}  # of the jobs' images
        self._journal: IO[str] | None = None

    def open(self, jobs: Sequence[Job], resume: bool, overwrite: bool) -> list[Job]:
        """Make the folder ready for writing; returns the jobs that are still to be done, under their names.

        Rows of other images stay, and their names are not given to the jobs. To resume, finished images keep
        their names. To overwrite, the earlier files of an image that gets another name are deleted.

        UserError
        - if the folder holds predictions, and neither `resume` nor `overwrite` is set;
        - if other files lie where predictions would go, such as the masks of a data set;
        - to resume, if the settings differ or the table cannot be read;
        - to overwrite, if there are predictions of other images and the settings differ;
        - if the folder cannot be written to.
        """
        used = is_used(self.folder)
        check_unused(self.folder, resume or overwrite)
        if not used:
            self._check_nothing_else_is_there()
        place_of = _places()
        places = Counter(place_of(job.file) for job in jobs)
        known: list[PredictionRow] = []
        if used and resume:
            self._check_settings()
            known = self._known_rows()
        elif used:
            known = self._rows_to_overwrite(lambda row: place_of(row["file"]) in places)
        self._earlier = [row for row in known if place_of(row["file"]) not in places]
        done = [row for row in known if row["status"] == "ok"]
        # two files whose names differ in what cannot be printed are the same in a table
        own = {place: row for row in done if places[place := place_of(row["file"])] == 1}
        paths = {place_of(job.file): job.path for job in jobs}
        given = {row["name"]: Path(row["file"]) for row in self._earlier}
        if resume:
            given |= {row["name"]: paths[place] for place, row in own.items()}
        if given:
            names = unique_names([job.path for job in jobs], given)
            jobs = [replace(job, name=names[job.path]) for job in jobs]
        self._names = {job.path: job.name for job in jobs}
        if resume:
            rows = [(job, own.get(place_of(job.file))) for job in jobs]
            self._rows = {job.name: row for job, row in rows if row and self._is_done(job)}
        replaced = {row["name"] for row in own.values()} - {*self._names.values()}
        with writing_predictions(self.folder):
            for name in replaced:
                self._delete_files(name)
            for name in OUTPUT_FOLDERS.values():
                for stale in (self.folder / name).glob(".*.tmp"):  # of a run that was killed
                    stale.unlink(missing_ok=True)
            written = {**self.settings, DIRECTORY: str(Path.cwd())}
            atomic_write(self._settings_file, json.dumps(written, indent=2) + "\n")
            atomic_write(self._partial, csv_text(COLUMNS, [*self._earlier, *self._rows.values()]))
            self._table.unlink(missing_ok=True)
            self._journal = self._partial.open("a", encoding="utf-8")
        return [job for job in jobs if job.name not in self._rows]

    def paths(self, name: str) -> dict[str, Path]:
        """The files of one image by what they hold."""
        endings = {"mask": "png", "probability": "png"}
        if self._tta:
            endings["uncertainty"] = "png"
        if self._overlay != "none":
            endings["overlay"] = self._overlay
        return {
            what: self.folder / OUTPUT_FOLDERS[what] / f"{name}.{ending}"
            for what, ending in endings.items()
        }

    def _other_paths(self, name: str) -> list[Path]:
        """The files of an image that this run does not write, but one with other settings may have."""
        files = [(what, "png") for what in OUTPUT_FOLDERS] + [("overlay", "jpg")]
        possible = [self.folder / OUTPUT_FOLDERS[w] / f"{name}.{ending}" for w, ending in files]
        return [path for path in possible if path not in self.paths(name).values()]

    def write(
        self, job: Job, pixels: np.ndarray, note: str, segmentation: Segmentation
    ) -> PredictionRow:
        """Write the files of an image in place of all that an earlier run wrote; returns its row.

        May run in several threads.

        UserError where the model's output is not a number, or a side is too long for JPEG or PNG;
        OSError where a file cannot be written.
        """
        if not np.isfinite(segmentation.probability).all():
            raise UserError(
                "the model's output is not a number: the checkpoint is damaged, or it needs "
                "precision: fp32"
            )
        mask = segmentation.mask(self.threshold)
        uncertainty = segmentation.uncertainty
        maps = {"probability": segmentation.probability}
        if uncertainty is not None:
            maps["uncertainty"] = uncertainty
        for what, path in self.paths(job.name).items():
            if what == "mask":
                image = mask.astype(np.uint8) * 255
            elif what == "overlay":
                image = draw_overlay(pixels, mask)[..., ::-1]
            else:
                image = to_16_bit(maps[what])
            atomic_write(path, encode_image(path.suffix, image))
        for path in self._other_paths(job.name):
            path.unlink(missing_ok=True)
        area = int(mask.sum())
        return {
            "name": job.name,
            "file": job.file,
            "width": str(mask.shape[1]),
            "height": str(mask.shape[0]),
            "area_pixels": str(area),
            "area_percent": f"{100 * area / mask.size:.4f}",
            "mean_uncertainty": "" if uncertainty is None else f"{uncertainty.mean():.6f}",
            "status": "ok",
            "message": note,
        }

    def fail(self, job: Job, reason: str) -> PredictionRow:
        """The row of an image that could not be predicted; its files of an earlier run are deleted."""
        self._delete_files(job.name)
        empty = dict.fromkeys(COLUMNS, "")
        return empty | {
            "name": job.name,
            "file": job.file,
            "status": "failed",
            "message": " ".join(reason.split()),
        }

    def _delete_files(self, name: str) -> None:
        for path in (*self.paths(name).values(), *self._other_paths(name)):
            path.unlink(missing_ok=True)

    def add(self, row: PredictionRow) -> None:
        """Take an image's row into the table."""
        assert self._journal is not None
        self._rows[row["name"]] = row
        self._journal.write(csv_text(COLUMNS, [row], header=False))
        self._journal.flush()

    def close(self, jobs: Sequence[Job]) -> list[PredictionRow]:
        """Write the table, rows of earlier runs first, then the jobs in their order; returns the failed.

        Warns of masks that are in no row.
        """
        assert self._journal is not None
        rows = [self._rows[self._names[job.path]] for job in jobs]
        with writing_predictions(self.folder):
            self._journal.close()
            atomic_write(self._table, csv_text(COLUMNS, [*self._earlier, *rows]))
            self._partial.unlink()
        masks = self.folder / OUTPUT_FOLDERS["mask"]
        listed = {row["name"] for row in (*self._earlier, *rows) if row["status"] == "ok"}
        others = sorted({path.stem for path in masks.glob("[!.]*.png")} - listed)
        if others:
            log.warning(
                "%d file%s in %s that no row of %s names, such as %s.png: predictions of an earlier run, or files "
                "of your own",
                *(len(others), "s" * (len(others) > 1), masks, TABLE, others[0]),
            )
        return [row for row in rows if row["status"] != "ok"]

    def _check_nothing_else_is_there(self) -> None:
        """UserError if files lie where predictions would go, such as the masks of a data set.

        The settings of a run that was killed before its first row may be there.
        """
        if self._settings_file.exists() and (
            (before := self._earlier_settings()) is None or before.keys() != self.settings.keys()
        ):
            raise UserError(
                f"{self._settings_file} is not of an earlier run, and would be replaced: name another folder by --out"
            )
        for name in OUTPUT_FOLDERS.values():
            if (other := next((self.folder / name).glob("*"), None)) is not None:
                raise UserError(
                    f"{other} is no prediction of an earlier run, and predictions would lie among such files or "
                    "replace them: name another folder by --out"
                )

    def _settings_content(self) -> dict[str, Any] | None:
        """What settings.json holds, None where it cannot be read."""
        try:
            content = json.loads(self._settings_file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _earlier_settings(self) -> dict[str, Any] | None:
        """The settings in the folder, None where the file cannot be read."""
        settings = self._settings_content()
        if settings is None:
            return None
        settings.pop(DIRECTORY, None)
        if settings.get("tta"):  # files from before there was another number do not say it
            settings.setdefault("orientations", 8)
        return settings

    def _check_settings(self) -> None:
        before = self._earlier_settings()
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

    def _changed(self, before: Mapping[str, Any]) -> str:
        """Which settings differ from those in the folder; '' for none."""
        return "; ".join(
            f"{key}: {before.get(key)} in the folder, {self.settings.get(key)} now"
            for key in {**before, **self.settings}
            if before.get(key) != self.settings.get(key)
        )

    def _rows_to_overwrite(self, is_given: Callable[[PredictionRow], bool]) -> list[PredictionRow]:
        """The rows of an earlier run; those not `is_given` by the inputs only where settings are equal.

        UserError where others hold predictions by other settings.
        """
        try:
            rows = self._known_rows()
        except UserError:
            log.warning(
                "the rows of %s cannot be read: predictions of other images in %s stay without rows",
                self._last_table(),
                self.folder,
            )
            return []
        before = self._earlier_settings()
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

    def _last_table(self) -> Path:
        """The table that an earlier run wrote last, finished or not."""
        return self._partial if self._partial.exists() else self._table

    def _known_rows(self) -> list[PredictionRow]:
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
        directory = (self._settings_content() or {}).get(DIRECTORY)
        if isinstance(directory, str) and Path(directory) != Path.cwd():
            for row in rows.values():
                row["file"] = _from_here(row["file"], directory)
        return list(rows.values())

    def _is_done(self, job: Job) -> bool:
        paths = self.paths(job.name)
        return all(path.is_file() for path in paths.values()) and not _is_newer(
            job.path, paths["mask"]
        )


def _is_plain(name: str) -> bool:
    """Whether a name leads into no other folder, as one in a table that was changed may."""
    return name != "" and Path(name).name == name


def _from_here(file: str, directory: str) -> str:
    """The path that was `file` in the `directory`; as it is where it leads to a file from here alone.

    The latter is so where images and predictions moved together.
    """
    there = str(Path(directory) / file)
    if os.path.exists(file) and not os.path.exists(there):  # noqa: PTH110 - never raises
        return file
    return printable(there)


def _places() -> Callable[[str], Path]:
    """A function from a file, as tables have it, to its place on the disk."""
    resolve = functools.cache(Path.resolve)
    return lambda file: resolve(Path(file).parent) / Path(file).name


def is_used(folder: Path) -> bool:
    """Whether a run has written its predictions into the folder, finished or not."""
    try:
        return (folder / TABLE).exists() or (folder / PARTIAL_TABLE).exists()
    except OSError:  # such as a folder above that may not be entered
        return False


def check_unused(folder: Path, may_be_used: bool) -> None:
    """UserError if the folder holds predictions and nothing says what to do with them."""
    if is_used(folder) and not may_be_used:
        raise UserError(
            f"{folder} already holds predictions: --resume continues them, --overwrite "
            "starts again, or name another folder by --out"
        )


def check_writable(folder: Path) -> None:
    """UserError where predictions cannot be written into the folder; one that is new is not left behind."""
    with writing_predictions(folder):
        try_to_write(folder)


@contextmanager
def writing_predictions(folder: Path) -> Iterator[None]:
    """Turn the OSError of a full disk or a read-only folder into a UserError."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"cannot write to {folder}: in this place lies a file, expected a folder; name another "
            "folder by --out"
        ) from error
    except OSError as error:
        advice = (
            "All files there are complete; once the folder can be written to again, --resume continues from here"
            if is_used(folder)
            else "Nothing was predicted: name another folder by --out, or make this one writable"
        )
        raise UserError(f"cannot write to {folder}: {error.strerror or error}. {advice}") from error


def _is_newer(image: Path, mask: Path) -> bool:
    """Whether the image file was written after its mask, so that the mask may be of another image.

    False where the image is gone, which leaves what was predicted.
    """
    try:
        return image.stat().st_mtime > mask.stat().st_mtime
    except OSError:
        return False
