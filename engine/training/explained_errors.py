"""What torch raises while a network is trained, as UserErrors that say what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.loading import LoaderDied, worker_died
from engine.device import is_out_of_memory
from engine.runs.saved_state import LAST_STATE
from engine.training.options import TrainingOptions
from models.base import SegmentationModel
from utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def explaining_errors(
    system: SegmentationModel,
    options: TrainingOptions,
    accelerator: Accelerator,
    image_size: int,
    folder: Path,
) -> Iterator[None]:
    """A dead loader, too little memory or a batch of one becomes a UserError.

    `folder` is that of the run: how to go on after it depends on whether a state is saved there.
    """
    try:
        yield
    except RuntimeError as error:
        if worker_died(error):
            raise LoaderDied(error) from None
        if is_out_of_memory(error):
            has_saved = (folder / LAST_STATE).exists()
            raise _out_of_memory(system, options, accelerator, image_size, has_saved) from error
        raise
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"the network has batch normalisation, which cannot train on a batch of {options.batch_size} "
                "(per process): set batch_size to 2 or more"
            ) from error
        raise


def _out_of_memory(
    system: SegmentationModel,
    options: TrainingOptions,
    accelerator: Accelerator,
    image_size: int,
    has_saved: bool,
) -> UserError:
    """The error to report, with a batch that should fit where that can be estimated."""
    from engine.training.memory import available_memory, estimate_memory, out_of_memory_error

    try:
        estimate = estimate_memory(
            system,
            options.batch_size,
            image_size,
            accelerator.mixed_precision,
            averaged=options.ema_decay > 0,
            processes=accelerator.num_processes,
        )
    except UserError:
        return UserError(
            f"out of memory with batches of {options.batch_size} at {image_size} px: set a smaller "
            "batch_size (a larger accumulate keeps the effective batch) or image_size"
        )
    return out_of_memory_error(
        estimate,
        image_size=image_size,
        accumulate=options.accumulate,
        available=available_memory(accelerator.device),
        checkpointed=getattr(system, "checkpoint_decoder", True),
        has_saved=has_saved,
    )
