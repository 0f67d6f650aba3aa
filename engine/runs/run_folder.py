"""The folder of a training run: opened and locked, refused to other settings, begun."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.prepared import prepared_window
from engine.device import resolved_precision
from engine.runs.provenance import input_hashes, window_option
from engine.runs.saved_state import LAST_STATE, state_files
from engine.runs.training_record import CASES_FILE, TRAINING_CASES, WINDOW, RunCases, names_sha256
from utils.config import CHANGEABLE_ON_RESUME, Config, dump_config, load_config
from utils.environment import describe_environment
from utils.errors import UserError
from utils.files import atomic_write
from utils.interruption import Interrupted
from utils.locks import locked
from utils.logs import log_end, log_to
from utils.runs import (
    RESULT_FOLDERS,
    create_run_folder,
    holds_results,
    remove_leftovers,
    writing_to,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from datasets.cases import DataSet
    from datasets.held_out import TrainingCases
    from models.base import SegmentationModel

log = logging.getLogger("wavegms")

LEFT_BY_A_RUN = (
    "best_model.*", "epoch_*", "history.csv", "nonfinite.json", "curves.*", "logs/events.*",
    "cross_domain", *RESULT_FOLDERS,
)  # besides its states, and what a new one writes at once  # fmt: skip


class RunFolder:
    """The folder at `path`, locked for this run. Nothing of a run that is there is touched before `begin`.

    `inputs` is what the result rests on besides the config; None in all but the main process, which alone
    writes.
    """

    def __init__(
        self, path: Path, config: Config, cases: RunCases, inputs: dict[str, Any] | None
    ) -> None:
        self.path = path
        self._config, self._cases, self._inputs = config, cases, inputs

    def begin(self) -> None:
        """Write config.yaml, cases.json and environment.json; call it once the run can start.

        With `resume: never` the weights and results of the run that is there are deleted first,
        though not its log; the config that is written says `auto`, so that it cannot delete this
        run. environment.json keeps what the run was started with; below `resumed` it lists each resume in
        another environment.
        """
        if self._inputs is None:
            return
        if self._config.resume == "never":
            left = {path for pattern in LEFT_BY_A_RUN for path in self.path.glob(pattern)}
            left |= {path for path in self.path.glob("*/") if holds_results(path)}  # of a --name
            if left:
                log.info("resume=never: starts afresh, the run that was here is deleted")
            for path in (*state_files(self.path), *left):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        remove_leftovers(self.path)
        with writing_to(self.path):
            config = self._config.model_copy(update={"resume": "auto"})
            atomic_write(self.path / "config.yaml", dump_config(config))
            atomic_write(self.path / CASES_FILE, self._cases.to_json())
            self._write_environment(self._inputs | {"seed": config.seed})

    def _write_environment(self, inputs: dict[str, Any]) -> None:
        path, now = self.path / "environment.json", describe_environment() | inputs
        recorded = now
        if any(state.exists() for state in state_files(self.path)):
            recorded = json.loads(path.read_text())
            resumed = recorded.get("resumed", [])
            last = (resumed or [recorded])[-1]
            finished = _epochs_recorded(self.path) >= self._config.epochs
            if finished or all(last.get(key) == value for key, value in now.items()):
                return
            recorded["resumed"] = [*resumed, now]
        atomic_write(path, json.dumps(recorded, indent=2) + "\n")


@contextmanager
def open_run(
    config: Config,
    data_set: DataSet,
    cases: TrainingCases,
    system: SegmentationModel,
    accelerator: Accelerator,
    plan: str,
) -> Iterator[RunFolder]:
    """The folder of a run while it trains, checked and locked; `plan` goes into its log, and why it ended.

    The main process does this; the others wait for it. UserErrors of `create_run_folder`, `locked` and
    `check_resumable`.
    """
    folder, run_cases = config.run_folder, RunCases.of(data_set, cases.train)
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield RunFolder(folder, config, run_cases, None)
        return
    create_run_folder(folder)
    with locked(folder):
        with writing_to(folder):
            log_to(folder / "logs" / "train.log")
        try:
            log.info(plan)
            precision, processes = resolved_precision(accelerator), accelerator.num_processes
            hashes = input_hashes(config.init_weights, data_set, system)
            window = prepared_window(data_set.folder)
            check_resumable(folder, config, hashes, precision, processes, window)
            inputs = {
                "precision": precision,
                "processes": processes,
                "sha256": hashes,
                TRAINING_CASES: names_sha256(case.name for case in data_set.train),
                **({} if window is None else {WINDOW: window}),
            }
            accelerator.wait_for_everyone()
            yield RunFolder(folder, config, run_cases, inputs)
        except BaseException as error:
            if isinstance(error, Interrupted) and config.resume == "never":
                error.advice = "to resume from here, leave out resume=never"
            log_end(error)
            raise


def check_resumable(
    folder: Path,
    config: Config,
    sha256: dict[str, str],
    precision: str,
    processes: int = 1,
    window: str | None = None,
) -> None:
    """UserError where the run in `folder` is another one, which lists what differs, or lost its state.

    `sha256` names what else the result rests on (split file, frozen weights), `precision` is the one
    that `auto` selects here, `processes` is how many share the work, `window` is the `--window` that the
    images are prepared with, None where that is not known.
    """
    if config.resume == "never":
        return
    if any(path.exists() for path in state_files(folder)):
        changed = _what_differs(*_recorded(folder), config, sha256, precision, processes, window)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{folder} holds a run with other settings; resuming would mix two experiments:\n"
                f"  {listed}\n"
                "Set them back, set another snapshot_path, or start again with resume=never"
            )
    elif _epochs_recorded(folder) > 1:  # after one epoch a kill may have come before the state
        raise UserError(
            f"{folder} holds a trained run, but no {LAST_STATE} to resume from; training again would "
            "overwrite its weights. Set another snapshot_path, or start again with resume=never"
        )


def _what_differs(
    saved: Mapping[str, Any],
    environment: Mapping[str, Any],
    config: Config,
    sha256: Mapping[str, str],
    precision: str,
    processes: int,
    window: str | None,
) -> list[str]:
    """What a run with the `saved` settings and that `environment` had otherwise, a line each.

    The other arguments are those of `check_resumable`.
    """
    current = config.model_dump(mode="json")
    differing = [
        f"{key}: {saved.get(key)!r} in the saved run, {current[key]!r} now"
        for key in current
        if key not in CHANGEABLE_ON_RESUME and saved.get(key) != current[key]
    ]
    differing += [
        f"the {name} is another file than in the saved run"
        for name, value in sha256.items()
        if environment["sha256"].get(name) != value
    ]
    if (before := environment.get("precision", precision)) != precision:
        differing.append(
            f"precision: {before} in the saved run, {precision} here; precision={before} keeps it"
        )
    if (before := environment.get("processes", 1)) != processes:
        differing.append(
            f"processes: {before} in the saved run, {processes} now, each with batches of {config.batch_size}"
        )
    recorded = _recorded_window(environment)
    if recorded is not None and window is not None and recorded != window:
        differing.append(
            f"images: prepared with {window_option(recorded)} in the saved run, with {window_option(window)} now; "
            "prepare the data set as before, in a folder of its own, to go on"
        )
    return differing


def _recorded_window(environment: Mapping[str, Any]) -> str | None:
    """The `--window` of the images that the run was started with, else resumed with; None if not recorded."""
    records = (environment, *environment.get("resumed", []))
    return next((each[WINDOW] for each in records if WINDOW in each), None)


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
