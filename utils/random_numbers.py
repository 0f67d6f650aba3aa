"""The global generators of Python and numpy, which code of a user may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed_python_and_numpy(seed: int) -> None:
    """Start both from `seed`, of which numpy takes the lower 32 bits."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002


@contextmanager
def python_and_numpy_kept(seed: int | None = None) -> Iterator[None]:
    """Afterwards both go on as if nothing had been drawn; within, they start from `seed`."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    if seed is not None:
        seed_python_and_numpy(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
