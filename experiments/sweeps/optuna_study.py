"""The Optuna study behind a search: what it draws values from, its storage, and what must not change.

It lies in the sweep's folder (SQLite) or in a storage that several machines share.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.cases import find_split_file
from datasets.prepared import METADATA_GROUPS, PREPARED_WITH, prepared_with
from experiments.sweeps.optuna_storage import named_cause, open_patiently
from experiments.sweeps.settings import Range, Sweep
from experiments.sweeps.trials import text_of
from experiments.trials.hardware import process_count
from experiments.trials.inputs import sha256_of, vae_file
from utils.config import Config
from utils.config_keys import CHANGEABLE_ON_RESUME
from utils.errors import UserError
from utils.files import sha256

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


KEPT_IN_SEARCH = {"precision", "save_freq", "validate_every", "vae_weights"}
"""Keys that a run may change when it is resumed, but a search may not."""


class NoOptunaStudy(UserError):
    """The search has no study yet."""


def distribution(sweep: Sweep, key: str) -> BaseDistribution:
    """What Optuna draws a key's values from; choices are drawn by their names.

    UserError where Optuna has none of that kind.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    values = sweep.settings.search[key]
    try:
        if not isinstance(values, Range):
            return CategoricalDistribution([text_of(value) for value in values])
        if isinstance(getattr(sweep.config({key: values.low}), key), int):
            low, high, step = int(values.low), int(values.high), int(values.step or 1)
            return IntDistribution(low, high, log=values.log, step=step)
        return FloatDistribution(values.low, values.high, log=values.log, step=values.step)
    except ValueError as error:
        raise UserError(f"{sweep.path}: sweep.search.{key}: {error}") from error


def value_of(values: Range | list[Any], drawn: Any) -> Any:
    """The config's value for what was drawn."""
    if isinstance(values, Range):
        return drawn
    return next(value for value in values if text_of(value) == drawn)


def make_sampler(sweep: Sweep, seed: int | None) -> optuna.samplers.BaseSampler:
    """TPE, after the random settings of the start."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # settings in parallel do not see each other's scores: constant_liar keeps them apart
        return optuna.samplers.TPESampler(
            n_startup_trials=sweep.settings.startup_trials, constant_liar=True, seed=seed
        )


def set_at_creation(study: optuna.Study, attributes: dict[str, Any]) -> None:
    """Let the trials that `study.ask` makes have these user attributes from the start.

    Set afterwards, they would be missing where the process is killed in between.
    """
    from optuna.trial import TrialState, create_trial

    storage: Any = study._storage
    create = storage.create_new_trial

    def create_with_attributes(study_id: int, template_trial: FrozenTrial | None = None) -> int:
        template = template_trial or create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        return create(study_id, template_trial=template)

    storage.create_new_trial = create_with_attributes


def open_optuna_study(sweep: Sweep, only_report: bool = False) -> optuna.Study:
    """The sweep's study. UserError if it is that of a search with other settings.

    Made if there is none; for `only_report` that is a UserError, and nothing is written into it.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "a search needs Optuna, which is not installed: pip install 'optuna>=4.0' "
            "(or list the values in a `grid:`)"
        ) from error
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if only_report and not sweep.settings.storage and not _file(sweep).is_file():
        raise _no_study_error(sweep)
    try:
        opening = partial(_load if only_report else _create, sweep)
        study = open_patiently(opening, None if sweep.settings.storage else _file(sweep))
    except KeyError as error:
        raise _no_study_error(sweep) from error
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, RuntimeError) as error:
        raise _opening_error(sweep, error) from error
    _check_same_search(sweep, study, trains=not only_report)
    if not only_report:
        _record_search(sweep, study)
    return study


def check_earlier_search(sweep: Sweep) -> None:
    """UserError where the study in the sweep's folder is that of a search with other settings.

    It is left as it is. One in a storage that machines share is checked when the search begins.
    """
    if not sweep.settings.storage and _file(sweep).is_file():
        with suppress(NoOptunaStudy):
            _check_same_search(sweep, open_optuna_study(sweep, only_report=True), trains=True)


def _create(sweep: Sweep) -> optuna.Study:
    """The study, new or as it is."""
    import optuna

    settings = sweep.settings
    return optuna.create_study(
        storage=_storage(sweep),
        study_name=_study_name(sweep),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=settings.prune_startup_trials,
            n_warmup_steps=settings.prune_warmup_epochs + 1,  # epochs count from 1
        ),
    )


def _load(sweep: Sweep) -> optuna.Study:
    """The study; KeyError if there is none."""
    import optuna

    return optuna.load_study(storage=_storage(sweep), study_name=_study_name(sweep))


def _storage(sweep: Sweep) -> str:
    """The storage's address: that of the settings, else a file in the sweep's folder, whatever its name."""
    from sqlalchemy import URL

    in_folder = URL.create("sqlite", database=str(_file(sweep)))
    return sweep.settings.storage or in_folder.render_as_string()


def _file(sweep: Sweep) -> Path:
    return sweep.folder / "study.db"


def _study_name(sweep: Sweep) -> str:
    return sweep.settings.study or sweep.folder.name


def _opening_error(sweep: Sweep, error: Exception) -> UserError:
    """Says why the storage of the study cannot be opened."""
    storage = "the storage of the study" if sweep.settings.storage else str(_file(sweep))
    if isinstance(error, RuntimeError):  # tables of another version: Optuna says what to do
        return UserError(f"cannot open {storage}: {error}")
    if sweep.settings.storage:
        return UserError(
            f"cannot open {storage} ({named_cause(error)}). Check `storage:`, "
            "whether its server answers, and whether its driver is installed"
        )
    return UserError(
        f"cannot open {storage}, the study of this search ({named_cause(error, in_full=True)}). Free the space, "
        "change the permissions, restore the file from a copy, or set another snapshot_path"
    )


def _no_study_error(sweep: Sweep) -> NoOptunaStudy:
    return NoOptunaStudy(
        f"there is no study {_study_name(sweep)} of this search yet: run it without --report"
    )


def _check_same_search(sweep: Sweep, study: optuna.Study, trains: bool) -> None:
    """UserError if the study's values were reached with other settings and so cannot be compared.

    How many processes train a run counts only where the sweep `trains`.
    """
    current = _compared_settings(sweep, trains)
    recorded = study.user_attrs.get("sweep") or {}
    changed = [
        f"{key}: {recorded.get(key)!r} in the study, {value!r} now"
        for key, value in current.items()
        if key in recorded and recorded[key] != value
    ]
    if changed:
        raise other_search_error(sweep, changed)


def _record_search(sweep: Sweep, study: optuna.Study) -> None:
    """Record the settings in the study, those that are not yet."""
    current = _compared_settings(sweep, trains=True)
    recorded = study.user_attrs.get("sweep") or {}
    # some may not have been known when the search began, as where the data was not prepared yet
    if current.keys() - recorded.keys():
        study.set_user_attr("sweep", recorded | current)


def _compared_settings(sweep: Sweep, trains: bool) -> dict[str, Any]:
    """What the values of a study depend on."""
    shared = sweep.base.model_dump(mode="json") | {"vae_weights": _weights(sweep.base.vae_weights)}
    free = (CHANGEABLE_ON_RESUME - KEPT_IN_SEARCH) | sweep.settings.search.keys()
    current = {key: value for key, value in shared.items() if key not in free}
    current |= _data(sweep.base) | _weight_files(sweep)
    current |= {"seeds": list(sweep.settings.seeds), "number of folds": sweep.settings.folds}
    if trains and "GPUs" not in sweep.settings.search:
        processes = process_count(sweep.base, sweep.settings.workers)
        current["processes that train a run"] = processes
    current["search"] = {
        key: values.model_dump()
        if isinstance(values, Range)
        else [text_of(value) for value in values]
        for key, values in sweep.settings.search.items()
    }
    return current


def _data(base: Config) -> dict[str, str | None]:
    """The data set's name, and where it is prepared on this machine, hashes of its split file and of its
    groups (None where it has none), and what it was prepared with.
    """
    data: dict[str, str | None] = {"data set": base.dataset}
    with suppress(UserError):
        split_file = find_split_file(base.pickle_file_path)
        groups = split_file.parent / METADATA_GROUPS
        data["split file (SHA-256)"] = sha256(split_file)
        data["groups (SHA-256)"] = sha256(groups) if groups.is_file() else None
        data |= {
            f"--{key} of the {PREPARED_WITH[key]}": value
            for key, value in prepared_with(split_file.parent).items()
        }
    return data


def _weight_files(sweep: Sweep) -> dict[str, str]:
    """The hash of each file of initial weights, teacher and VAE to choose from that is here, by its name."""
    starts = [path for path in _values(sweep, "init_weights") if path is not None]
    teachers = [path for ensemble in _values(sweep, "teachers") for path in ensemble]
    files = {f"files of initial weights (SHA-256): {path}": path for path in starts}
    files |= {f"files of teachers (SHA-256): {path}": path for path in teachers}
    if "vae_weights" in sweep.settings.search:
        names = _values(sweep, "vae_weights")
        files |= {f"files of vae_weights (SHA-256): {name}": vae_file(name) for name in names}
    return {label: sha256_of(path) for label, path in files.items() if path and path.is_file()}


def _values(sweep: Sweep, key: str) -> list[Any]:
    """What a key is in the configs of the search, which lists its choices or leaves it as it is."""
    choices = sweep.settings.search.get(key)
    configs = (
        [sweep.config({key: choice}) for choice in choices]
        if isinstance(choices, list)
        else [sweep.base]
    )
    return [getattr(config, key) for config in configs]


def _weights(name: str) -> str:
    """The VAE's weights: a folder by the hash of its file, as its path may differ between machines."""
    file = vae_file(name)
    return f"SHA-256 {sha256(file)}" if file else name


def other_search_error(sweep: Sweep, reasons: list[str]) -> UserError:
    """Says that the study is that of a search with other settings than those of `sweep`."""
    listed = "\n  ".join(reasons)
    return UserError(
        f"{sweep.folder} holds a search with other settings, whose scores do not compare:\n  {listed}\n"
        "Set them back, or set another snapshot_path (and with storage: another study)"
    )
