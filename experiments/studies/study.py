"""An accuracy study: a YAML file that names systems, seeds and splits, and the run of each combination.

    title: BUSI, full recipe
    protocol: what was trained on what and for how long, in a sentence
    config: ../busi_train.yaml        # relative to this file
    settings: {save_freq: 20}         # keys of the config, for every run
    seeds: [1, 2, 3]
    splits:
      published: datasets/busi/busi_train_test_names.json
      grouped: datasets/busi/busi_grouped_train_test_names.json
    systems:
      Wave-GMS: {}
      SFT: {vae_model: tiny_vae, guidance_method: wavelet}

A run's folder is `<folder>/<system>/<split>/seed_<n>/epochs_<N>`. docs/studies.md has all keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.trials.trial import Trial
from utils.config import FilePath, check_used, load_config, make_config
from utils.config_keys import NOT_INHERITED
from utils.config_problems import wrong_value
from utils.errors import UserError
from utils.yaml_files import read_yaml, unknown_key

PUBLISHED = "published"
GROUPED = "grouped"
PAGE = "docs/studies.md"


class Study(BaseModel):
    """What a study's YAML file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(description="Title of the table and of the figure")
    protocol: str = Field(
        description="What was trained on what and for how long, in a sentence above the table"
    )
    config: FilePath = Field(
        description="Config that all runs start from; relative to the study's file"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Keys of the config, for every run"
    )
    seeds: tuple[int, ...] = Field(
        min_length=1, description="Each system is run once per seed and split"
    )
    splits: dict[str, FilePath] = Field(
        min_length=1,
        description="Split files: `published` and, optionally, `grouped`, without known near-duplicates across train and test",
    )
    systems: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="Name in the table -> keys of the config that make this system; the first one is "
        "compared with each of the others",
    )
    tta: bool = Field(
        True,
        description="Also score with test-time augmentation, eight predictions per case (two with `keep_upright`)",
    )
    folder: FilePath = Field(description="Where the runs are written, and the report without --out")


def load_study(path: Path) -> Study:
    """Read and check a study; UserError for anything that does not fit."""
    content = read_yaml(path)
    try:
        study = Study(**{"folder": Path("ckpt/studies") / path.stem} | content)
    except ValidationError as error:
        raise UserError(f"{path} is not a study: {_problems(error)}") from error
    if PUBLISHED not in study.splits or study.splits.keys() - {PUBLISHED, GROUPED}:
        raise UserError(
            f"{path}: splits are `{PUBLISHED}` and, beside it, `{GROUPED}`; got "
            f"{', '.join(study.splits)}"
        )
    if len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"{path}: a seed is given twice: {', '.join(map(str, study.seeds))}")
    _check_names(study, path)
    return study.model_copy(update={"config": path.parent / study.config})


class Run(NamedTuple):
    """What names a run within its study."""

    system: str
    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.system}, {self.split} split, seed {self.seed}"


def trials_of(study: Study) -> dict[Run, Trial]:
    """The trial of every run: one split after the other, and in it all systems of a seed.

    UserError for bad keys, for values that no run of a study can have, and for systems that are scored at
    different sizes.
    """
    base = load_config(study.config).model_dump(mode="json")
    runs = [
        Run(system, split, seed)
        for split in study.splits
        for seed in study.seeds
        for system in study.systems
    ]
    trials = {run: _make_trial(study, base, run) for run in runs}
    _check_sizes(trials)
    return trials


def _make_trial(study: Study, base: dict[str, Any], run: Run) -> Trial:
    own = {
        "pickle_file_path": study.splits[run.split],
        "snapshot_path": study.folder / folder_name(run.system) / run.split / f"seed_{run.seed}",
        "seed": run.seed,
    }
    given = study.settings | study.systems[run.system]
    if taken := sorted(own.keys() & given.keys()):
        raise UserError(
            f"{run.name}: {', '.join(taken)} cannot be set, since each run of a study has its own: "
            "name `seeds`, `splits` and `folder` of the study instead"
        )
    config = make_config(
        base | {"tta": False} | given | NOT_INHERITED | own, f"{run.system} of the study"
    )
    check_used(config, study.systems[run.system], f"{run.system} of the study")
    if config.resume == "never":
        raise UserError(
            f"{run.name}: resume: never would lose runs that were stopped; leave it out"
        )
    if config.keeps_last:
        raise UserError(
            f"{run.name}: select_on is last, expected val: a study scores the epoch that is best on the held-out cases"
        )
    if config.select_on == "test":
        raise UserError(
            f"{run.name}: select_on is test, expected val: the choice on test has its own "
            "column, and save_freq decides which epochs are its candidates"
        )
    if config.tta:
        raise UserError(
            f"{run.name}: tta is true, but scores with test-time augmentation have their own column: leave it out, "
            "and set `tta` of the study, beside `settings`"
        )
    return Trial(run.name, config)


def _check_sizes(trials: Mapping[Run, Trial]) -> None:
    """UserError unless all systems are scored at one size."""
    configs = {run.system: trial.config for run, trial in trials.items()}
    sizes = {name: each.evaluation_size or each.image_size for name, each in configs.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the systems are scored at different sizes ({'; '.join(f'{name}: {size}' for name, size in sizes.items())}), "
            "and masks of another size are other masks: Dice differs for that alone. For all systems, set "
            "evaluation_size in settings, to a side in pixels or native"
        )


def folder_name(system: str) -> str:
    """`Wave-GMS, no alignment` as `wave-gms_no_alignment`."""
    return re.sub(r"[^a-z0-9.-]+", "_", system.lower()).strip("._")


def _check_names(study: Study, path: Path) -> None:
    """UserError unless each system has its own folder."""
    owners: dict[str, str] = {}
    for system in study.systems:
        name = folder_name(system)
        if not name:
            raise UserError(
                f"{path}: the system {system!r} has no letter or digit of ASCII, from which the name "
                "of its folder is made; give it one"
            )
        if name in owners:
            raise UserError(
                f"{path}: the systems {owners[name]!r} and {system!r} would share the folder {name}; "
                "give them names that differ in more than signs and capitals"
            )
        owners[name] = system


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(unknown_key(key, Study.model_fields, PAGE))
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            lines.append(wrong_value(problem, key, str(problem["loc"][-1])))
    return "; ".join(lines)
