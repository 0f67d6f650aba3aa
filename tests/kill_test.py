"""Kill training runs at random moments, start them again, compare their ends with a whole run's.

    python tests/kill_test.py --kills 20
    python tests/kill_test.py --kills 20 --seed 1 --workers 1

Each of the kills hits a run of its own: half of them at a random moment of the run (a random part of
the processor time that a whole run takes), half while it writes a random file: in the middle of its bytes,
before and after its rename. Then the same command runs to the end. Model, optimiser,
averages, history.csv and best_model.pth must be those of the run that was not killed, bit for bit.
`--chain` kills one run again and again instead, each time after it was resumed.
The last line is a JSON object with the counts; exit code 1 if any end differs.

Every run is a fork of this process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(ROOT))


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(number: int, where: str, part: float) -> None:
    """Make this process die at its `number`-th atomic write.

    `where`: amid its bytes (a `part` of them is on the disk), before its rename, after it, or between
    the two renames by which last.pth.new becomes last.pth.
    """
    import utils.files

    left = [number]
    replace, write, fsync = Path.replace, utils.files.atomic_write, os.fsync

    def atomic_write(path: Path, content: Any) -> None:
        left[0] -= 1
        write(path, content)
        if left[0] == 0 and where == "after":
            kill_self()

    def cut_then_die(path: Path) -> None:
        with path.open("rb+") as file:
            file.truncate(int(part * path.stat().st_size))
            fsync(file.fileno())
        kill_self()

    def sync(fd: Any) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if left[0] == 0 and path.suffix == ".tmp" and where == "amid":
            cut_then_die(path)
        fsync(fd)

    def rename(self: Path, target: Path) -> Path:
        if left[0] == 0 and where == "before":
            kill_self()
        renamed = replace(self, target)
        if left[0] <= 0 and where == "between" and self.name == "last.pth":
            kill_self()  # the one moment without a last.pth
        return renamed

    for name in ("utils.files", "utils.runs", "utils.tensor_files", "engine.runs.run_folder",
                 "engine.runs.history", "engine.training.epoch_losses"):  # fmt: skip
        vars(sys.modules[name])["atomic_write"] = atomic_write
    os.fsync = sync
    Path.replace = rename  # type: ignore[method-assign, assignment]


def fork(work: Callable[[], object], log: Path) -> int:
    """Run `work` in a child whose output is appended to `log`; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def wait(child: int, seconds: float = float("inf")) -> tuple[bool, float]:
    """Wait for a child, but kill it after `seconds` of processor time: (killed, its time)."""
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if status and not killed:
                raise SystemExit(f"a run ended with status {status}, see its log")
            return killed, usage.ru_utime + usage.ru_stime
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / CLOCK_TICKS >= seconds:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def same(one: Any, other: Any) -> bool:
    """Whether two contents of checkpoints are equal, tensors bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def same_end(one: Path, other: Path) -> bool:
    """Whether two run folders hold the same end, and nothing half-written."""
    import torch

    states = [torch.load(folder / "last.pth", weights_only=True) for folder in (one, other)]
    best = [torch.load(folder / "best_model.pth", weights_only=True) for folder in (one, other)]
    histories = [(folder / "history.csv").read_bytes() for folder in (one, other)]
    return (
        same(*states)
        and same(*best)
        and histories[0] == histories[1]
        and not [*one.glob(".*.tmp"), *other.glob(".*.tmp")]
    )


def build_vae(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    blocks = (1, 1, 1, 1)
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    vae.save_pretrained(folder)


def preload() -> None:
    """Import what a run imports, so that its fork need not; nothing is computed yet."""
    for module in (
        "accelerate", "diffusers.models.autoencoders.autoencoder_tiny", "engine.build", "engine.runs.run_folder",
        "engine.training.trainer", "matplotlib.backends.backend_agg", "torch.utils.tensorboard", "train",
    ):  # fmt: skip
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)


class KillTest:
    """Runs in `folder`, whose ends are compared with the one in `folder/whole`."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.log = folder / "log.txt"
        wait(fork(lambda: build_vae(folder / "vae"), self.log))
        _, self.seconds = wait(fork(lambda: self.run("whole"), self.log))
        self.ends = self.equal = 0

    def run(self, out: str) -> None:
        import train
        from tests.small_run import arguments

        settings = ("save_minutes=1e-6", f"num_workers={self.workers}", "ema_decay=0.9", "ch=16")
        train.main(arguments(self.folder, self.folder / "vae", *settings, out=out))

    def kill_at(self, out: str, seconds: float) -> bool:
        """Whether a run was killed after so much processor time; False: it had ended."""
        return wait(fork(lambda: self.run(out), self.log), seconds)[0]

    def kill_in_write(self, out: str, number: int, where: str, part: float) -> bool:
        def dying() -> None:
            die_in_write(number, where, part)
            self.run(out)

        return wait(fork(dying, self.log))[0]

    def finish(self, out: str) -> None:
        wait(fork(lambda: self.run(out), self.log))
        equal = same_end(self.folder / "whole" / "epochs_2", self.folder / out / "epochs_2")
        self.ends += 1
        self.equal += equal
        if equal:
            shutil.rmtree(self.folder / out)


def kill_runs(test: KillTest, kills: int, draw: random.Random, chain: bool) -> dict[str, int]:
    """Kill so often; returns the counts."""
    counts = {"kills": 0, "at_a_random_moment": 0, "while_writing": 0, "too_late": 0}
    attempts = 0
    while counts["kills"] < kills and attempts < 3 * kills:
        out = "chain" if chain else f"run_{attempts}"
        attempts += 1
        if attempts % 2:
            seconds = draw.uniform(0, test.seconds / (2 if chain else 1))
            killed = test.kill_at(out, seconds)
            kind, moment = "at_a_random_moment", f"after {seconds:.2f} s"
        else:
            number, part = draw.randint(1, 4 if chain else 13), draw.random()
            where = draw.choice(("amid", "before", "after", "between"))
            killed = test.kill_in_write(out, number, where, part)
            kind, moment = "while_writing", f"{where}, write {number}"
        if killed:
            counts["kills"] += 1
            counts[kind] += 1
        else:
            counts["too_late"] += 1
        if not chain:
            test.finish(out)
        what = "killed" if killed else "had ended"
        print(f"{moment}: {what}; {test.equal} of {test.ends} ends equal", flush=True)
    if chain:
        test.finish("chain")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2333)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of the runs")
    parser.add_argument("--chain", action="store_true", help="all kills on one run")
    options = parser.parse_args()
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kill_test_"))
    preload()
    test = KillTest(folder, options.workers)
    counts = kill_runs(test, options.kills, random.Random(options.seed), options.chain)
    settings = {"seed": options.seed, "workers": options.workers, "chain": options.chain}
    spent = {
        "processor_seconds_of_a_whole_run": round(test.seconds, 1),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(json.dumps(counts | {"ends": test.ends, "bitwise_equal": test.equal} | settings | spent))
    if test.equal < test.ends:
        print(f"what differs was kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
