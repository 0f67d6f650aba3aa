"""A trained run scored on one or several data sets, and where its results go."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.device import make_accelerator, use_gpus
from utils.errors import UserError
from utils.runs import HELD_OUT_MASKS_PREFIX, RESULT_FOLDERS, holds_results, writing_to

if TYPE_CHECKING:
    from datasets.cases import DataSet
    from scoring.results import Summary
    from utils.config import Config

log = logging.getLogger("wavegms")


def validate_run(
    config: Config,
    checkpoint: Path,
    data_sets: Sequence[str] = (),
    held_out: bool = False,
    results_name: str = "",
) -> None:
    """Score a checkpoint on the test splits, or the `held_out` cases, of prepared data sets.

    `data_sets` are their names; default: the config's. `results_name` is that of a folder for the results,
    see `results_folder`. Test splits of several data sets are also written side by side, as a matrix.
    """
    use_gpus(config.GPUs[:1])
    accelerator = make_accelerator(config.precision, 1, config.deterministic)

    # Imported late: GPUs are chosen before anything can touch CUDA.
    from datasets.cases import open_data_set, open_prepared
    from engine.runs.provenance import warn_of_other_preparation
    from engine.runs.trained_run import load_run
    from engine.validation.validate_data_set import validate_data_set

    results, summaries = results_folder(checkpoint, results_name), {}
    opened = [open_prepared(name) for name in data_sets]
    opened = opened or [open_data_set(config.pickle_file_path)]
    _check_names_differ(opened)
    loaded = load_run(config, checkpoint)
    log.info("weights: %s", checkpoint)
    for data_set in opened:
        warn_of_other_preparation(checkpoint, data_set)
        predictions = config.save_seg_img_path
        if predictions:
            predictions /= results.relative_to(checkpoint.parent)
        if predictions and len(opened) > 1:  # whose cases may share names
            predictions = predictions / data_set.name
        if predictions and held_out:  # which are none of the test cases
            predictions = predictions / HELD_OUT_MASKS_PREFIX.removesuffix("_")
        with writing_to(results):
            summaries[data_set.name] = validate_data_set(
                loaded, data_set, accelerator, results, predictions, held_out
            )
    if len(summaries) > 1 and not held_out:
        _write_side_by_side(results / "cross_domain", summaries)


def _check_names_differ(data_sets: Sequence[DataSet]) -> None:
    """UserError where several data sets have one name, by which their results are kept apart."""
    split_files: dict[str, list[str]] = {}
    for data_set in data_sets:
        split_files.setdefault(data_set.name, []).append(str(data_set.split_file))
    for name, files in split_files.items():
        if len(files) > 1:
            raise UserError(
                f"--datasets has {len(files)} data sets of the name {name} ({', '.join(files)}), and the scores of "
                "each would replace those of the one before: name each data set once, and score other splits of "
                "that name by a command of their own, with another --name"
            )


def _write_side_by_side(folder: Path, summaries: Mapping[str, Summary]) -> None:
    """Write the scores of one run on several data sets, by their names, as a table into `folder`."""
    from scoring.cross_domain_matrix import write_matrix

    cells = {(s["provenance"]["trained_on"] or "?", on): s for on, s in summaries.items()}
    with writing_to(folder):
        write_matrix(folder, cells)
    log.info("all data sets side by side: %s", folder)


def results_folder(checkpoint: Path, name: str = "") -> Path:
    """Where a checkpoint's results go: its own folder for a `best_model`, otherwise a folder named after the
    checkpoint, so that they are not taken for the run's.

    With a `name` it is a folder in that one, which keeps them apart from results made in another way.
    UserError for a name that cannot be one, or is that of something else there, such as another checkpoint.
    """
    own = checkpoint.parent if checkpoint.stem == "best_model" else checkpoint.with_suffix("")
    if not name:
        return own
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise UserError(f"--name is {name!r}, expected letters, digits and . _ + -, such as tta")
    folder = own / name
    weights = (own / f"{name}.pth", own / f"{name}.safetensors", folder / "config.yaml")
    of_a_run = any(Path(name).match(pattern) for pattern in (*RESULT_FOLDERS, "cross_domain*"))
    if of_a_run or any(path.exists() for path in weights):
        raise UserError(f"{folder} is for other results of this run: choose another --name")
    if folder.exists() and any(folder.iterdir()) and not holds_results(folder):
        raise UserError(f"{folder} exists and holds no scores of valid.py: choose another --name")
    return folder
