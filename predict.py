"""Segment images: files, folders or patterns in; masks, overlays and probabilities out.

    python predict.py --run ckpt/wave_gms_busi/epochs_1000 scan.png folder "more/*.jpg" --out predictions
    python predict.py --run ... folder --recursive --tta --out predictions --resume
    python predict.py --onnx model.onnx folder --out predictions

Masks have the size of their images, turned upright where an image has an orientation tag. An
image that cannot be read is reported at the end and does not stop the others; the exit code is
then 1. See docs/predict.md. For research; not for clinical use.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import check_values, described_parser, exit_from, positive_int

if TYPE_CHECKING:
    from engine.prediction.folder_layout import PredictionRow

log = logging.getLogger("wavegms")
SHOWN_FAILURES = 20


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from datasets.image_files.decoding import MAX_MEGAPIXELS
    from engine.prediction.model_arguments import (
        add_megapixels_argument,
        add_model_arguments,
        add_window_argument,
    )

    parser = described_parser(__doc__)
    add = parser.add_argument
    add_model_arguments(parser)
    add("inputs", nargs="+", metavar="INPUT", help="file, folder or pattern")
    add("--out", type=Path, required=True, metavar="DIR", help="where to write")
    add("--recursive", action="store_true", help="include subfolders")
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="probability from which a pixel is in the mask; default: the model's",
    )
    add("--tiles", action="store_true", help="cut large images into tiles; default: resize")
    add(
        "--overlap",
        type=float,
        metavar="PART",
        help="overlap of neighbouring tiles, as a fraction (0.5)",
    )
    add(
        "--tta",
        action="store_true",
        help="average over flips and quarter turns, or with keep_upright over the mirror image; adds uncertainty",
    )
    add_window_argument(parser)
    add(
        "--overlay",
        choices=("jpg", "png", "none"),
        default="jpg",
        help="format of the overlays (jpg)",
    )
    add("--batch-size", type=positive_int, default=8, metavar="N", help="squares per step (8)")
    add(
        "--workers",
        type=positive_int,
        default=2,
        metavar="N",
        help="threads that read, and that write (2)",
    )
    add_megapixels_argument(parser, default=MAX_MEGAPIXELS)
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="skip images that are already done")
    again.add_argument("--overwrite", action="store_true", help="predict those again")
    arguments = parser.parse_intermixed_args(argv)  # inputs may follow options, too
    check_values(
        parser,
        (
            "threshold",
            arguments.threshold is None or 0 < arguments.threshold < 1,
            "between 0 and 1",
        ),
        ("overlap", arguments.overlap is None or arguments.tiles, "given with --tiles"),
        ("overlap", arguments.overlap is None or 0 <= arguments.overlap <= 0.9, "from 0 to 0.9"),
    )
    if arguments.overlap is None:
        arguments.overlap = 0.5
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    from tqdm import tqdm

    from datasets.image_files.windowing import window_text
    from engine.prediction.backends import open_backend, window_for
    from engine.prediction.earlier_outputs import check_unused
    from engine.prediction.folder_layout import TABLE
    from engine.prediction.inputs import find_jobs
    from engine.prediction.outputs import OutputFolder, check_writable, writing_predictions
    from engine.prediction.predict_files import predict_files, read_file
    from engine.prediction.segmentation import PredictionOptions
    from utils.logs import log_to

    log_to()
    jobs = find_jobs(arguments.inputs, arguments.recursive, arguments.out)
    check_unused(arguments.out, arguments.resume or arguments.overwrite)
    check_writable(arguments.out)
    backend = open_backend(arguments)
    method = PredictionOptions(arguments.tiles, arguments.overlap, arguments.tta)
    window = window_for(backend, arguments.window)
    threshold = arguments.threshold or backend.threshold
    settings = {
        **backend.origin,
        "image_size": backend.image_size,
        "threshold": threshold,
        **asdict(method),
        "window": window_text(window) or None,
        "overlay": arguments.overlay,
        **({"orientations": backend.orientations} if arguments.tta else {}),
    }
    folder = OutputFolder(arguments.out, settings, arguments.overlay, arguments.tta, threshold)
    to_do = folder.open(jobs, arguments.resume, arguments.overwrite)
    if len(to_do) < len(jobs):
        log.info("%d of %d images are already done", len(jobs) - len(to_do), len(jobs))

    read = partial(read_file, max_megapixels=arguments.max_megapixels, window=window)
    rows = predict_files(
        to_do, read, backend, method, folder, arguments.batch_size, arguments.workers
    )
    noted = 0
    with (
        writing_predictions(arguments.out),
        tqdm(total=len(to_do), unit="image", disable=None) as bar,
    ):
        for row in rows:
            folder.add(row)
            noted += row["status"] == "ok" and bool(row["message"])
            bar.update()
    if noted:
        log.warning("%d of these images have a note, see %s", noted, arguments.out / TABLE)
    failed = folder.close(jobs)
    log.info("%d of %d images predicted: %s", len(jobs) - len(failed), len(jobs), arguments.out)
    if failed:
        log_failures(failed, arguments.out / TABLE)
    return 1 if failed else 0


def log_failures(failed: Sequence[PredictionRow], table: Path) -> None:
    """Log why images could not be predicted, the first ones by name; the `table` has all of them."""
    log.error("%d failed:", len(failed))
    for row in failed[:SHOWN_FAILURES]:
        log.error("  %s: %s", row["file"], row["message"])
    if len(failed) > SHOWN_FAILURES:
        log.error("  and %d more, see %s", len(failed) - SHOWN_FAILURES, table)


if __name__ == "__main__":
    exit_from(main)
