"""Recognising that memory ran out, and saying what to change when predictions do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import UserError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found too little memory, on a GPU or for the CPU; it has no one class for that."""
    import torch

    # cuBLAS and cuDNN say the last
    signs = ("out of memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs):
        return True
    # the capture of a CUDA graph, ended while an error passes, raises another one
    first = error.__context__
    return "captur" in str(error) and isinstance(first, RuntimeError) and is_out_of_memory(first)


@contextmanager
def reporting_out_of_memory(images: int, side: int) -> Iterator[None]:
    """Running out of memory while `images` of `side` pixels are predicted together becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {images} images of {side} px at once: take fewer (batch_size=N for valid.py, "
            "--batch-size N for predict.py), or the CPU (CUDA_VISIBLE_DEVICES= before the command)"
        ) from error
