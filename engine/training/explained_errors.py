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
            from engine.training.memory import explain_out_of_memory

            has_saved = (folder / LAST_STATE).exists()
            raise explain_out_of_memory(
                system, options, accelerator, image_size, has_saved
            ) from error
        raise
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"the network has batch normalisation, which cannot train on a batch of {options.batch_size} "
                "(per process): set batch_size to 2 or more"
            ) from error
        raise
