"""Provenance of a run or a score: weights and how they were chosen, data, settings, versions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.cases import DataSet
from datasets.prepared import METADATA_GROUPS, prepared_otherwise, prepared_with
from engine.runs.network_settings import same_parts, trained_values_that_differ
from engine.runs.run_cases import names_data_set
from engine.runs.seen_cases import seen_test_cases
from engine.runs.training_record import (
    GROUPS,
    INITIAL_WEIGHTS,
    SPLIT_FILE,
    TEACHERS,
    TrainingRecord,
)
from scoring.results import Provenance
from utils.checkpoints import frozen_hashes
from utils.config import Config
from utils.environment import describe_environment
from utils.files import joined_sha256, sha256

if TYPE_CHECKING:
    from engine.runs.trained_run import LoadedRun
    from models.base import SegmentationModel

log = logging.getLogger("wavegms")

_EFFECT_OF_OTHER_PREPARATION = {
    "images": "of images of more than 8 bits the model then sees other grey values",
    "masks": "their foreground may be another than the one that the model has learned",
}


def input_hashes(config: Config, data_set: DataSet, system: SegmentationModel) -> dict[str, str]:
    """SHA-256 of what a result rests on besides config and code."""
    hashes = {SPLIT_FILE: sha256(data_set.split_file)}
    if config.init_weights is not None:
        hashes[INITIAL_WEIGHTS] = sha256(config.init_weights)
    if config.teachers:
        hashes[TEACHERS] = joined_sha256(map(sha256, config.teachers))
    groups = data_set.folder / METADATA_GROUPS
    if groups.is_file():
        hashes[GROUPS] = sha256(groups)
    return hashes | frozen_hashes(system)


def provenance(loaded: LoadedRun, data_set: DataSet, precision: str) -> Provenance:
    """What a score rests on: weights and how they were chosen, data, settings, versions.

    `precision` is the one that the predictions are computed in, see `resolved_precision`.
    """
    config, checkpoint = loaded.config, loaded.checkpoint
    record = TrainingRecord.read(checkpoint)
    run, selection = record.config, record.selection()
    seen = seen_test_cases(checkpoint, data_set)
    for runs, of in ((record.averaged_runs, "weights"), (record.ensemble_runs, "probabilities")):
        if runs > 1:
            selection = f"mean of the {of} of {runs} runs, each {selection}"
    return {
        "selection": selection,
        "trained_on": None if run is None else run.dataset,
        "trained_on_another_split": bool(seen) or record.used_another_split(data_set),
        "test_cases_trained_on": seen,
        "trained_otherwise": trained_values_that_differ(
            config, run, same_parts(loaded.frozen, record.frozen)
        ),
        "data_set": data_set.name,
        "model": config.model,
        "vae_model": config.vae_model if config.is_wave_gms else None,
        "guidance_method": config.guidance_method if config.is_wave_gms else None,
        "vae_weights": config.vae_weights if config.is_wave_gms else None,
        "init_weights": None if run is None or run.init_weights is None else str(run.init_weights),
        "teachers": [] if run is None else [str(teacher) for teacher in run.teachers],
        "checkpoint": str(checkpoint),
        "sha256": {
            "checkpoint": loaded.sha256,
            SPLIT_FILE: sha256(data_set.split_file),
        },
        "image_size": config.image_size,
        "evaluation_size": config.evaluation_size or config.image_size,
        "threshold": config.threshold,
        "tta": config.tta,
        "keep_upright": config.keep_upright,
        "precision": precision,
        "environment": describe_environment(),
    }


def warn_of_other_preparation(checkpoint: Path, data_set: DataSet) -> None:
    """Warn if `data_set` was prepared with another `--window` than the training data or, if it is the data
    set of the training, with another `--label`. (Other data sets number their labels in their own way.)
    """
    record = TrainingRecord.read(checkpoint)
    differing = prepared_otherwise(record.prepared_with, prepared_with(data_set.folder))
    for files, trained, here in differing:
        if files == "masks" and not names_data_set(record.data_set, data_set):
            continue
        log.warning(
            f"the {files} of {data_set.name} were prepared with {here}, those that these weights were "
            f"trained on with {trained}: {_EFFECT_OF_OTHER_PREPARATION[files]}, and scores can be lower for it"
        )


def network_name(config: Config) -> str:
    """The network in a few words, as `wave-gms (litevae)`."""
    if not config.is_wave_gms:
        return config.model
    parts = [config.vae_model, *([config.guidance_method] if config.guidance_method else [])]
    return f"{config.model} ({', '.join(parts)})"
