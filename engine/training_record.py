"""What is recorded of a checkpoint's training: its config, its cases, and how it was chosen.

The record is the config.yaml and environment.json beside the checkpoint, or the metadata in a file of
weights that were passed on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets.cases import DataSet, find_split_file
from datasets.catalogue import SPLIT_FILE_ENDING, canonical_name
from datasets.splits import read_split
from utils.checkpoints import read_metadata
from utils.config import Config, load_config
from utils.errors import UserError
from utils.files import sha256

log = logging.getLogger("wavegms")

NETWORK_KEYS = (
    "model",
    "vae_model",
    "guidance_method",
    "vae_weights",
    "ch",
    "ch_mult",
    "image_size",
)
"""Keys of the config by which the same weights give another probability."""

DATA_SET, TRAINING_CASES = "data_set", "training_cases"
SELECTION = "selection"
AVERAGED_RUNS, AVERAGED_FROM = "averaged_runs", "averaged_from"
ENSEMBLE_RUNS = "ensemble_runs"
"""With those above, keys of the metadata of weights that are passed on, see `export_metadata`."""

_TEST_SPLIT = "the TEST split"


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


def network_differences(config: Config, run: Config | None) -> dict[str, Any]:
    """What the run that trained the weights had for each of NETWORK_KEYS that is another in `config`."""
    if run is None:
        return {}
    trained, now = run.model_dump(mode="json"), config.model_dump(mode="json")
    return {key: trained[key] for key in NETWORK_KEYS if trained[key] != now[key]}


def training_history(checkpoint: Path) -> Iterator[tuple[Path, Config | None]]:
    """The checkpoint, the one that its run started from, and so on, each with the config of its run.

    The last one has None where no config lies beside it.
    """
    followed: set[Path] = set()
    start: Path | None = checkpoint
    while start is not None and (folder := start.resolve().parent) not in followed:
        followed.add(folder)
        run = training_config(start)
        yield start, run
        start = None if run is None else run.init_weights


def cases_trained_on(checkpoint: Path, data_set: DataSet) -> tuple[str, ...]:
    """Cases of `data_set` that the checkpoint's run had for training, those held out included.

    By the split in the config beside the checkpoint; without one, the train part of `data_set`. Empty
    where the run was trained on other data. Those of the weights that the run started from are
    included as far as they are recorded. UserError where the run's split file is gone.
    """
    if training_config(checkpoint) is None:
        return tuple(case.name for case in data_set.train)
    cases: dict[str, None] = {}
    for start, run in training_history(checkpoint):
        if run is not None:
            cases |= dict.fromkeys(cases_of_split(start, run, data_set))
    return tuple(cases)


def data_trained_on(checkpoint: Path) -> set[tuple[str, str]]:
    """Data sets, and hashes of their training cases, of the checkpoint and of all that it started from.

    As far as they are recorded; each that is not counts as ("", "").
    """
    records = [export_metadata(start) for start, _ in training_history(checkpoint)]
    return {(said.get(DATA_SET, ""), said.get(TRAINING_CASES, "")) for said in records}


def cases_of_split(checkpoint: Path, run: Config, data_set: DataSet) -> tuple[str, ...]:
    """Cases of `data_set` in the train part of the run's own split, empty where it is of other data.

    UserError where the split file is gone, unless the run is recorded to have had the cases of `data_set`.
    """
    same_name, same_data = run.dataset == data_set.name, _names_data_set(run.dataset, data_set)
    try:
        split_file = find_split_file(run.pickle_file_path)
    except UserError:
        if not same_name:
            return ()
        if has_recorded_cases(checkpoint, data_set):
            return tuple(case.name for case in data_set.train)
        split_file = find_split_file(Path(run.pickle_file_path.name))  # the set of that name here
    if not same_data and split_file.parent.resolve() != data_set.folder.resolve():
        return ()
    return read_split(split_file).train


def has_recorded_cases(checkpoint: Path, data_set: DataSet) -> bool:
    """Whether the record beside, or in, the checkpoint names exactly the training cases of `data_set`."""
    recorded = read_metadata(checkpoint).get(TRAINING_CASES)
    recorded = recorded or _environment(checkpoint).get(TRAINING_CASES)
    return recorded == names_sha256(case.name for case in data_set.train)


def recorded_training_cases(checkpoint: Path, data_set: DataSet) -> tuple[str, ...]:
    """Like `cases_trained_on`, but none where nothing beside the checkpoint says what it was trained on."""
    return () if training_config(checkpoint) is None else cases_trained_on(checkpoint, data_set)


def seen_test_cases(checkpoint: Path, data_set: DataSet) -> list[str] | None:
    """Names of the test cases of `data_set` among `cases_trained_on`, sorted; None where that is not known.

    That is so without a config beside the checkpoint, and where the run's split file is gone or has changed.
    """
    run = training_config(checkpoint)
    if run is None or split_has_changed(checkpoint, run):
        return None
    try:
        own = cases_of_split(checkpoint, run, data_set)
        trained_on = cases_trained_on(checkpoint, data_set)
    except UserError:
        return None
    recorded = read_metadata(checkpoint) or _environment(checkpoint)
    is_own_split = recorded.get(TRAINING_CASES) in (None, names_sha256(own))
    if _names_data_set(run.dataset, data_set) and not (own and is_own_split):
        return None
    return sorted({case.name for case in data_set.test}.intersection(trained_on))


def export_metadata(checkpoint: Path) -> dict[str, str]:
    """Metadata to store with exported weights.

    How the checkpoint was chosen, its data set, a SHA-256 of the names of its training cases, and
    the number of runs if it is a mean or an ensemble. Copied from a `.safetensors` that has it,
    otherwise derived from the config beside the checkpoint, as far as that is there.
    """
    said = read_metadata(checkpoint)
    if checkpoint.suffix == ".safetensors":
        keys = (DATA_SET, TRAINING_CASES, AVERAGED_RUNS, AVERAGED_FROM, ENSEMBLE_RUNS)
        kept = {key: said[key] for key in keys if key in said}
        return {SELECTION: selection_of(checkpoint)} | kept
    origin = {SELECTION: selection_of(checkpoint)}
    run = training_config(checkpoint)
    if run is not None:
        with suppress(UserError):
            origin |= {DATA_SET: run.dataset, TRAINING_CASES: _cases_then(checkpoint, run)}
    return origin


def selection_of(checkpoint: Path) -> str:
    """How the checkpoint was chosen, or each of those whose mean it is, as far as that is recorded."""
    own, run = _own_selection(checkpoint), training_config(checkpoint)
    is_recorded = SELECTION in read_metadata(checkpoint)
    return own if is_recorded or run is None else own + _note_on_start(run)


def selection_note(run: Config) -> str:
    """How the run chooses its checkpoint, in the words that every output uses."""
    return _choice_of(run) + _note_on_start(run)


def _own_selection(checkpoint: Path) -> str:
    """How the checkpoint itself was chosen, whatever it started from."""
    said, run = read_metadata(checkpoint), training_config(checkpoint)
    if SELECTION in said:
        return said[SELECTION]
    if run is None or (checkpoint.suffix == ".safetensors" and checkpoint.stem != "best_model"):
        return "no record beside the checkpoint of how it was chosen"
    if checkpoint.stem != "best_model":
        return f"{checkpoint.name} of the run, which no score chose"
    return _choice_of(run)


def _choice_of(run: Config) -> str:
    if run.select_on == "test":
        return (
            f"checkpoint chosen on {_TEST_SPLIT} (as in the published code; scores are optimistic)"
        )
    return "checkpoint chosen on a held-out part of train"


def _note_on_start(run: Config) -> str:
    """What to add where the run started from weights that were chosen on the test split of its data set."""
    if run.init_weights is None:
        return ""
    own_data = run.dataset.removesuffix("_grouped")
    for checkpoint, earlier in training_history(run.init_weights):
        data = read_metadata(checkpoint).get(DATA_SET) or (earlier.dataset if earlier else "")
        if data.removesuffix("_grouped") == own_data and _TEST_SPLIT in _own_selection(checkpoint):
            return f"; it started from weights that were chosen on {_TEST_SPLIT}"
    return ""


def names_sha256(names: Iterable[str]) -> str:
    """SHA-256 of the names, whatever their order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def trained_on_another_split(checkpoint: Path, data_set: DataSet) -> bool:
    """Whether the weights were trained on this data set with another split, as far as that is recorded.

    Exported weights say themselves on which cases; for those in a run folder, the split file may have changed
    since.
    """
    record = read_metadata(checkpoint)
    names = names_sha256(case.name for case in data_set.train)
    same_cases = record.get(TRAINING_CASES, names) == names
    if not same_cases and _names_data_set(record.get(DATA_SET, ""), data_set):
        return True
    run = training_config(checkpoint)
    return (
        run is not None
        and _names_data_set(run.dataset, data_set)
        and split_has_changed(checkpoint, run)
    )


def split_has_changed(checkpoint: Path, run: Config) -> bool:
    """Whether the run's split file has other training cases than when the run was started, as far
    as that is known.

    Runs of earlier versions have recorded the hash of the file only.
    """
    environment = _environment(checkpoint)
    hashes = environment.get("sha256")
    try:
        if TRAINING_CASES in environment:
            return environment[TRAINING_CASES] != _cases_now(run)
        recorded = hashes.get("split file") if isinstance(hashes, dict) else None
        return recorded is not None and recorded != sha256(find_split_file(run.pickle_file_path))
    except UserError:  # the split file is not here
        return False


def _cases_then(checkpoint: Path, run: Config) -> str:
    """Hash of the names of the training cases when the run was started; another text where it is lost."""
    recorded = _environment(checkpoint).get(TRAINING_CASES)
    if recorded is None and split_has_changed(checkpoint, run):
        return "those of a split file that has changed since"
    return recorded or _cases_now(run)


def _environment(checkpoint: Path) -> dict[str, Any]:
    """The environment.json beside the checkpoint; {} where there is none that can be read."""
    try:
        content = json.loads((checkpoint.parent / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cases_now(run: Config) -> str:
    """Hash of the names of the training cases in the run's split file as it is now."""
    return names_sha256(read_split(find_split_file(run.pickle_file_path)).train)


def _names_data_set(name: str, data_set: DataSet) -> bool:
    """Whether `name` is that of the data set, of its folder, or of another split file in it.

    The split by groups, `<name>_grouped`, is of the same data as `<name>`.
    """
    ungrouped = name.removesuffix("_grouped")
    if ungrouped in (data_set.name.removesuffix("_grouped"), canonical_name(data_set.folder.name)):
        return True
    others = data_set.folder.glob(f"*{SPLIT_FILE_ENDING}.*")
    return name in {path.stem.removesuffix(SPLIT_FILE_ENDING) for path in others}


def averaged_run_count(checkpoint: Path) -> int:
    """Of how many runs the weights are the mean; 1 for those of a run."""
    return _run_count(checkpoint, AVERAGED_RUNS)


def ensemble_run_count(checkpoint: Path) -> int:
    """Of how many runs the file holds the weights, whose predictions are averaged; 1 for those of a run."""
    return _run_count(checkpoint, ENSEMBLE_RUNS)


def _run_count(checkpoint: Path, key: str) -> int:
    number = read_metadata(checkpoint).get(key, "1")
    return int(number) if number.isdecimal() else 1
