"""A training run's folder: checked, locked, and what is written into it when the run begins."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.prepared import prepared_with
from engine.device import resolved_precision
from engine.runs.provenance import input_hashes
from engine.runs.resuming import check_cases_unchanged, check_resumable, epochs_recorded
from engine.runs.run_cases import CASES_FILE, RunCases, names_sha256
from engine.runs.saved_state import state_files
from engine.runs.training_record import TRAINING_CASES
from utils.config import Config, dump_config
from utils.environment import describe_environment
from utils.files import atomic_write
from utils.interruption import Interrupted
from utils.locks import locked
from utils.logs import log_end, log_to
from utils.mappings import differing
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
    "best_model.*", "epoch_*", "model.onnx", "history.csv", "nonfinite.json", "curves.*", "logs/events.*",
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
            with writing_to(self.path):
                for path in (*state_files(self.path), *left):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
        with writing_to(self.path):
            remove_leftovers(self.path)
            config = self._config.model_copy(update={"resume": "auto"})
            atomic_write(self.path / "config.yaml", dump_config(config))
            atomic_write(self.path / CASES_FILE, self._cases.to_json())
            self._write_environment(self._inputs | {"seed": config.seed})

    def _write_environment(self, inputs: dict[str, Any]) -> None:
        path, now = self.path / "environment.json", describe_environment() | inputs
        recorded = now
        if any(state.exists() for state in state_files(self.path)):
            recorded = json.loads(path.read_bytes())
            resumed = recorded.get("resumed", [])
            last = (resumed or [recorded])[-1]
            finished = epochs_recorded(self.path) >= self._config.epochs
            if finished or not differing(last, now):
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

    The main process does this; the others wait for it. UserErrors of `create_run_folder`, `locked`,
    `check_resumable` and `check_cases_unchanged`.
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
            inputs = {
                "precision": resolved_precision(accelerator),
                "processes": accelerator.num_processes,
                "sha256": input_hashes(config, data_set, system),
                TRAINING_CASES: names_sha256(case.name for case in data_set.train),
                **prepared_with(data_set.folder),
            }
            check_resumable(folder, config, inputs)
            check_cases_unchanged(folder, config, run_cases)
            accelerator.wait_for_everyone()
            yield RunFolder(folder, config, run_cases, inputs)
        except BaseException as error:
            if isinstance(error, Interrupted) and config.resume == "never":
                error.advice = "to resume from here, leave out resume=never"
            log_end(error)
            raise
