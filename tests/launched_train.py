"""train.py in two processes that stop and resume, for test_scaling.py.

    python tests/launched_train.py FOLDER train.py's arguments

What torchrun does, but the processes are forks of this one, which has imported everything and
computed nothing. In the first launch process 1 sends a SIGTERM to the launcher in its sixth step and
process 0 does not listen to signals; the second launch resumes. In both, process 1 must not write
into FOLDER. Its second loss is NaN. A third launch trains a network with batch normalisation. The last
line says how the launches ended.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(ROOT))

STOPPED_IN_STEP = 6
NORMALISED = (
    "model=tests.own_networks:build",
    "ema_decay=0",
    "select_on=test",
    "epochs=1",
    "threshold=0.4285",  # about the median of the probabilities: other statistics give other masks
)


def forbid_writing(folder: str) -> None:
    """Make this process end when it changes anything in `folder`."""

    def check(event: str, details: tuple[object, ...]) -> None:
        path, mode = (*details, None, None)[:2]
        writes = event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and isinstance(mode, str) and bool(set(mode) & set("wax+"))
        )
        if writes and str(path).startswith(folder):
            os.write(2, f"process 1 writes {path}\n".encode())
            os._exit(99)

    sys.addaudithook(check)


def spoil_second_loss() -> None:
    """Make the second loss of this process NaN."""
    from models.wave_gms import WaveGMS

    losses, calls = WaveGMS.losses, itertools.count(1)

    def spoiled(self, *args):
        result = losses(self, *args)
        if next(calls) == 2:
            result["loss"] = result["loss"] * float("nan")
        return result

    WaveGMS.losses = spoiled  # type: ignore[method-assign]


def stop_the_launcher() -> None:
    """Send it a SIGTERM in a step, which ends when this process has got one from it."""
    from engine.training.step import TrainingStep

    step, calls = TrainingStep.__call__, itertools.count(1)

    def stopping_step(self, batch):
        if next(calls) == STOPPED_IN_STEP:
            os.kill(os.getppid(), signal.SIGTERM)
            noted = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
            while not noted.requested:
                time.sleep(0.01)
        return step(self, batch)

    TrainingStep.__call__ = stopping_step  # type: ignore[method-assign]


def work(stopped: bool, folder: str, arguments: list[str]) -> None:
    """One process of a launch."""
    import train

    if os.environ["RANK"] == "1":
        forbid_writing(folder)
        if stopped:
            spoil_second_loss()
            stop_the_launcher()
    elif stopped:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    train.main(arguments)


def launch(*details: object) -> str:
    """How two processes that do `work` ended."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        monitor_interval=0.1,
        max_restarts=0,  # torchrun's default; restarted forks wait for each other for half an hour
    )
    try:
        elastic_launch(config, work)(*details)
    except SignalException as stopped:
        return stopped.sigval.name
    return "finished"


if __name__ == "__main__":
    from tests.kill_test import preload

    folder, *arguments = sys.argv[1:]
    preload()
    launches = (True, arguments), (False, arguments), (False, [*arguments, *NORMALISED])
    print("\n" + " ".join(launch(stopped, folder, given) for stopped, given in launches))
