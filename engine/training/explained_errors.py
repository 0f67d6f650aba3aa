"""What torch raises while a network is trained, as UserErrors that say what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datasets.loading import LoaderDied, worker_died
from engine.out_of_memory import is_out_of_memory
from engine.runs.saved_state import LAST_STATE
from engine.training.options import TrainingOptions
from models.base import SegmentationModel
from utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from engine.training.memory import MemoryEstimate
    from engine.training.teachers import Teachers


@contextmanager
def explaining_errors(
    system: SegmentationModel,
    options: TrainingOptions,
    accelerator: Accelerator,
    image_size: int,
    folder: Path,
    teachers: Teachers | None = None,
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
            raise explain_out_of_memory(
                system, options, accelerator, image_size, has_saved, teachers
            ) from error
        raise
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"the network has batch normalisation, which cannot train on a batch of {options.batch_size} "
                "(per process): set batch_size to 2 or more"
            ) from error
        raise


def available_memory(device: torch.device) -> int | None:
    """Bytes of `device` that this process has or could get; None for the CPU."""
    if device.type != "cuda":
        return None
    if device.index is None:  # as accelerate names the only one; torch asks for the index below
        device = torch.device("cuda", torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_reserved(device)
    return min(free + mine, int(total * torch.cuda.get_per_process_memory_fraction(device)))


def split_batch(batch_size: int, accumulate: int, limit: int) -> tuple[int, int]:
    """Another `batch_size`, at most `limit`, and `accumulate` of the same product."""
    effective = batch_size * accumulate
    smaller = max(b for b in range(1, max(1, limit) + 1) if effective % b == 0)
    return smaller, effective // smaller


def explain_out_of_memory(
    system: SegmentationModel,
    options: TrainingOptions,
    accelerator: Accelerator,
    image_size: int,
    has_saved: bool,
    teachers: Teachers | None = None,
) -> UserError:
    """The error to report when memory ran out, with a batch that should fit if that can be estimated."""
    from engine.training.memory import estimate_memory

    try:
        estimate = estimate_memory(
            system,
            options.batch_size,
            image_size,
            accelerator.mixed_precision,
            averaged=options.ema_decay > 0,
            processes=accelerator.num_processes,
            teachers=teachers and teachers.ensemble,
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


def out_of_memory_error(
    estimate: MemoryEstimate,
    *,
    image_size: int,
    accumulate: int,
    available: int | None,
    checkpointed: bool,
    has_saved: bool,
) -> UserError:
    """The error to report when training at `estimate.batch_size` ran out of memory.

    Args:
        available: bytes that the device had for this process; None if that is not known, then half
            of the batch is proposed.
        checkpointed: whether `checkpoint_decoder` is on already.
        has_saved: whether there is a saved state, which can only be resumed with the same batch_size.
    """
    batch = estimate.batch_size
    # shrink even if the estimate fits: more was needed than estimated, or other processes took memory
    limit = batch // 2 if available is None else min(estimate.largest_batch(available), batch - 1)
    lines = [
        f"out of memory with batches of {batch} at {image_size} px, which take about "
        f"{estimate.total / 1e9:.1f} GB"
        + (f" of {available / 1e9:.1f} GB available" if available is not None else "")
    ]
    if not checkpointed:
        lines.append("checkpoint_decoder=true needs less and learns the same, only slower")
    if limit >= 1:
        smaller, times = split_batch(batch, accumulate, limit)
        fits = "" if available is None else f"batches of up to {limit} should fit: "
        again = ", with resume=never, since this run has saved a state" if has_saved else ""
        lines.append(
            f"{fits}batch_size={smaller} accumulate={times} has the same effective batch{again}"
        )
    else:
        lines.append("not even one image fits: set a smaller image_size, or a smaller network")
    return UserError("\n  ".join(lines))
