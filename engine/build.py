"""From a config to the objects that a run is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.cases import Case, DataSet, find_split_file
from datasets.loading import SegmentationDataset
from datasets.splits import hold_out, hold_out_fold, read_split
from datasets.staging import METADATA_GROUPS, read_metadata_groups
from engine.device import choose_layout
from engine.training import TrainingOptions
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights
from utils.config import Config, load_config
from utils.errors import UserError
from utils.files import sha256
from utils.runs import describe_environment

if TYPE_CHECKING:
    from torch import nn


NETWORK_KEYS = (
    "model",
    "vae_model",
    "guidance_method",
    "vae_weights",
    "in_channel",
    "out_channels",
    "ch",
    "ch_mult",
    "image_size",
)
"""Keys of the config by which the same weights give another probability."""


def system_from(config: Config) -> SegmentationModel:
    """The model with its frozen VAE, initialised from the config's seed."""
    import torch

    torch.manual_seed(config.seed)
    system = build_system(
        model=config.model,
        vae_model=config.vae_model,
        guidance_method=config.guidance_method,
        vae_weights=config.vae_weights,
        in_channel=config.in_channel,
        out_channels=config.out_channels,
        ch=config.ch,
        ch_mult=config.ch_mult,
        image_size=config.image_size,
        loss_weights=LossWeights(rec=config.w_rec, dice=config.w_dice, align=config.align_loss),
        checkpoint_decoder=config.checkpoint_decoder,
    )
    if config.channels_last:
        choose_layout(system, on_gpu=torch.cuda.is_available())
    if config.compile:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        system.compile()
    return system


def training_cases(config: Config, data_set: DataSet) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases that choose the checkpoint.

    These are a part of train, fixed by name and seed: `val_fraction` of it, or one of `folds`; cases of
    one group that the data set was prepared with stay together. With `select_on: test` they are the
    test split.
    """
    if config.select_on == "test":
        return list(data_set.train), list(data_set.test)
    names = [case.name for case in data_set.train]
    group_of = read_metadata_groups(data_set.folder)
    if config.folds:
        held = set(hold_out_fold(names, config.folds, config.fold, config.seed, group_of)[1])
    else:
        held = set(hold_out(names, config.val_fraction, config.seed, group_of)[1])
    return (
        [case for case in data_set.train if case.name not in held],
        [case for case in data_set.train if case.name in held],
    )


def training_sets(
    config: Config, data_set: DataSet, system: SegmentationModel, progress: bool
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation cases, decoded and checked; validation takes the cache first."""
    train, val = training_cases(config, data_set)
    budget = config.cache_mb << 20
    val_set = SegmentationDataset(
        val,
        config.image_size,
        cache_bytes=budget,
        progress=progress,
        title=f"{config.select_on} cases",
    )
    train_set = SegmentationDataset(
        train,
        config.image_size,
        augment=config.augment,
        seed=config.seed,
        noise_shape=system.latent_shape(config.image_size),
        noise_probability=system.noise_probability,
        cache_bytes=max(0, budget - val_set.cached_bytes),
        progress=progress,
        title="training cases",
    )
    return train_set, val_set


def check_data(config: Config, data_set: DataSet) -> None:
    """Decode every case of both splits; UserError lists all unusable ones together."""
    SegmentationDataset(
        (*data_set.train, *data_set.test),
        config.image_size,
        progress=True,
        title=f"cases of {data_set.name}",
    )


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def input_hashes(data_set: DataSet, system: SegmentationModel) -> dict[str, str]:
    """SHA-256 of what a result rests on besides config and code."""
    hashes = {"split file": sha256(data_set.split_file)}
    groups = data_set.folder / METADATA_GROUPS
    if groups.is_file():
        hashes["file of groups"] = sha256(groups)
    return hashes | {name: weights_sha256(part) for name, part in system.frozen().items()}


def options_from(config: Config) -> TrainingOptions:
    """The part of the config that the training loop reads."""
    return TrainingOptions(
        **{name: getattr(config, name) for name in TrainingOptions.__dataclass_fields__}
    )


def find_checkpoint(config: Config) -> Path:
    """The weights to validate: `model_weight`, or the best of the run that the config describes.

    UserError that says where it looked.
    """
    path = config.model_weight or config.run_folder / "best_model.pth"
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}. Train one with the same config (python train.py --config ...), "
            "or name one: model_weight=path/to/best_model.pth"
        )
    return path


def training_config(checkpoint: Path) -> Config | None:
    """The config of the run that wrote the checkpoint, None where it does not lie beside it."""
    path = checkpoint.parent / "config.yaml"
    return load_config(path) if path.is_file() else None


def trained_otherwise(config: Config, run: Config | None) -> dict[str, Any]:
    """What the run that trained the weights had for each of NETWORK_KEYS that is another in `config`."""
    if run is None:
        return {}
    trained, now = run.model_dump(mode="json"), config.model_dump(mode="json")
    return {key: trained[key] for key in NETWORK_KEYS if trained[key] != now[key]}


def cases_trained_on(checkpoint: Path, data_set: DataSet) -> tuple[str, ...]:
    """Cases of `data_set` that the checkpoint's run had for training, those held out included.

    By the split in the config beside the checkpoint; without one, the train part of `data_set`. None
    where the run was trained on other data. UserError where the run's split file is gone.
    """
    run = training_config(checkpoint)
    if run is None:
        return tuple(case.name for case in data_set.train)
    same_name = run.dataset == data_set.name
    try:
        split_file = find_split_file(run.pickle_file_path)
    except UserError:
        if same_name:
            raise
        return ()
    if not same_name and split_file.parent.resolve() != data_set.folder.resolve():
        return ()
    return read_split(split_file).train


def provenance(config: Config, data_set: DataSet, checkpoint: Path) -> dict[str, Any]:
    """What a score rests on: weights and how they were chosen, data, settings, versions."""
    run = training_config(checkpoint)
    if run is not None:
        selection, trained_on = selection_note(run.select_on), run.dataset
    else:
        selection, trained_on = "no record beside the checkpoint of how it was chosen", None
    return {
        "selection": selection,
        "trained_on": trained_on,
        "trained_otherwise": trained_otherwise(config, run),
        "data_set": data_set.name,
        "model": config.model,
        "vae_model": config.vae_model,
        "guidance_method": config.guidance_method,
        "vae_weights": config.vae_weights,
        "checkpoint": str(checkpoint),
        "sha256": {
            "checkpoint": sha256(checkpoint),
            "split file": sha256(data_set.split_file),
        },
        "image_size": config.image_size,
        "evaluation_size": config.evaluation_size or config.image_size,
        "threshold": config.threshold,
        "tta": config.tta,
        "environment": describe_environment(),
    }


def selection_note(select_on: str) -> str:
    """How the checkpoint was chosen, in the words that every output uses."""
    if select_on == "test":
        return "checkpoint chosen on the TEST split (the published habit; scores are optimistic)"
    return "checkpoint chosen on a held-out part of train"
