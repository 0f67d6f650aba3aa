"""The YAML file of a sweep: the config of a run with one more key, `sweep:`.

    base: ../busi_train.yaml
    snapshot_path: ckpt/sweeps/busi_lr
    sweep:
      grid: {lr: [5.0e-4, 1.0e-3, 2.0e-3]}
      seeds: [1, 2, 3]

docs/sweeps.md says more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from utils.config import (
    Config,
    Count,
    PositiveInt,
    check_not_empty,
    make_config,
)
from utils.config_keys import NOT_INHERITED
from utils.config_problems import listed_below, wrong_value
from utils.errors import UserError
from utils.yaml_files import parse_overrides, read_mapping, shown, unknown_key

PAGE = "docs/sweeps.md"
BEST_NAME = "best"  # experiment folder that best.yaml trains into

OTHER_CASES = "scores on different cases do not compare; set it outside of `sweep:`"

SCHEDULE_KEYS = ("epochs", "warmup_epochs", "validate_every")
"""Keys that decide how far a training is at an epoch, and which epochs have a score."""

# keys that a sweep sets itself or keeps the same, and what to write in their place
NOT_SWEPT = {
    "seed": "list the seeds under `seeds:`",
    "fold": "set the number of folds by `folds:` under `sweep:`",
    "folds": "set the number of folds by `folds:` under `sweep:`",
    "snapshot_path": "each trial gets its own folder in the sweep's snapshot_path",
    "resume": "a sweep resumes its trials",
    "select_on": OTHER_CASES,
    "val_fraction": OTHER_CASES,
    "pickle_file_path": OTHER_CASES,
    "model_weight": "each trial scores its own weights",
    "save_seg_img_path": "the masks of each trial go into its folder",
}

Number = int | float
Choices = Annotated[list[Any], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=60)]


class Range(BaseModel):
    """The values of one key that a search may try."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: Number = Field(description="Smallest value")
    high: Number = Field(description="Largest value")
    log: bool = Field(False, description="Whether to draw on a logarithmic scale")
    step: Number | None = Field(None, description="Only low, low + step, ...")

    @model_validator(mode="after")
    def _agree(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}, expected low below high")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs low above 0, got {self.low:g}")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError(f"step is {self.step:g}, expected a number above 0 and no log: true")
        if self.step is not None:
            self._check_steps(self.step)
        return self

    def _check_steps(self, step: Number) -> None:
        """ValueError where the steps from `low` do not end at `high`."""
        steps = (self.high - self.low) / step
        if abs(steps - round(steps)) < 1e-8:
            return
        if steps < 1:
            raise ValueError(
                f"step is {step:g}, larger than the range: set a step of at most {self.high - self.low:g}"
            )
        last = self.low + math.floor(steps) * step
        raise ValueError(
            f"steps of {step:g} from {self.low:g} end at {last:g}, so high: {self.high:g} is never tried: "
            f"set high: {last:g}, or another step"
        )

    def text(self) -> str:
        """For example `0.0001 to 0.01, log`."""
        extra = ", log" if self.log else f", step {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{extra}"


class SweepSettings(BaseModel):
    """The mapping under `sweep:`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    grid: dict[str, Choices] = Field(
        {}, description="Key of the config -> values; all combinations"
    )
    variants: dict[Name, dict[str, Any]] = Field(
        {}, description="Name -> keys of the config that make this variant"
    )
    search: dict[
        str,
        Annotated[
            Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
            Discriminator(lambda value: "choices" if isinstance(value, list) else "range"),
        ],
    ] = Field({}, description="Key of the config -> range or list of choices, searched by Optuna")
    trials: PositiveInt | None = Field(None, description="Number of settings that a search tries")
    startup_trials: Count = Field(10, description="Settings drawn at random before TPE chooses")
    prune: bool = Field(True, description="Stop the trials of a search that are below the median")
    prune_startup_trials: Count = Field(
        5, description="Finished settings required before any trial is pruned"
    )
    prune_warmup_epochs: Count = Field(
        5, description="First epochs of a trial, in which it is not pruned"
    )
    storage: str | None = Field(
        None,
        description="Optuna storage URL that several machines share; default: SQLite in the sweep's folder",
    )
    study: str | None = Field(
        None, description="Name of the search in the storage; default: the folder's name"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (), description="Each setting has one trial per seed"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Number of parts of train; each setting has one trial per part, which it holds out",
    )
    workers: PositiveInt = Field(1, description="Trials at a time")
    validate_runs: bool = Field(
        False, alias="validate", description="Also run valid.py on the test split"
    )

    @model_validator(mode="after")
    def _agree(self) -> SweepSettings:
        if not (self.grid or self.variants or self.search or self.seeds or self.folds):
            raise ValueError("nothing to run: give grid, variants, search, seeds or folds")
        if self.search and (self.grid or self.variants):
            raise ValueError("search cannot be combined with grid or variants: make two sweeps")
        if bool(self.search) != bool(self.trials):
            raise ValueError("search and trials belong together: `trials: 20` ends the search")
        unlike = [key for key in SCHEDULE_KEYS if key in self.search]
        if self.prune and unlike:
            raise ValueError(
                f"prune compares settings at the same epoch, which is not the same part of their training where "
                f"{' and '.join(unlike)} is searched: set prune: false"
            )
        if self.storage and not self.search:
            raise ValueError("storage is only for search")
        if BEST_NAME in self.variants:
            raise ValueError(f"a variant cannot be called {BEST_NAME}, the folder of best.yaml")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has a seed twice: {list(self.seeds)}")
        variant_keys = [key for keys in self.variants.values() for key in keys]
        for key in [*self.grid, *self.search, *variant_keys]:
            if key in NOT_SWEPT:
                raise ValueError(f"{key} cannot be swept: {NOT_SWEPT[key]}")
        twice = sorted(set(variant_keys) & set(self.grid))
        if twice:
            raise ValueError(f"{', '.join(twice)} is set by grid and by a variant; leave one out")
        return self

    def keys_of_every_trial(self) -> set[str]:
        """Keys of the config that the sweep gives a value in each of its trials."""
        variants = [set(keys) for keys in self.variants.values()]
        in_all_variants = set.intersection(*variants) if variants else set()
        seed = {"seed"} if self.seeds else set()
        folds = {"fold", "folds"} if self.folds else set()
        return {*self.grid, *self.search, *in_all_variants, *seed, *folds}


@dataclass(frozen=True)
class Sweep:
    """A sweep as loaded: the values that all trials share, and the settings under `sweep:`."""

    path: Path
    values: dict[str, Any]
    settings: SweepSettings
    base: Config  # the shared values, validated

    @property
    def folder(self) -> Path:
        """Where the trials and the reports are written."""
        return self.base.snapshot_path

    def config(self, overrides: dict[str, Any]) -> Config:
        """The shared values with `overrides`; UserError that names the overrides if they do not fit."""
        changed = ", ".join(f"{key}: {shown(value)}" for key, value in overrides.items())
        return make_config(self.values | overrides, f"{self.path} with {changed}")


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep's YAML with `key=value` and `sweep.key=value` overrides.

    UserError for anything that is wrong in it, except values that only some trials have.
    """
    of_config = [text for text in overrides if not text.startswith("sweep.")]
    check_not_empty(of_config)
    shared = parse_overrides(of_config)
    values = read_mapping(path) | shared
    given = values.pop("sweep", None)
    if not isinstance(given, dict):
        raise UserError(
            f"{path} has no mapping under `sweep:`, got {shown(given)}. For a single run use "
            f"train.py; see {PAGE}"
        )
    sweep_overrides = [
        text.removeprefix("sweep.") for text in overrides if text.startswith("sweep.")
    ]
    try:
        settings = SweepSettings(**given | parse_overrides(sweep_overrides))
    except (ValidationError, TypeError) as error:  # the latter for keys that are not text
        raise UserError(_explain(error, path)) from error
    if idle := sorted(shared.keys() & settings.keys_of_every_trial()):
        raise UserError(
            f"{path}: {', '.join(idle)} would have no effect on the command line, since the sweep itself sets it "
            "in every trial: change it under `sweep:`, or by sweep.KEY=..., or leave it out"
        )
    if idle := sorted(shared.keys() & NOT_INHERITED.keys()):
        raise UserError(
            f"{path}: {', '.join(idle)} would have no effect, since each trial scores its own weights and writes its "
            "masks into its own folder: leave it out, and give it to valid.py for a trial"
        )
    base = make_config(values, str(path))
    if base.resume == "never":
        raise UserError(f"{path}: resume: never would lose trials that were stopped; leave it out")
    if base.keeps_last:
        raise UserError(
            f"{path}: select_on is last, but a sweep compares trials by the cases that choose their checkpoints: set "
            "select_on: val"
        )
    if base.select_on == "test" and settings.folds:
        raise UserError(
            f"{path}: folds choose the checkpoint on the fold held out: set select_on: val"
        )
    return Sweep(path, values, settings, base)


def _explain(error: ValidationError | TypeError, path: Path) -> str:
    if isinstance(error, TypeError):
        return f"{path}: the keys under `sweep:` must be names ({error})"
    lines = []
    for problem in error.errors(include_url=False):
        *parents, key = [
            str(part) for part in problem["loc"] if part not in ("range", "choices")
        ] or [""]
        where = ".".join(["sweep", *parents, key]).rstrip(".")
        if problem["type"] == "extra_forbidden":
            known = Range.model_fields if parents else _names(SweepSettings)
            lines.append(f"{'.'.join(['sweep', *parents])}: {unknown_key(key, known, PAGE)}")
        elif problem["type"] == "value_error":
            lines.append(f"{where}: {problem['ctx']['error']}")
        elif key == "[key]":  # of the name itself
            lines.append(
                f"sweep.variants: the name {parents[-1]!r}: a name has letters, digits, . _ + -, begins with a letter or "
                "digit, and is at most 60 characters long"
            )
        elif where in ("sweep.grid", "sweep.search", "sweep.variants") and problem["input"] is None:
            lines.append(f"{where}: `{key}:` is empty: give it values, or leave it out")
        else:
            lines.append(wrong_value(problem, where, key))
    return listed_below(str(path), lines)


def _names(model: type[BaseModel]) -> list[str]:
    """The keys of a model as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]
