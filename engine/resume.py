"""Resuming a run: `last.pth` holds what that needs, and other settings are refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.device import resolved_precision
from engine.provenance import input_hashes
from utils.config import Config, dump_config, load_config
from utils.errors import UserError
from utils.files import atomic_write
from utils.runs import (
    create_run_folder,
    locked,
    log_to,
    remove_leftovers,
    write_environment,
    writing_to,
)
from utils.tensor_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

    from datasets.cases import DataSet
    from models.base import SegmentationModel

log = logging.getLogger("wavegms")

LAST = "last.pth"
BEFORE_LAST = "last.previous.pth"
FORMAT = 1
LEFT_BY_A_RUN = (
    "best_model.*", "epoch_*", "history.csv", "nonfinite.json",
    "valid_results_*", "predicted_masks_*", "cross_domain",
)  # besides its states, and what a new one writes at once  # fmt: skip

# settings that may change when a run is resumed: they do not affect what is learned (the split
# file and the frozen weights are compared by their hashes)
FREE_SETTINGS = {
    "GPUs", "cache_mb", "channels_last", "checkpoint_decoder", "compile", "cuda_graphs", "deterministic",
    "drop_leaked", "evaluation_size", "hd95_empty", "log_every", "model_weight", "num_workers",
    "phase", "pickle_file_path", "precision", "resume", "save_freq", "save_minutes", "save_seg_img_path",
    "skip_nonfinite", "snapshot_path", "tta", "vae_weights", "validate_every",
}  # fmt: skip


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `last.pth`, keeping the one before it until the new one is whole.

    UserError if that fails; what was saved before is then still there.
    """
    last, before = folder / LAST, folder / BEFORE_LAST
    incoming = folder / f"{LAST}.new"
    with writing_to(folder):
        save_tensors(incoming, {"format": FORMAT} | state)
        if last.exists():
            last.replace(before)
        incoming.replace(last)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole state in `folder`, or None if the run has not saved one.

    A damaged file is reported and the one before it is taken. UserError if all are damaged.
    """
    damaged = []
    for path in _states(folder):
        if not path.exists():
            continue
        try:
            state = load_tensors(path)
            if not isinstance(state, dict) or state.get("format") != FORMAT:
                raise ValueError("is not a training state of this version")
        except Exception as error:  # torch.load has no common error for damaged files
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


@contextmanager
def open_run(
    config: Config,
    data_set: DataSet,
    system: SegmentationModel,
    accelerator: Accelerator,
    plan: str,
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder of a run while it trains, checked and locked, and what to call once it can start.

    That call is `record_run`; until then nothing of a run that is there has been touched. All of it is done
    by the main process; the others wait for it. UserErrors of `create_run_folder`, `locked` and
    `check_resumable`.
    """
    folder, is_main = config.run_folder, accelerator.is_main_process
    if is_main:
        create_run_folder(folder)
    with locked(folder) if is_main else nullcontext():
        if is_main:
            log_to(folder / "logs" / "train.log")
            log.info(plan)
            inputs = {
                "precision": resolved_precision(accelerator),
                "processes": accelerator.num_processes,
                "sha256": input_hashes(config, data_set, system),
            }
            check_resumable(folder, config, **inputs)
        accelerator.wait_for_everyone()
        yield folder, lambda: record_run(folder, config, inputs) if is_main else None


def check_resumable(
    folder: Path, config: Config, sha256: dict[str, str], precision: str, processes: int = 1
) -> None:
    """UserError where the run in `folder` is another one, which lists what differs, or lost its state.

    `sha256` names what else the result rests on (split file, frozen weights), `precision` is the one
    that `auto` selects here, `processes` is how many share the work.
    """
    if config.resume == "never":
        return
    current = config.model_dump(mode="json")
    if any(path.exists() for path in _states(folder)):
        saved, environment = _recorded(folder)
        changed = [
            f"{key}: {saved.get(key)!r} in the saved run, {current[key]!r} now"
            for key in current
            if key not in FREE_SETTINGS and saved.get(key) != current[key]
        ]
        changed += [
            f"the {name} is another file than in the saved run"
            for name, value in sha256.items()
            if environment["sha256"].get(name) != value
        ]
        if (before := environment.get("precision", precision)) != precision:
            changed.append(
                f"precision: {before} in the saved run, {precision} here; precision={before} keeps it"
            )
        if (before := environment.get("processes", 1)) != processes:
            changed.append(
                f"processes: {before} in the saved run, {processes} now, each with batches of "
                f"{config.batch_size}"
            )
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{folder} holds a run with other settings; resuming would mix two experiments:\n"
                f"  {listed}\n"
                "Set them back, set another snapshot_path, or start again with resume=never"
            )
    elif _epochs_recorded(folder) > 1:  # after one epoch a kill may have come before the state
        raise UserError(
            f"{folder} holds a trained run, but no {LAST} to resume from; training again would "
            "overwrite its weights. Set another snapshot_path, or start again with resume=never"
        )


def record_run(folder: Path, config: Config, inputs: dict[str, Any]) -> None:
    """Write config and environment, `inputs` among it, into `folder`.

    With `resume: never` the weights and results of the run that is there are deleted first.
    """
    if config.resume == "never":
        left = [path for pattern in LEFT_BY_A_RUN for path in folder.glob(pattern)]
        for path in (*_states(folder), *left):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    remove_leftovers(folder)
    with writing_to(folder):
        atomic_write(folder / "config.yaml", dump_config(config))
        write_environment(folder / "environment.json", inputs | {"seed": config.seed})


def _states(folder: Path) -> list[Path]:
    return [folder / name for name in (LAST, f"{LAST}.new", BEFORE_LAST)]


def _epochs_recorded(folder: Path) -> int:
    """Lines of history.csv below its header; 0 without weights or history."""
    history = folder / "history.csv"
    if not (folder / "best_model.pth").is_file() or not history.is_file():
        return 0
    return len(history.read_text(errors="replace").splitlines()) - 1


def _recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the environment that the run in `folder` was started with."""
    try:
        saved = load_config(folder / "config.yaml").model_dump(mode="json")
        environment = json.loads((folder / "environment.json").read_text())
        if not isinstance(environment["sha256"], dict):
            raise ValueError("environment.json holds no hashes")
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds a run whose settings cannot be read ({error}): "
            "set another snapshot_path, or start again with resume=never"
        ) from error
    return saved, environment
