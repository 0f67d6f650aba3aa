"""From image files to predictions on disk, in a stream: little of it is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.image_files.headers import ImageError
from datasets.image_files.pictures import Picture, read_content, read_picture
from datasets.image_files.windowing import Window
from engine.prediction.backends import SquareModel
from engine.prediction.folder_layout import PredictionRow
from engine.prediction.inputs import Job
from engine.prediction.outputs import OutputFolder
from engine.prediction.segmentation import PredictionOptions, Segmentation, segment
from utils.errors import UserError
from utils.streams import bounded_map


def read_file(path: Path, max_megapixels: float, window: Window) -> Picture:
    """The image in a file; ImageError if it cannot be used."""
    return read_picture(read_content(path, max_megapixels), max_megapixels, window, path.suffix)


def predict_files(
    jobs: Sequence[Job],
    read: Callable[[Path], Picture],
    backend: SquareModel,
    method: PredictionOptions,
    folder: OutputFolder,
    batch_size: int,
    workers: int,
) -> Iterator[PredictionRow]:
    """Read, segment and write the images; yields the row of each, failed or not.

    `workers` threads read, and as many write. Rows of images that cannot be read come out of order.
    """
    unreadable: list[PredictionRow] = []

    def try_to_read(job: Job) -> tuple[Job, Picture | ImageError]:
        try:
            return job, read(job.path)
        except ImageError as error:
            return job, error

    def pictures() -> Iterator[tuple[tuple[Job, Picture], np.ndarray]]:
        for job, picture in bounded_map(try_to_read, jobs, workers):
            if isinstance(picture, ImageError):
                unreadable.append(folder.fail(job, str(picture)))
            else:
                yield (job, picture), picture.pixels

    def write(segmented: tuple[tuple[Job, Picture], Segmentation]) -> PredictionRow:
        (job, picture), segmentation = segmented
        try:
            return folder.write(job, picture.pixels, picture.note, segmentation)
        except UserError as error:
            return folder.fail(job, str(error))

    for row in bounded_map(write, segment(backend, pictures(), method, batch_size), workers):
        yield row
        while unreadable:
            yield unreadable.pop()
    yield from unreadable
