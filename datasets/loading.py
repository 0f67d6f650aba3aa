"""From cases to batches: decode once, keep as uint8, augment each sample, reproducibly.

Everything random about a sample is drawn from its own seed, made of the run's seed, the epoch and
the case's index. So the number of workers or processes, the batch size and interruptions change
nothing about it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from tqdm import tqdm

from datasets.augmentation import Augmentation, to_unit_range
from datasets.cases import Case, CaseError, raise_problems, read_resized
from utils.errors import UserError
from utils.interruption import STOP_SIGNALS

CHANNELS_KEPT = 4  # RGB and the mask


class LoaderDied(UserError):
    """A loader process ended before its work was done."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(
            f"{str(error).strip()} The system killed it for lack of memory or of shared memory "
            "(/dev/shm; in Docker --shm-size), or somebody killed it. Resume by the same command, "
            "with num_workers=0 if it happens again"
        )


class Sample(TypedDict):
    """One case, or with a leading dimension a batch of them."""

    image: torch.Tensor  # (3, S, S) float32 in [0, 1]
    mask: torch.Tensor  # (1, S, S) float32, 0 or 1
    noise: torch.Tensor  # (4, S/8, S/8) float32, standard normal, or zeros
    index: int


class SegmentationDataset(Dataset[Sample]):
    """Cases at one size. Construction decodes every case once, which checks them all.

    As many cases as fit into `cache_bytes` stay in memory as uint8, the others are decoded at each
    access. Keys are `(epoch, index)`, as `EpochSampler` gives them, so that loader processes, which
    live through all epochs, augment anew in each.

    Raises UserError that lists all unusable cases together.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        image_size: int,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        noise_shape: tuple[int, ...] = (4, 1, 1),
        noise_probability: float = 0.0,
        cache_bytes: int = 0,
        progress: bool = False,
        title: str = "cases",
    ) -> None:
        self.cases = tuple(cases)
        self.image_size = image_size
        self.seed = seed
        self.noise_shape = noise_shape
        self.noise_probability = noise_probability
        self.transform: Augmentation = augmentation or to_unit_range()
        kept = min(len(self.cases), cache_bytes // (CHANNELS_KEPT * image_size**2))
        self._cache = np.empty((kept, image_size, image_size, CHANNELS_KEPT), dtype=np.uint8)
        self._fill_cache(progress, title)

    def _fill_cache(self, progress: bool, title: str) -> None:
        def load(index: int) -> str | None:
            try:
                image, mask = read_resized(self.cases[index], self.image_size)
            except CaseError as error:
                return str(error)
            if index < len(self._cache):
                self._cache[index, ..., :3] = image
                self._cache[index, ..., 3] = mask
            return None

        with ThreadPoolExecutor() as pool:
            results = pool.map(load, range(len(self.cases)))
            bar = tqdm(
                results,
                f"reading {title}",
                len(self.cases),
                disable=None if progress else True,
                leave=False,
            )
            raise_problems([problem for problem in bar if problem], title)

    @property
    def cached_bytes(self) -> int:
        """Memory that the decoded cases take."""
        return self._cache.nbytes

    def __len__(self) -> int:
        return len(self.cases)

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) and mask (S, S) of 0 and 1, uint8, before any augmentation."""
        if index < len(self._cache):
            kept = self._cache[index]
            return kept[..., :3], kept[..., 3]
        return read_resized(self.cases[index], self.image_size)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, mask = self.pixels(index)
        seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            # of the CPU alone: torch.manual_seed takes milliseconds to prepare that of idle GPUs too
            torch.default_generator.manual_seed(int(seed))
            noise = torch.randn(self.noise_shape) * (torch.rand(()) < self.noise_probability)
            try:
                picture, label = self.transform(
                    tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
                    tv_tensors.Mask(torch.from_numpy(mask)[None]),
                )
            except UserError as error:
                raise CaseError(f"{self.cases[index].name}: {error}") from error
        return Sample(
            image=picture.as_subclass(torch.Tensor).contiguous(),
            mask=label.as_subclass(torch.Tensor).float(),
            noise=noise,
            index=index,
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """A shuffled order of `(epoch, index)`, fixed by seed and epoch, that can start part-way.

    An epoch has the first `count` cases of its order; by default all.
    """

    def __init__(self, length: int, seed: int, count: int | None = None) -> None:
        self.length = length
        self.seed = seed
        self.count = length if count is None else count
        self.epoch = 0
        self.skip = 0

    def start_at(self, epoch: int, skip: int = 0) -> None:
        """Take the order of `epoch`, without its first `skip` cases."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return self.count - self.skip

    def order(self, epoch: int) -> list[int]:
        """All indices in the order of `epoch`."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.length).tolist()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.order(self.epoch)[self.skip : self.count])


def worker_died(error: RuntimeError) -> bool:
    """Whether torch raised this error because a loader process died; any line may raise it then."""
    return str(error).startswith("DataLoader worker (pid")


def batches_of(loader: Iterable[Sample]) -> Iterator[Sample]:
    """The batches of a loader; an error in a loader process is raised as if it had occurred here.

    Raises CaseError for a case that can no longer be read, LoaderDied for a dead process.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except CaseError as error:
            # a loader process puts its traceback before the message
            raise CaseError(str(error).strip().rpartition("CaseError: ")[2]) from None
        except RuntimeError as error:
            if worker_died(error):
                raise LoaderDied(error) from None
            raise
        yield batch


def _end_when_told(main: int) -> None:
    """Exit on a stop signal from the main process, whose id is `main`; ignore those that a batch system
    sends to every process.
    """
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != main:
        pass
    os._exit(0)


def _start_worker(_: int) -> None:
    main = multiprocessing.parent_process()
    if main is not None and hasattr(signal, "sigwaitinfo"):  # macOS lacks it
        # before the threads of this process start: they inherit that
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_end_when_told, args=(main.pid,), daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # the workers are the parallelism


def make_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    *,
    sampler: EpochSampler | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Sample]:
    """Batches of `Sample`: with a sampler in its order and full ones only, else all cases in order."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        drop_last=sampler is not None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
    )
