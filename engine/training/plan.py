"""The plan of a run, printed before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets.cases import DataSet
from datasets.held_out import TrainingCases
from datasets.own_augmentation import OwnAugmentation
from engine.build import augmentation_from
from engine.device import bf16_on_this_cpu, describe_device, resolved_precision
from engine.runs.seen_cases import known_held_out_cases
from engine.runs.training_record import selection_note
from engine.training.schedule import batches_per_epoch
from models.base import SegmentationModel, has_batch_norm
from models.baseline import pretrained_encoder
from models.own_network import check_training, is_own_network
from utils.config import Config
from utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from engine.training.teachers import Teachers

PART_TITLES = {
    "model": "latent mapping model",
    "vae_model": "multi-resolution Haar encoder",
    "skff_model": "SKFF",
}


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_table(system: SegmentationModel, model: str) -> str:
    """Parameters by part, and their trainable sum; `model` is the config's key."""
    titles = PART_TITLES if model == "wave-gms" else {"model": f"network {model}"}
    rows = [
        (titles.get(name, name), count_parameters(part), "trained")
        for name, part in system.parts().items()
    ]
    trainable = sum(count for _, count, _ in rows)
    rows += [(name, count_parameters(part), "frozen") for name, part in system.frozen().items()]
    lines = [f"  {name:<32}{count:>12,}  {state}" for name, count, state in rows]
    return "\n".join([*lines, f"trainable parameters: {trainable:,}"])


def check_run(config: Config, system: SegmentationModel) -> None:
    """UserError where the config asks for something that cannot be done in training."""
    if config.ema_decay and has_batch_norm(system):
        raise UserError(
            f"{config.model} has batch normalisation, whose statistics do not fit averaged weights: set "
            "ema_decay=0"
        )
    if is_own_network(config.model):
        check_training(system, config.image_size)
    augmentation = augmentation_from(config)
    if isinstance(augmentation, OwnAugmentation):
        augmentation.try_out()


def _use_of_val(config: Config) -> str:
    if config.keeps_last:
        return "held out"
    return f"{config.select_on} for choosing"


def describe_run(
    config: Config,
    data_set: DataSet,
    cases: TrainingCases,
    system: SegmentationModel,
    accelerator: Accelerator,
) -> str:
    """The plan as text; UserError where the cases do not fill a step."""
    processes = accelerator.num_processes
    batches = batches_per_epoch(len(cases.train), config.batch_size, config.accumulate, processes)
    steps = batches // config.accumulate
    effective = config.batch_size * config.accumulate * processes
    return "\n".join(
        [
            parameter_table(system, config.model),
            *_note_on_unused(config),
            f"starts from: {_start(config)}",
            *_note_on_teachers(config),
            f"data set: {data_set.name} ({data_set.split_file}), {config.image_size} px",
            f"cases: {len(cases.train)} train, {len(cases.val)} {_use_of_val(config)}, "
            f"{len(data_set.test)} test",
            f"augmentation: {_augmentation_text(config)}",
            *_note_on_start(config, cases, data_set),
            f"effective batch: {effective} = {config.batch_size} x {config.accumulate} accumulated "
            f"x {processes} process(es); peak learning rate {config.lr:g}",
            f"steps per epoch: {steps}; epochs: {config.epochs}; steps in all: {steps * config.epochs}",
            *_note_on_warm_up(config),
            f"device: {describe_device(accelerator)}",
            *_note_on_precision(config, accelerator),
            selection_note(config),
            f"writes to: {config.run_folder}",
        ]
    )


def _start(config: Config) -> str:
    """What the first weights of the training are, in words."""
    if config.init_weights is not None:
        return str(config.init_weights)
    if is_own_network(config.model):
        return f"what {config.model} returns"
    encoder = None if config.model == "wave-gms" else pretrained_encoder(config.model)
    return f"{encoder}, random weights elsewhere" if encoder else "random weights"


def _augmentation_text(config: Config) -> str:
    """How training images are augmented, in words."""
    if config.augment is False:
        return "none"
    if config.augment not in (True, "strong"):
        return str(config.augment)
    name = "as published" if config.augment is True else "strong"
    return f"{name}, upright" if config.keep_upright else name


def _note_on_unused(config: Config) -> list[str]:
    """A line where keys were changed that the model does not use; none otherwise."""
    unused = config.changed_and_unused
    if not unused:
        return []
    return [
        f"warning: model {config.model} does not use {', '.join(unused)}: what the config sets there changes nothing"
    ]


def _note_on_teachers(config: Config) -> list[str]:
    """A line where the training has teachers; none otherwise."""
    if not config.teachers:
        return []
    named = ", ".join(map(str, config.teachers))
    return [
        f"learns from: masks, of which {100 * config.teacher_share:g} % are the mean prediction of {named}"
    ]


def _note_on_start(config: Config, cases: TrainingCases, data_set: DataSet) -> list[str]:
    """One line for each checkpoint that the run builds on and that was trained on cases held out here."""
    of_which, also = "for choosing", " and may choose a worse checkpoint"
    if config.keeps_last:
        of_which, also = "that are held out", ""
    known = {
        weights: known_held_out_cases(weights, cases.val, data_set) for weights in config.builds_on
    }
    return [
        f"warning: {weights} was trained on {len(names)} of the cases {of_which}, so that val_dice is "
        f"too high{also}; keep the seed, val_fraction and folds of its run, or take weights of other data"
        for weights, names in known.items()
        if names
    ]


def _note_on_warm_up(config: Config) -> list[str]:
    """A line where the warm-up takes all epochs; none otherwise."""
    if config.warmup_epochs < config.epochs:
        return []
    return [f"warm-up: {config.warmup_epochs:g} epochs, so the peak rate is never reached"]


def _note_on_precision(config: Config, accelerator: Accelerator) -> list[str]:
    """A line where another precision is likely faster on this processor; none on a GPU."""
    if accelerator.device.type != "cpu":
        return []
    used, bf16 = resolved_precision(accelerator), bf16_on_this_cpu()
    if used == "fp32" and config.precision == "auto" and bf16 == "fast":
        return [
            "this processor has units for bf16: precision=bf16 may be faster, see docs/performance.md"
        ]
    if used == "bf16" and bf16 == "slow":
        return [
            "warning: this processor has no instructions for bf16: precision=fp32 is likely faster"
        ]
    return []


def memory_line(
    config: Config,
    system: SegmentationModel,
    accelerator: Accelerator,
    teachers: Teachers | None = None,
) -> str:
    """The memory that training takes on a GPU; without one here, on a GPU that has bf16."""
    import torch

    from engine.training.memory import describe_memory, estimate_memory

    on_gpu = accelerator.device.type == "cuda"
    asked = "bf16" if config.precision == "auto" else config.precision
    precision = resolved_precision(accelerator) if on_gpu else asked
    try:
        estimate = estimate_memory(
            system,
            config.batch_size,
            config.image_size,
            precision,
            averaged=config.ema_decay > 0,
            processes=accelerator.num_processes,
            teachers=teachers and teachers.ensemble,
        )
    except UserError as error:
        return f"GPU memory: {error}"
    total = torch.cuda.get_device_properties(accelerator.device).total_memory if on_gpu else None
    return describe_memory(estimate, precision, total)
