"""Building the objects of a run from its config."""

from __future__ import annotations

from datasets.augmentation import Augmentation, augmentation_named
from datasets.cases import DataSet
from datasets.held_out import TrainingCases
from datasets.loading import SegmentationDataset
from engine.device import choose_layout
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights
from utils.config import Config
from utils.random_numbers import python_and_numpy_kept


def system_from(config: Config, pretrained: bool = True) -> SegmentationModel:
    """The model with its frozen VAE, initialised from the config's seed.

    Without `pretrained`, for weights that are loaded next, a baseline's own are not downloaded.
    """
    import torch

    torch.manual_seed(config.seed)
    with python_and_numpy_kept(config.seed):  # a network of the user's own may draw from these
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


def augmentation_from(config: Config) -> Augmentation | None:
    """The augmentation of the training images; UserError where one of the user's own cannot be used."""
    return augmentation_named(
        config.augment, keep_upright=config.keep_upright, image_size=config.image_size
    )


def training_sets(
    config: Config, cases: TrainingCases, system: SegmentationModel, progress: bool
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation cases, decoded and checked; validation takes the cache first."""
    budget = config.cache_mb << 20
    val_set = SegmentationDataset(
        cases.val,
        config.image_size,
        cache_bytes=budget,
        progress=progress,
        title=f"{config.scored_on} cases",
    )
    train_set = SegmentationDataset(
        cases.train,
        config.image_size,
        augmentation=augmentation_from(config),
        seed=config.seed,
        noise_shape=system.latent_shape(config.image_size),
        noise_probability=system.noise_probability,
        cache_bytes=max(0, budget - val_set.cached_bytes),
        progress=progress,
        title="training cases",
    )
    return train_set, val_set


def check_data(data_set: DataSet, image_size: int) -> None:
    """Decode every case of both splits; UserError lists all unusable ones together."""
    SegmentationDataset(
        (*data_set.train, *data_set.test),
        image_size,
        progress=True,
        title=f"cases of {data_set.name}",
    )
