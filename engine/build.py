"""Building the objects of a run from its config."""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

from datasets.cases import Case, DataSet
from datasets.loading import SegmentationDataset
from datasets.prepared import read_metadata_groups
from datasets.splits import hold_out, hold_out_fold
from engine.device import choose_layout
from engine.provenance import cases_recorded_of, trained_on_another_split
from engine.training import TrainingOptions
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights
from utils.checkpoints import load_weights
from utils.config import Config
from utils.errors import UserError, listed

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
        in_channel=config.in_channel,
        out_channels=config.out_channels,
        ch=config.ch,
        ch_mult=config.ch_mult,
        image_size=config.image_size,
        loss_weights=LossWeights(
            rec=config.w_rec,
            dice=config.w_dice,
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


def compile_on_gpu(config: Config, system: SegmentationModel) -> None:
    """`compile_losses` where `config` asks for it, on a GPU: on a CPU it takes minutes and gains nothing."""
    import torch

    if config.compile and torch.cuda.is_available():
        log.info("compile: the first training step takes some minutes")
        compile_losses(system)


def compile_losses(system: SegmentationModel) -> None:
    """Let `torch.compile` fuse the training pass of `system`, at its first call.

    Predictions stay as they are: they are few in a training, and compiling takes minutes. What cannot be
    compiled, for lack of a compiler say, runs as it is, with a warning.
    """
    import torch

    torch._dynamo.config.suppress_errors = True
    plain = type(system).forward
    compiled = torch.compile(plain, dynamic=False)

    def forward(self: SegmentationModel, image: Any, mask: Any = None, noise: Any = None) -> Any:
        return plain(self, image) if mask is None else compiled(self, image, mask, noise)

    # a method, so that a copy of the system (an average of its weights) has its own
    system.forward = MethodType(forward, system)  # type: ignore[method-assign]


def load_initial_weights(config: Config, data_set: DataSet, system: SegmentationModel) -> None:
    """Copy the weights that `init_weights` names, if it does, into the trainable parts of `system`.

    UserError where they do not fit, or were trained on cases of this test split.
    """
    if config.init_weights is None:
        return
    load_weights(config.init_weights, system, key="init_weights")
    if trained_on_another_split(config.init_weights, data_set):
        raise UserError(
            f"init_weights: {config.init_weights} was trained on another split of {data_set.name} than that of "
            f"{data_set.split_file}, so that scores on its test cases could mean nothing. Prepare the data set "
            "with the split that these weights name, or take weights of another data set"
        )
    test = {case.name for case in data_set.test}
    seen = sorted(test.intersection(cases_recorded_of(config.init_weights, data_set)))
    if seen:
        raise UserError(
            f"init_weights: {config.init_weights} was trained on {len(seen)} of the {len(test)} test "
            f"cases of this split ({listed(seen, limit=SHOWN)}), so that their scores would mean nothing. "
            "Take weights of another data set, or of a run with the same split"
        )


def training_cases(config: Config, data_set: DataSet) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases that choose the checkpoint.

    These are a part of train, fixed by name and seed: `val_fraction` of it, or one of `folds`; cases of
    one group that the data set was prepared with stay together. With `select_on: test` they are the
    test split. UserError where there is no case to choose by.
    """
    if config.select_on == "test":
        return list(data_set.train), list(data_set.test)
    names = [case.name for case in data_set.train]
    group_of = read_metadata_groups(data_set.folder)
    if config.folds:
        held = set(hold_out_fold(names, config.folds, config.fold, config.seed, group_of)[1])
    else:
        held = set(hold_out(names, config.val_fraction, config.seed, group_of)[1])
    if not held:
        raise UserError(
            f"no training case of {data_set.name} is held out to choose the checkpoint: raise val_fraction "
            f"({config.val_fraction:g}), or choose on test with select_on: test"
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
