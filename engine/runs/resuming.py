"""Whether a run can be resumed: refused to other settings, and without its saved state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.prepared import PREPARED_WITH, prepared_otherwise
from engine.runs.run_cases import CASES_FILE, RunCases
from engine.runs.saved_state import LAST_STATE, state_files
from engine.runs.training_record import INPUT_FILES, training_config
from utils.config import Config, load_config
from utils.config_keys import CHANGEABLE_ON_RESUME
from utils.errors import UserError
from utils.mappings import differing
from utils.runs import BEST_WEIGHTS


def check_resumable(folder: Path, config: Config, inputs: Mapping[str, Any]) -> None:
    """UserError where `folder` holds a run that must not be resumed, or replaced.

    Unless `resume: never`: it has other settings or inputs, which the error lists, or it is trained but lost
    its saved state. With `resume: never`: it is on another data set, and would be deleted.

    `inputs` is what the result rests on besides the config, as environment.json has it: `sha256` of files
    (split file, frozen weights), the `precision` that `auto` selects here, how many `processes` share the
    work, and what the data was `prepared_with`, missing where that is not known.
    """
    other, again = _other_data_set(folder, config), "or start again with resume=never"
    if config.resume == "never":
        if other:
            raise UserError(
                f"{folder} holds a run on {other}, which resume=never would delete: set another snapshot_path, or "
                "delete that folder first"
            )
        return
    if other:
        again = f"or delete this run on {other}"
    if any(path.exists() for path in state_files(folder)):
        changed = _what_differs(*_recorded(folder), config, inputs)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{folder} holds a run with other settings; resuming would mix two experiments:\n"
                f"  {listed}\n"
                f"Set them back, set another snapshot_path, {again}"
            )
    elif epochs_recorded(folder) > 1:  # after one epoch a kill may have come before the state
        raise UserError(
            f"{folder} holds a trained run, but no {LAST_STATE} to resume from; training again would "
            f"overwrite its weights. Set another snapshot_path, {again}"
        )


def _other_data_set(folder: Path, config: Config) -> str:
    """Name of the data set of the run in `folder`; '' if it is that of `config`, or nothing was trained."""
    weights = folder / BEST_WEIGHTS
    left = (weights, *state_files(folder), *folder.glob("epoch_*.pth"))
    if not any(path.exists() for path in left):
        return ""
    saved = training_config(weights)
    return saved.dataset if saved is not None and saved.dataset != config.dataset else ""


def check_cases_unchanged(folder: Path, config: Config, cases: RunCases) -> None:
    """UserError where the run in `folder` would be resumed with other cases trained on or held out."""
    recorded = RunCases.read(folder / CASES_FILE)
    saved = any(path.exists() for path in state_files(folder))
    if config.resume == "never" or recorded is None or not saved:
        return
    if set(recorded.train) != set(cases.train) or set(recorded.held_out) != set(cases.held_out):
        raise UserError(
            f"{folder} holds a run that trains on other cases, or holds out others, than would be taken now; its "
            f"{CASES_FILE} names them. Restore the files of the data set and the code, set another snapshot_path, "
            "or start again with resume=never"
        )


def epochs_recorded(folder: Path) -> int:
    """Lines of history.csv below its header, even of a damaged one; 0 without weights or history."""
    history = folder / "history.csv"
    if not (folder / BEST_WEIGHTS).is_file() or not history.is_file():
        return 0
    return len(history.read_text(encoding="utf-8", errors="replace").splitlines()) - 1


def _what_differs(
    saved: Mapping[str, Any],
    environment: Mapping[str, Any],
    config: Config,
    inputs: Mapping[str, Any],
) -> list[str]:
    """What a run with the `saved` settings and that `environment` had otherwise, a line each."""
    precision, processes = inputs["precision"], inputs["processes"]
    current = config.model_dump(mode="json", exclude=set(CHANGEABLE_ON_RESUME))
    changed = [
        f"{key}: {before!r} in the saved run, {now!r} now"
        for key, (before, now) in differing(saved, current).items()
    ]
    # frozen parts that only the saved run names are those of an older version
    compared = [*INPUT_FILES, *inputs["sha256"]]
    hashes = differing(environment["sha256"], inputs["sha256"], compared)
    changed += [
        f"the {name} is {'gone, which the saved run had' if now is None else 'another file than in the saved run'}"
        for name, (_, now) in hashes.items()
    ]
    if (before := environment["precision"]) != precision:
        changed.append(
            f"precision: {before} in the saved run, {precision} here; precision={before} keeps it"
        )
    if (before := environment["processes"]) != processes:
        changed.append(
            f"processes: {before} in the saved run, {processes} now, each with batches of {config.batch_size}"
        )
    changed += [
        f"{files}: prepared with {before} in the saved run, with {now} now; "
        "prepare the data set as before, in a folder of its own, to go on"
        for files, before, now in prepared_otherwise(_recorded_preparation(environment), inputs)
    ]
    return changed


def _recorded_preparation(environment: Mapping[str, Any]) -> dict[str, str]:
    """What the data was `prepared_with` as the run was started, else resumed, as far as recorded."""
    records = (*reversed(environment.get("resumed", [])), environment)
    return {key: each[key] for each in records for key in PREPARED_WITH if key in each}


def _recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the environment that the run in `folder` was started with."""
    try:
        saved = load_config(folder / "config.yaml").model_dump(mode="json")
        environment = json.loads((folder / "environment.json").read_bytes())
        if not isinstance(environment["sha256"], dict):
            raise ValueError("environment.json holds no hashes")
        if missing := {"precision", "processes"} - environment.keys():
            raise ValueError(f"environment.json lacks {', '.join(sorted(missing))}")
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds a run whose settings cannot be read ({error}): "
            "set another snapshot_path, or start again with resume=never"
        ) from error
    return saved, environment
