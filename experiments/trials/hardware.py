"""What each of several workers gets of the machine: GPUs, and a share of the cores."""

from __future__ import annotations

import os
from dataclasses import dataclass

from utils.config import Config
from utils.files import REPOSITORY
from utils.machine import available_cores


@dataclass(frozen=True)
class Hardware:
    """The GPUs of a worker, and the environment variables of its commands."""

    gpus: tuple[int, ...]
    environment: dict[str, str]


def hardware_of(config: Config, worker: int, workers: int) -> Hardware:
    """A single worker has all of the config's GPUs; of several, each has one GPU and a share of the cores.

    Commands find the modules of the repository from any folder.
    """
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    # bars would fill the log
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": python_path}
    if workers == 1:
        return Hardware(config.GPUs, environment)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // workers)))
    if not config.GPUs:
        return Hardware((), environment)
    place = worker % len(config.GPUs)
    gpu = config.GPUs[place]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    elif visible:
        # the config's numbers count the visible GPUs; where they are too large, those are taken in turn
        names = visible.split(",")
        number = gpu if max(config.GPUs) < len(names) else place % len(names)
        environment["CUDA_VISIBLE_DEVICES"] = names[number]
    return Hardware((gpu,), environment)


def process_count(config: Config, workers: int) -> int:
    """How many processes train a run of the config: one per GPU, if there are any and one worker has all."""
    if workers > 1 or len(config.GPUs) < 2:
        return 1
    import torch

    return len(config.GPUs) if torch.cuda.device_count() else 1
