"""Building the objects of a run from its config."""

from __future__ import annotations

import logging

from datasets.cases import Case, DataSet
from datasets.loading import SegmentationDataset
from datasets.prepared import read_metadata_groups
from datasets.splits import cases_by_group, hold_out, hold_out_fold
from engine.device import choose_layout
from engine.training import TrainingOptions
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights
from utils.config import Config
from utils.errors import UserError

log = logging.getLogger("wavegms")

SHOWN = 4  # cases in a message


def system_from(config: Config, pretrained: bool = True) -> SegmentationModel:
    """The model with its frozen VAE, initialised from the config's seed.

    Without `pretrained`, for weights that are loaded next, a baseline's own are not downloaded.
    """
    import torch

    torch.manual_seed(config.seed)
    system = build_system(
        model=config.model,
        vae_model=config.vae_model,
        guidance_method=config.guidance_method,
        vae_weights=config.vae_weights,
        ch=config.ch,
        ch_mult=config.ch_mult,
        image_size=config.image_size,
        loss_weights=LossWeights(
            lm=config.w_rec,
            seg=config.w_dice,
            align=config.align_loss,
            tversky=config.w_tversky,
            heads=config.head_weights,
        ),
        latent_loss=config.latent_loss,
        checkpoint_decoder=config.checkpoint_decoder,
        pretrained=pretrained,
    )
    if config.channels_last:
        choose_layout(system, on_gpu=torch.cuda.is_available())
    system.capturable = system.capturable and config.cuda_graphs
    return system


def training_cases(config: Config, data_set: DataSet) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases that choose the checkpoint.

    The latter are those that the split names. Where it names none, they are a part of train, fixed
    by name and seed: `val_fraction` of it, or one of `folds`; cases of one group that the data set
    was prepared with stay together. With `select_on: test` they are the test split. UserError where
    there is no case to train on or to choose by.
    """
    if not data_set.train:
        raise UserError(
            f"{data_set.name} has no training cases, only {len(data_set.test)} to test on: train on another "
            f"data set, and score on this one with valid.py --datasets {data_set.name}"
        )
    if config.select_on == "test":
        return list(data_set.train), list(data_set.test)
    names = [case.name for case in data_set.train]
    group_of = read_metadata_groups(data_set.folder)
    if data_set.val and config.folds:
        raise UserError(
            f"{data_set.split_file} names {len(data_set.val)} cases to choose the checkpoint by (`val`), so folds "
            "cannot: set folds=0, or move them into train"
        )
    if data_set.val:
        held = set(data_set.val)
    elif config.folds:
        held = set(hold_out_fold(names, config.folds, config.fold, config.seed, group_of)[1])
    else:
        held = set(hold_out(names, config.val_fraction, config.seed, group_of)[1])
    if not held:
        raise UserError(
            f"no training case of {data_set.name} is held out to choose the checkpoint: raise val_fraction "
            f"({config.val_fraction:g}), or choose on test with select_on: test"
        )
    if len(held) == len(names):
        groups = len(cases_by_group(names, group_of))
        raise UserError(
            f"all {len(names)} training cases of {data_set.name} are held out to choose the checkpoint "
            f"(val_fraction {config.val_fraction:g}, {groups} group(s) such as patients, which stay whole), so "
            "none is left to train on: have more groups in train, or choose on test with select_on: test"
        )
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


def options_from(config: Config) -> TrainingOptions:
    """The part of the config that the training loop reads."""
    return TrainingOptions(
        **{name: getattr(config, name) for name in TrainingOptions.__dataclass_fields__}
    )
