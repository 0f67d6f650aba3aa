"""The global generators of Python and numpy, which code of a user may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def python_and_numpy_kept(seed: int | None = None) -> Iterator[None]:
    """Afterwards both go on as if nothing had been drawn; within, they start from `seed` (below 2^32)."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
