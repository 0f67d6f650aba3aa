"""Predictions written into their folder, so that a stopped run can be resumed.

Every file appears whole or not at all. Rows are appended to predictions.partial.csv as images are
done, each row after the files of its image. See `folder_layout` for what lies where.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.prediction.earlier_outputs import EarlierOutputs, check_unused, places
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
from engine.prediction.inputs import Job
from engine.prediction.output_names import unique_names
from engine.prediction.segmentation import Segmentation
from utils.errors import UserError
from utils.files import atomic_write, try_to_write
from utils.images import encode_image, to_16_bit
from utils.locks import FolderInUse, try_lock
from utils.overlay import draw_overlay
from utils.tables import csv_text

log = logging.getLogger("wavegms")


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
        - if another process is writing predictions into the folder;
        - if the folder holds predictions, and neither `resume` nor `overwrite` is set;
        - if other files lie where predictions would go, such as the masks of a data set;
        - to resume, if the settings differ or the table cannot be read;
        - to overwrite, if there are predictions of other images and the settings differ;
        - if the folder cannot be written to.
        """
        check_unused(self.folder, resume or overwrite)
        self._check_not_in_use()
        earlier = EarlierOutputs(self.folder, self.settings)
        place_of = places()
        given = Counter(place_of(job.file) for job in jobs)
        known: list[PredictionRow] = []
        if not is_used(self.folder):
            earlier.check_nothing_else_is_there()
        elif resume:
            known = earlier.rows_to_resume()
        else:
            known = earlier.rows_to_overwrite(lambda row: place_of(row["file"]) in given)
        self._earlier = [row for row in known if place_of(row["file"]) not in given]
        # two files whose names differ in what cannot be printed are the same in a table
        done = [row for row in known if row["status"] == "ok"]
        own = {place: row for row in done if given[place := place_of(row["file"])] == 1}
        jobs = self._named(jobs, own if resume else {}, place_of)
        self._names = {job.path: job.name for job in jobs}
        if resume:
            rows = [(job, own.get(place_of(job.file))) for job in jobs]
            self._rows = {job.name: row for job, row in rows if row and self._is_done(job)}
        self._begin(renamed={row["name"] for row in own.values()} - {*self._names.values()})
        return [job for job in jobs if job.name not in self._rows]

    def _named(
        self,
        jobs: Sequence[Job],
        rows_to_keep: Mapping[Path, PredictionRow],
        place_of: Callable[[str], Path],
    ) -> list[Job]:
        """The jobs under the names in `rows_to_keep`, by place, or under names that no other image has."""
        paths = {place_of(job.file): job.path for job in jobs}
        taken = {row["name"]: Path(row["file"]) for row in self._earlier}
        taken |= {row["name"]: paths[place] for place, row in rows_to_keep.items()}
        if not taken:
            return list(jobs)
        names = unique_names([job.path for job in jobs], taken)
        return [replace(job, name=names[job.path]) for job in jobs]

    def _begin(self, renamed: Iterable[str]) -> None:
        """Delete what is replaced, such as files under `renamed`; write settings and the rows that stay."""
        with writing_predictions(self.folder):
            for name in renamed:
                self._delete_files(name)
            for name in OUTPUT_FOLDERS.values():
                for stale in (self.folder / name).glob(".*.tmp"):  # of a run that was killed
                    stale.unlink(missing_ok=True)
            written = {**self.settings, DIRECTORY: str(Path.cwd())}
            atomic_write(self.folder / SETTINGS, json.dumps(written, indent=2) + "\n")
            atomic_write(self._partial, csv_text(COLUMNS, [*self._earlier, *self._rows.values()]))
            self._table.unlink(missing_ok=True)
            self._journal = self._partial.open("a", encoding="utf-8")
        with suppress(UserError):  # the file system may have no locks
            try_lock(self._journal)

    def _check_not_in_use(self) -> None:
        """FolderInUse while another process has the rows open, and their lock."""
        try:
            with self._partial.open("rb") as rows:
                in_use = not try_lock(rows)
        except (OSError, UserError):  # there is no such run, or the file system has no locks
            return
        if in_use:
            raise FolderInUse(
                f"another run of predict.py writes into {self.folder}: wait for it, stop it, or name another folder "
                "by --out"
            )

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
                f"{len(others)} file{'s' * (len(others) > 1)} in {masks} that no row of {TABLE} names, such as "
                f"{others[0]}.png: predictions of an earlier run, or files of your own"
            )
        return [row for row in rows if row["status"] != "ok"]

    def _is_done(self, job: Job) -> bool:
        paths = self.paths(job.name)
        return all(path.is_file() for path in paths.values()) and not _is_newer(
            job.path, paths["mask"]
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
