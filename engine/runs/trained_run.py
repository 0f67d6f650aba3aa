"""Finding a trained run, by its folder or config, and loading its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.errors import UserError, listed
from utils.files import sha256
from utils.runs import BEST_WEIGHTS

if TYPE_CHECKING:
    from models.base import SegmentationModel
    from utils.config import Config

log = logging.getLogger("wavegms")

PROVIDED_MODELS = Path("ckpt/provided_models")
"""Weights that come with the repository, a folder like that of a run for each data set."""


class TrainedRun(NamedTuple):
    """A run that is trained: its config, and the checkpoint that is meant."""

    config: Config
    checkpoint: Path


class LoadedRun(NamedTuple):
    """A trained run whose weights are loaded."""

    config: Config
    checkpoint: Path
    system: SegmentationModel
    sha256: str
    """Of the checkpoint's content that was loaded, which a training that goes on may have replaced since."""
    frozen: dict[str, str]
    """SHA-256 of the weights of each frozen part, by its name."""


def find_run(
    folder: Path | None = None,
    config_file: Path | None = None,
    weights: Path | None = None,
    overrides: Sequence[str] = (),
) -> TrainedRun:
    """Config and checkpoint of a run, named by its `folder` or, without one, by a `config_file`.

    The checkpoint is the first of these that is given:
    1. `weights`;
    2. `model_weight` in `overrides` (`key=value`) or in `config_file`; the one in a folder's config.yaml is
       ignored;
    3. the best weights. In a `folder`: best_model.pth, or else the best_model.safetensors of export.py, even
       where its config.yaml names another place, as in a copy. For a `config_file`: best_model.pth of its
       run folder or, where that has none and no `epochs` are given in `overrides`, of the only run beside it.

    For a data set's own config without any run yet, the weights of the repository stand in, where there are
    some. UserError where the config or the checkpoint is missing.
    """
    if folder is not None:
        return _run_in_folder(folder, weights, overrides)
    assert config_file is not None, "neither the folder of a run nor a config file"
    return _run_of_config(config_file, weights, overrides)


def _run_in_folder(folder: Path, weights: Path | None, overrides: Sequence[str]) -> TrainedRun:
    from utils.config import load_config
    from utils.yaml_files import parse_overrides

    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it has no config.yaml. Name one as "
            "train.py wrote it (ckpt/<experiment>/epochs_<N>), or use --config" + _runs_near(folder)
        )
    config = load_config(config_file, overrides)
    named = config.model_weight if "model_weight" in parse_overrides(overrides) else None
    if weights is None and named is None:
        own = folder / BEST_WEIGHTS
        passed_on = own.with_suffix(".safetensors")
        weights = passed_on if passed_on.is_file() and not own.is_file() else own
    return _with_checkpoint(config, weights)


def _run_of_config(config_file: Path, weights: Path | None, overrides: Sequence[str]) -> TrainedRun:
    from utils.config import load_config
    from utils.yaml_files import parse_overrides

    config = load_config(config_file, overrides)
    if weights or config.model_weight:
        return _with_checkpoint(config, weights)
    provided = provided_for(config)
    if provided is None:
        if "epochs" not in parse_overrides(overrides):
            config = _of_only_run(config)
        return _with_checkpoint(config, None)
    log.warning(
        f"no run in {config.snapshot_path} yet: the weights that come with the repository are used, with their own "
        f"config, {provided}"
    )
    run = _run_in_folder(provided, None, overrides)
    split_file = {"pickle_file_path": config.pickle_file_path}
    return run._replace(config=run.config.model_copy(update=split_file))


def _of_only_run(config: Config) -> Config:
    """The config with the epochs of the experiment's only trained run, where its own have none."""
    runs = [path.parent for path in config.snapshot_path.glob(f"epochs_*/{BEST_WEIGHTS}")]
    if len(runs) != 1 or config.run_folder in runs:
        return config
    epochs = runs[0].name.removeprefix("epochs_")
    if not epochs.isdecimal():
        return config
    log.info(
        "no run of %d epochs in %s: the one of %s is taken",
        config.epochs,
        config.snapshot_path,
        epochs,
    )
    return config.model_copy(update={"epochs": int(epochs)})


def _with_checkpoint(config: Config, weights: Path | None) -> TrainedRun:
    """The config with `weights` as its `model_weight`, if given, and the checkpoint that it then means."""
    if weights:
        config = config.model_copy(update={"model_weight": weights})
    path = config.model_weight or config.run_folder / BEST_WEIGHTS
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}. Train one with the same config (python train.py --config ...), "
            "or name one: --weights path/to/best_model.pth, for valid.py model_weight=path/to/best_model.pth"
            + _runs_near(config.snapshot_path)
        )
    return TrainedRun(config, path)


def _runs_near(path: Path) -> str:
    """The runs in a folder, or beside what is none, for the end of a message."""
    near = path if path.is_dir() else path.parent
    folders = [near, *sorted(near.glob("epochs_*"))]
    runs = [str(each) for each in folders if (each / "config.yaml").is_file()]
    return f". Runs near by: {listed(runs, 5)}" if runs else ""


def provided_for(config: Config) -> Path | None:
    """Folder of the repository's weights for the config's data set.

    None where there are none, where the experiment has a run of its own, and for another experiment than
    that of the data set's own config.
    """
    folder, experiment = PROVIDED_MODELS / config.dataset, config.snapshot_path
    if experiment.name != f"wave_gms_{config.dataset}" or any(
        experiment.glob("epochs_*/best_model.*")
    ):
        return None
    return folder if (folder / "config.yaml").is_file() else None


def load_run(config: Config, checkpoint: Path) -> LoadedRun:
    """The trained system, see `load_system`, with hashes of the weights that are in it.

    Where a training replaces the checkpoint at that moment, it is read once more; UserError if that
    happens again.
    """
    from utils.checkpoints import frozen_hashes

    for _ in range(2):
        before = sha256(checkpoint)
        system = load_system(config, checkpoint)
        if sha256(checkpoint) == before:
            return LoadedRun(config, checkpoint, system, before, frozen_hashes(system))
    raise UserError(
        f"{checkpoint} was replaced twice while it was read, by a training that goes on: try again, or take a copy "
        "of the checkpoint"
    )


def load_system(config: Config, checkpoint: Path) -> SegmentationModel:
    """The trained system in eval mode, or an ensemble; a warning where it was trained with another config.

    UserError if the checkpoint is another architecture's.
    """
    from engine.build import system_from
    from engine.runs.network_settings import same_parts, trained_values_that_differ
    from engine.runs.training_record import TrainingRecord
    from utils.checkpoints import frozen_hashes, load_weights

    record = TrainingRecord.read(checkpoint)
    system = system_from(config, pretrained=False)
    if (runs := record.ensemble_runs) > 1:
        from models.ensemble import Ensemble

        system = Ensemble(
            [system, *(system_from(config, pretrained=False) for _ in range(runs - 1))]
        )
    load_weights(checkpoint, system, config=config)
    same_vae = same_parts(frozen_hashes(system), record.frozen)
    others = trained_values_that_differ(config, record.config, same_vae)
    if record.config and same_vae is False and record.config.vae_weights == config.vae_weights:
        del others["vae_weights"]
        log.warning(
            "the frozen VAE at %s is not the one of the training any more: restore that, or name it by vae_weights",
            config.vae_weights,
        )
    if others:
        keys = " ".join(
            f"{key}={'null' if value is None else value}" for key, value in others.items()
        )
        log.warning(
            "these weights were trained with %s: set that to use them as they were trained", keys
        )
    return system.eval()
