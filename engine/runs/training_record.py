"""What is recorded of a checkpoint's training: its config, its cases, and how it was chosen.

The record is the config.yaml, environment.json and cases.json beside the checkpoint, or the metadata in a
file of weights that were passed on.
"""

from __future__ import annotations

import filecmp
import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.cases import Case, DataSet, find_split_file
from datasets.catalogue import find_file
from datasets.prepared import METADATA_GROUPS, PREPARED_WITH, WINDOW
from datasets.splits import read_split
from engine.runs.history import read_scores
from engine.runs.run_cases import CASES_FILE, RunCases, names_data_set, names_sha256
from engine.training_cases import training_cases_from
from utils.checkpoints import read_metadata
from utils.config import Config, load_config
from utils.data_set_names import data_set_name
from utils.errors import UserError
from utils.files import json_object

log = logging.getLogger("wavegms")

DATA_SET, TRAINING_CASES = "data_set", "training_cases"
SELECTION = "selection"
AVERAGED_RUNS, AVERAGED_FROM = "averaged_runs", "averaged_from"
ENSEMBLE_RUNS = "ensemble_runs"
"""With those above and PREPARED_WITH, keys of the metadata of weights that are passed on, see
`TrainingRecord.to_pass_on`."""

SPLIT_FILE, INITIAL_WEIGHTS, GROUPS = "split file", "file of initial weights", "file of groups"
TEACHERS = "file of one of the teachers"
INPUT_FILES = (SPLIT_FILE, INITIAL_WEIGHTS, GROUPS, TEACHERS)
"""What environment.json has hashes of, besides the frozen parts of the network."""

_TEST_SPLIT = "the TEST split"
NO_SCORE_CHOSE = "which no score chose"
"""Of a checkpoint, in the words on how it was chosen."""


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of the training of one checkpoint.

    Attributes:
        checkpoint: the file of the weights, which need not be there any more.
        config: of the run that wrote it; None where it does not lie beside it.
        metadata: in the file itself, where the weights were passed on (export.py).
        environment: content of the environment.json beside it.
        cases: content of the cases.json beside it; None where there is none, as beside weights that were
            passed on.
    """

    checkpoint: Path
    config: Config | None
    metadata: Mapping[str, str]
    environment: Mapping[str, Any]
    cases: RunCases | None = None

    @classmethod
    def read(cls, checkpoint: Path) -> TrainingRecord:
        """The record of `checkpoint`; what cannot be read is missing from it, with a warning for a config."""
        return cls(
            checkpoint,
            training_config(checkpoint),
            read_metadata(checkpoint),
            json_object(checkpoint.with_name("environment.json")),
            RunCases.read(checkpoint.with_name(CASES_FILE)),
        )

    @property
    def data_set(self) -> str:
        """Name of the data set; empty where it is not known."""
        return self.metadata.get(DATA_SET) or (self.config.dataset if self.config else "")

    @property
    def averaged_runs(self) -> int:
        """Of how many runs the weights are the mean; 1 for those of a run."""
        return _number(self.metadata.get(AVERAGED_RUNS))

    @property
    def ensemble_runs(self) -> int:
        """Of how many runs the file holds the weights, to average their predictions; 1 for those of a run."""
        return _number(self.metadata.get(ENSEMBLE_RUNS))

    @property
    def combined_runs(self) -> int:
        """Of how many runs the file was made, as their mean or an ensemble; 1 for one of a run."""
        return max(self.averaged_runs, self.ensemble_runs)

    @property
    def prepared_with(self) -> dict[str, str]:
        """What the training data was `prepared_with`, as far as recorded."""
        recorded = {key: self.metadata.get(key, self.environment.get(key)) for key in PREPARED_WITH}
        return {key: value for key, value in recorded.items() if isinstance(value, str)}

    @property
    def window(self) -> str | None:
        """The `--window` of the training images, '' for none; None where it is not known."""
        return self.prepared_with.get(WINDOW)

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of INPUT_FILES and frozen parts that the run was started with, as far as recorded."""
        recorded = self.environment.get("sha256")
        return recorded if isinstance(recorded, dict) else {}

    @property
    def frozen(self) -> dict[str, str]:
        """Hashes of the frozen parts that the run was started with, by their names, as far as recorded."""
        return {name: value for name, value in self.hashes.items() if name not in INPUT_FILES}

    def had_cases_of(self, data_set: DataSet) -> bool:
        """Whether the training cases were, by the hash that is recorded, exactly those of `data_set`."""
        recorded = self.metadata.get(TRAINING_CASES) or self.environment.get(TRAINING_CASES)
        return recorded == names_sha256(case.name for case in data_set.train)

    def cases_of(self, data_set: DataSet) -> tuple[str, ...]:
        """Cases of `data_set` in the train part of the run's own split; empty if that is of other data.

        Empty, too, without a config. UserError where the split file is gone, unless `had_cases_of`.
        """
        if self.config is None:
            return ()
        name, path = self.config.dataset, self.config.pickle_file_path
        same_name, same_data = name == data_set.name, names_data_set(name, data_set)
        if same_data and (used := self._used_cases()) is not None:
            return used
        try:
            split_file = find_split_file(path)
        except UserError:
            if not same_name:
                return ()
            if self.had_cases_of(data_set):
                return tuple(case.name for case in data_set.train)
            split_file = find_split_file(Path(path.name))  # the set of that name here
        if not same_data and split_file.parent.resolve() != data_set.folder.resolve():
            return ()
        return read_split(split_file).train

    def _used_cases(self) -> tuple[str, ...] | None:
        """The cases that the run trained on or chose its checkpoint by; None where they are not recorded."""
        if self.config is None or self.cases is None:
            return None
        return self.cases.train + (() if self.config.keeps_last else self.cases.held_out)

    def copies_in(self, data_set: DataSet) -> tuple[str, ...]:
        """Cases of `data_set`, a set of another name, whose images the run had for training.

        Those of the same name and the same bytes as in the folder of the run's split file; none where this is
        not here. The same image under another name, or converted, is not found.
        """
        if self.config is None or names_data_set(self.config.dataset, data_set):
            return ()
        try:
            split_file = find_split_file(self.config.pickle_file_path)
            used = self._used_cases() or read_split(split_file).train
        except UserError:
            return ()
        own, had = split_file.parent / "images", set(used)
        named = [case for case in (*data_set.train, *data_set.test) if case.name in had]
        found = [(case, find_file(own, case.name)) for case in named]
        return tuple(
            case.name for case, image in found if image and filecmp.cmp(image, case.image, False)
        )

    def used_another_split(self, data_set: DataSet) -> bool:
        """Whether the training was on `data_set` with another split, as far as that is recorded.

        Exported weights say themselves on which cases; for those in a run folder, the split file may have
        changed since. False where the cases themselves are recorded, so that those of `data_set` among them
        are known one by one.
        """
        if self.cases is not None:
            return False
        names = names_sha256(case.name for case in data_set.train)
        same_cases = self.metadata.get(TRAINING_CASES, names) == names
        if not same_cases and names_data_set(self.metadata.get(DATA_SET, ""), data_set):
            return True
        return (
            self.config is not None
            and names_data_set(self.config.dataset, data_set)
            and self.split_has_changed()
        )

    def split_has_changed(self, split_file: Path | None = None) -> bool:
        """Whether the split file of the run, or the one given, has other training cases than when the run
        was started, or holds out others of them, as far as that is known.
        """
        if split_file is None and self.config is not None:
            split_file = self.config.pickle_file_path
        recorded = self.environment.get(TRAINING_CASES)
        if recorded is None or split_file is None:
            return False
        try:
            now = _names_of(find_split_file(split_file))
            names = names_sha256(case.name for case in now.train)
            return recorded != names or self._holds_out_others(now)
        except UserError:  # the split file is not here
            return False

    def _holds_out_others(self, now: DataSet) -> bool:
        """Whether the config now gives other cases of the split to train on than the run had, as far as its
        groups, if it had any, are here.
        """
        if self.config is None or self.cases is None:
            return False
        if GROUPS in self.hashes and not (now.folder / METADATA_GROUPS).is_file():
            return False
        train = training_cases_from(self.config, now).train
        return {case.name for case in train} != set(self.cases.train)

    @property
    def is_best(self) -> bool:
        """Whether the checkpoint is the run's best by validation, not another of its epochs."""
        return self.checkpoint.stem == "best_model"

    def own_selection(self) -> str:
        """How the checkpoint itself was chosen, whatever it started from."""
        if SELECTION in self.metadata:
            return self.metadata[SELECTION]
        if self.config is None or (self.checkpoint.suffix == ".safetensors" and not self.is_best):
            return "no record beside the checkpoint of how it was chosen"
        if not self.is_best:
            return f"{self.checkpoint.name} of the run, {NO_SCORE_CHOSE}"
        choice = _choice(self.config.select_on)
        if (epoch := self.unfinished_at()) is None:
            return choice
        so_far = f"epoch {epoch} of {self.config.epochs} of an unfinished run"
        if self.config.keeps_last:
            return f"{so_far}, {NO_SCORE_CHOSE}"
        return f"{choice}, up to {so_far}"

    def unfinished_at(self) -> int | None:
        """The last epoch that the run has done by its history; None if that is all, or not known."""
        try:
            epochs = read_scores(self.checkpoint.with_name("history.csv"), "lr")
        except (OSError, ValueError, KeyError):
            return None
        last = max(epochs, default=None)
        return last if last and self.config and last < self.config.epochs else None

    def selection(self) -> str:
        """How the checkpoint was chosen, or each of those whose mean it is, as far as that is recorded."""
        if SELECTION in self.metadata or self.config is None:
            return self.own_selection()
        return self.own_selection() + _note_on_start(self.config)

    def to_pass_on(self) -> dict[str, str]:
        """Metadata to store with exported weights.

        How the checkpoint was chosen, its data set and what that was prepared with, a SHA-256 of the names of
        its training cases, and the number of runs if it is a mean or an ensemble. Copied from a
        `.safetensors` that has it, otherwise derived from what lies beside the checkpoint.
        """
        origin = {SELECTION: self.selection()} | self.prepared_with
        if self.checkpoint.suffix == ".safetensors":
            keys = (DATA_SET, TRAINING_CASES, AVERAGED_RUNS, AVERAGED_FROM, ENSEMBLE_RUNS)
            return origin | {key: self.metadata[key] for key in keys if key in self.metadata}
        if self.config is not None:
            with suppress(UserError):
                recorded = self.environment.get(TRAINING_CASES)
                origin |= {
                    DATA_SET: self.config.dataset,
                    TRAINING_CASES: recorded or _cases_now(self.config.pickle_file_path),
                }
        return origin


def training_history(checkpoint: Path) -> Iterator[TrainingRecord]:
    """Records of the checkpoint, of those that its run started or learned from, and so on."""
    followed: set[Path] = set()
    waiting = [checkpoint]
    while waiting:
        each = waiting.pop(0)
        if (folder := each.resolve().parent) in followed:
            continue
        followed.add(folder)
        record = TrainingRecord.read(each)
        yield record
        waiting += record.config.builds_on if record.config is not None else ()


def data_trained_on(checkpoint: Path) -> set[tuple[str, str]]:
    """Data sets, and hashes of their training cases, of the checkpoint and of all that it builds on.

    As far as they are recorded; each that is not counts as ("", "").
    """
    known = [record.to_pass_on() for record in training_history(checkpoint)]
    return {(each.get(DATA_SET, ""), each.get(TRAINING_CASES, "")) for each in known}


def selection_note(run: Config) -> str:
    """How the run chooses its checkpoint, in the words that every output uses."""
    return _choice(run.select_on) + _note_on_start(run)


def training_config(checkpoint: Path) -> Config | None:
    """The config of the run that wrote the checkpoint, None where it does not lie beside it.

    The same, with a warning, where a file beside it is called config.yaml and is no config of a run.
    """
    path = checkpoint.parent / "config.yaml"
    return _read_config(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache
def _read_config(path: Path, written: int) -> Config | None:
    """The config of a run in a file that was `written` then; read, and warned of, once."""
    try:
        return load_config(path)
    except UserError as error:
        log.warning("it is not known how these weights were trained: %s", error)
        return None


def _names_of(split_file: Path) -> DataSet:
    """The data set of a split file by its names alone: the images and masks need not be here."""
    split = read_split(split_file)
    train, test = (
        tuple(Case(name, Path(), Path()) for name in names) for names in (split.train, split.test)
    )
    name, folder = data_set_name(split_file), split_file.parent
    return DataSet(name, folder, split_file, train, test, frozenset(split.val))


def _cases_now(split_file: Path) -> str:
    """Hash of the names of the training cases in a split file as it is now."""
    return names_sha256(read_split(find_split_file(split_file)).train)


def _choice(select_on: str) -> str:
    if select_on == "test":
        return (
            f"checkpoint chosen on {_TEST_SPLIT} (as in the published code; scores are optimistic)"
        )
    if select_on == "last":
        return f"the last epoch of the run, {NO_SCORE_CHOSE}"
    return "checkpoint chosen on a held-out part of train"


def _note_on_start(run: Config) -> str:
    """What to add where the run builds on weights that were chosen on the test split of its data set."""
    own_data = run.dataset.removesuffix("_grouped")
    for weights in run.builds_on:
        did = "started" if weights == run.init_weights else "learned"
        for record in training_history(weights):
            same_data = record.data_set.removesuffix("_grouped") == own_data
            if same_data and _TEST_SPLIT in record.own_selection():
                return f"; it {did} from weights that were chosen on {_TEST_SPLIT}"
    return ""


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1
