"""The training loop.

What is random about a sample is drawn from (seed, epoch, case), see `datasets.loading`, and what a network
draws, such as dropout, from (seed, epoch, batch, process). So a run that was stopped anywhere and resumed
from `last.pth` ends with the same weights as one that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.cases import CaseError
from datasets.loading import (
    EpochSampler,
    LoaderDied,
    Sample,
    SegmentationDataset,
    batches_of,
    make_loader,
)
from engine.cuda_graphs import Predictor
from engine.runs.history import EpochRow, HistoryWriter, epoch_line, sample_panel
from engine.runs.saved_state import check_version, load_state, save_state
from engine.training.epoch_losses import EpochLosses, NonFiniteLoss, write_nonfinite
from engine.training.epoch_scores import mean_scores
from engine.training.explained_errors import explaining_errors
from engine.training.options import TrainingOptions
from engine.training.schedule import batches_per_epoch
from engine.training.step import TrainingStep
from engine.training.teachers import Teachers
from models.base import SegmentationModel
from utils.checkpoints import save_weights
from utils.errors import UserError
from utils.interruption import Interrupted, StopRequest
from utils.random_numbers import seed_python_and_numpy
from utils.runs import BEST_WEIGHTS, writing_to

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("wavegms")

SAMPLES_SHOWN = 4


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    best: float = -math.inf
    best_epoch: int = 0
    skipped: int = 0  # batches with non-finite losses, in all epochs
    skipped_in_epoch: int = 0
    # of the losses, over the epoch's finite batches
    sums: list[float] = field(default_factory=list)
    history: list[EpochRow] = field(default_factory=list)


class Trainer:
    """Trains one system on one data set; each process of a distributed run has its own.

    Losses are means over the batches of all processes, so all of them see the same numbers and
    decide alike. The main process writes into `folder`: history.csv, curves.png, TensorBoard events
    in logs/, best_model.pth (the weights of the best validation, or with `select_on: last` of the newest
    epoch) and last.pth (everything that a resume needs).
    """

    def __init__(
        self,
        system: SegmentationModel,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset,
        options: TrainingOptions,
        accelerator: Accelerator,
        folder: Path,
        title: str,
        teachers: Teachers | None = None,
    ) -> None:
        self.system, self.train_set, self.val_set = system, train_set, val_set
        self.options, self.accelerator = options, accelerator
        self.folder, self.title = folder, title
        self.score_name = f"{options.scored_on}_dice"

        processes = accelerator.num_processes
        self.batches = batches_per_epoch(
            len(train_set), options.batch_size, options.accumulate, processes
        )
        self.step = TrainingStep(
            system, options, self.batches // options.accumulate, accelerator, teachers
        )
        self.progress = Progress(sums=[0.0] * len(self.step.loss_names))
        count = self.batches * options.batch_size * processes
        self.sampler = EpochSampler(len(train_set), options.seed, count)
        self.loader, self.val_loader = accelerator.prepare(*self._loaders())
        self.predict = Predictor(self.step.evaluated_system, accelerator)
        self.check_every = self._batches_between_checks()
        self.saved_at = time.monotonic()

    def fit(self) -> None:
        """Train until the last epoch, from where `resume` has come to.

        Raises Interrupted (after saving) when a signal asks to stop, NonFiniteLoss when the loss is
        NaN or infinite more often than allowed, and other UserErrors for a full disk, too little
        memory, an image that can no longer be read or a dead loader process. The last saved state is
        kept each time.
        """
        if self.progress.epoch >= self.options.epochs:
            log.info("this run has already finished its %d epochs", self.options.epochs)
            return
        is_main, launched = self.accelerator.is_main_process, self.accelerator.num_processes > 1
        with (
            explaining_errors(
                self.system,
                self.options,
                self.accelerator,
                self.train_set.image_size,
                self.folder,
                self.step.teachers,
            ),
            HistoryWriter(self.folder, self.title) if is_main else nullcontext() as history,
            StopRequest(second_exits=not launched) as stop,
        ):
            while self.progress.epoch < self.options.epochs:
                started = time.monotonic()
                self._train_epoch(stop)
                self._finish_epoch(history, time.monotonic() - started)
                if signal_number := self._stop_signal(stop):
                    raise Interrupted(signal_number)

    @property
    def outcome(self) -> str:
        """Which epoch's weights are kept."""
        progress, options = self.progress, self.options
        if options.keeps_last:
            return f"epoch {progress.epoch}, the last"
        return f"best {options.scored_on} Dice {progress.best:.4f} in epoch {progress.best_epoch}"

    def _train_epoch(self, stop: StopRequest) -> None:
        progress = self.progress
        done = progress.batch * self.options.batch_size * self.accelerator.num_processes
        self.sampler.start_at(progress.epoch, done)
        self.step.wrapped.train()
        self.step.capture(self.options.batch_size, self.train_set.image_size)
        sums = EpochLosses(progress.sums, self.accelerator.device)
        with self._progress_bar() as bar:
            try:
                for batch in batches_of(self.loader):
                    self._seed_step()
                    losses = self.step(batch)
                    sums.add(progress.batch, losses)
                    progress.batch += 1
                    bar.update()
                    if progress.batch % self.check_every == 0 or progress.batch == self.batches:
                        self._check_losses(sums)
                        self._show(bar, losses)
                        self._save_if_due(stop)
            except (CaseError, LoaderDied):  # between two steps: the main process loses nothing
                self._check_losses(sums)
                if self._can_be_saved():
                    self.save()
                raise

    def _finish_epoch(self, history: HistoryWriter | None, seconds: float) -> None:
        """Validate where it is due; write what was reached (`history`: in the main process), save."""
        progress, options = self.progress, self.options
        self.step.check_finite(progress.epoch + 1)
        progress.epoch += 1
        row = self._training_row() | {self.score_name: None, f"{options.scored_on}_iou": None}
        last, improved = progress.epoch == options.epochs, False
        if len(self.val_set) and (progress.epoch % options.validate_every == 0 or last):
            dice, iou = self._validate()
            row |= {self.score_name: dice, f"{options.scored_on}_iou": iou}
            improved = dice > progress.best and not options.keeps_last
            if improved:
                progress.best, progress.best_epoch = dice, progress.epoch
        progress.history.append(row)
        progress.batch, progress.skipped_in_epoch = 0, 0
        progress.sums = [0.0] * len(self.step.loss_names)
        if history is not None:
            with writing_to(self.folder):
                log.info(epoch_line(row, options.epochs, seconds, improved))
                self._write_weights(improved or options.keeps_last)
                panel = self._samples if len(self.val_set) else None
                history.write(progress.history, panel, last)
        self.save()

    def save(self) -> None:
        """Write `last.pth` (main process); NonFiniteLoss where the weights are not finite."""
        self.step.check_finite(self.progress.epoch + 1)
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        progress = {"progress": asdict(self.progress), "loss_names": list(self.step.loss_names)}
        save_state(self.folder, self.step.state_dict() | progress)

    def resume(self) -> None:
        """Resume from `last.pth` where there is one; the main process reads it for all.

        A missing best_model.pth is written again where the state is of its epoch. UserError where that cannot
        be, and for a state of another run or an older version.
        """
        best = self.folder / BEST_WEIGHTS
        is_main = self.accelerator.is_main_process
        read: list[Any] = [load_state(self.folder), best.is_file()] if is_main else [None, None]
        state, has_best = broadcast_object_list(read)
        if state is None:
            return
        check_version(self.folder, state)
        losses = self.step.loss_names
        try:
            saved_losses = tuple(state["loss_names"])
            if saved_losses != losses:
                raise UserError(
                    f"the saved state in {self.folder} counts the losses {', '.join(saved_losses)}, but the network "
                    f"now has {', '.join(losses)}. Restore these, set another snapshot_path, or start again with "
                    "resume=never"
                )
            self.step.load_state_dict(state)
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"the saved state in {self.folder} is not one of this run "
                f"({type(error).__name__}: {error}). Set another snapshot_path, or start again "
                "with resume=never"
            ) from error
        log.info("resuming after epoch %d, batch %d", self.progress.epoch, self.progress.batch)
        if not has_best:
            self._restore_best()

    def _restore_best(self) -> None:
        """Write a missing best_model.pth, where there should be one, from the weights resumed from.

        UserError where they are those of a later step, and no epoch to come writes it in any case.
        """
        progress, best = self.progress, self.folder / BEST_WEIGHTS
        epoch = progress.epoch if self.options.keeps_last else progress.best_epoch
        if not epoch:
            return
        if (progress.epoch, progress.batch) == (epoch, 0):
            if self.accelerator.is_main_process:
                log.warning("%s is missing: written again, from the saved state", best)
                with writing_to(self.folder):
                    save_weights(best, self.step.evaluated_system)
        elif not self.options.keeps_last:
            raise UserError(
                f"{best} is missing, the weights of epoch {epoch}, and the saved state is of a later step: copy "
                f"epoch_{epoch}.pth there to this name, where there is one (save_freq), or start again with "
                "resume=never"
            )

    def _loaders(self) -> tuple[DataLoader[Sample], DataLoader[Sample]]:
        """Loaders of the training and of the validation cases."""
        size, pin_memory = self.options.batch_size, self.accelerator.device.type == "cuda"
        train_loader = make_loader(
            self.train_set,
            size,
            sampler=self.sampler,
            num_workers=self.options.num_workers,
            pin_memory=pin_memory,
        )
        return train_loader, make_loader(self.val_set, size, pin_memory=pin_memory)

    def _batches_between_checks(self) -> int:
        """Batches between two readings of the losses, each at a batch where the state can be saved.

        Reading waits for a GPU, so it is done every few batches; on the CPU, and where the step of a bad
        loss may be discarded, after each.
        """
        options = self.options
        if self.accelerator.device.type != "cuda" or options.skip_nonfinite:
            return 1
        return options.accumulate * math.ceil(options.log_every / options.accumulate)

    def _seed_step(self) -> None:
        """Seed what a network may draw from, for each batch, so that dropout is the same after a resume."""
        progress = self.progress
        key = (self.options.seed, progress.epoch, progress.batch, self.accelerator.process_index)
        # not the stream that `datasets.loading` draws for the case of this number: a key is padded by 0
        sequence = np.random.SeedSequence((*key, 1))
        of_torch, of_others = sequence.generate_state(2, np.uint64).tolist()
        torch.manual_seed(of_torch)
        seed_python_and_numpy(of_others)

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.batches,
            initial=self.progress.batch,
            desc=f"epoch {self.progress.epoch + 1}/{self.options.epochs}",
            # None: shown on terminals only
            disable=None if self.accelerator.is_main_process else True,
            leave=False,
        )

    def _show(self, bar: tqdm, losses: torch.Tensor) -> None:
        """Losses of one batch beside the bar, without those that are 0."""
        named = zip(self.step.loss_names, losses.tolist(), strict=True)
        bar.set_postfix({name: f"{value:.3f}" for name, value in named if value})

    def _check_losses(self, sums: EpochLosses) -> None:
        """Take the sums so far; NonFiniteLoss where more losses than allowed were not finite."""
        bad = sums.take_nonfinite()
        self.progress.skipped += len(bad)
        self.progress.skipped_in_epoch += len(bad)
        if bad and self.progress.skipped > self.options.skip_nonfinite:
            raise self._nonfinite(bad)
        self.progress.sums = sums.tolist()

    def _nonfinite(self, bad: Sequence[tuple[int, list[float]]]) -> NonFiniteLoss:
        """The error for these batches of the epoch, whose cases and losses go into a file."""
        epoch, path = self.progress.epoch + 1, self.folder / "nonfinite.json"
        batches = [
            {
                "cases": self._cases_of(number),
                "losses": dict(zip(self.step.loss_names, map(str, losses), strict=True)),
            }
            for number, losses in bad
        ]
        if self.accelerator.is_main_process:
            with writing_to(self.folder):
                write_nonfinite(path, epoch, batches, self.system.parts())
        return NonFiniteLoss(
            f"the loss became NaN or infinite in epoch {epoch}; the batches and the norms "
            f"of the weights are in {path}. What was saved before is kept: lower lr, set clip_norm=1, "
            "use precision=fp32, or allow some such steps by skip_nonfinite=N, and start again"
        )

    def _cases_of(self, batch: int) -> list[str]:
        """Names of the cases that all processes together had in a batch of this epoch."""
        count = self.options.batch_size * self.accelerator.num_processes
        order = self.sampler.order(self.progress.epoch)
        return [self.train_set.cases[i].name for i in order[batch * count :][:count]]

    def _save_if_due(self, stop: StopRequest) -> None:
        """Save after `save_minutes` and after a signal, then raising Interrupted."""
        due = time.monotonic() - self.saved_at > 60 * self.options.save_minutes
        signal_number = self._stop_signal(stop)
        if (due or signal_number) and self._can_be_saved():
            self.save()
            if signal_number:
                # a launcher ends the others when the first process leaves
                self.accelerator.wait_for_everyone()
                raise Interrupted(signal_number)

    def _stop_signal(self, stop: StopRequest) -> int:
        """The signal by which any process was asked to stop, or 0; all processes agree."""
        number = stop.signal_number or 0
        if self.accelerator.num_processes == 1:
            return number
        numbers = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(cast(torch.Tensor, numbers).max())

    def _can_be_saved(self) -> bool:
        """Whether the epoch has batches left and no gradient is accumulated at the moment."""
        done = self.progress.batch
        return done < self.batches and done % self.options.accumulate == 0

    def _training_row(self) -> EpochRow:
        """Rate of the epoch's last step, and means of the losses, None where all were skipped."""
        counted = self.batches - self.progress.skipped_in_epoch
        means = [total / counted if counted else None for total in self.progress.sums]
        row: EpochRow = {"epoch": self.progress.epoch, "lr": self.step.last_rate}
        return row | dict(zip((*self.step.loss_names[:-1], "train_dice"), means, strict=True))

    def _validate(self) -> tuple[float, float]:
        """Mean Dice and IoU of the weights that would be kept."""
        if self.accelerator.num_processes > 1:
            for buffer in self.step.evaluated_system.buffers():  # running statistics that are kept
                torch.distributed.broadcast(buffer, 0)
        return mean_scores(self.predict, self.val_loader, self.options.threshold)

    def _write_weights(self, to_keep: bool) -> None:
        """`best_model.pth` where they are `to_keep`, and those of every `save_freq` epochs."""
        epoch, every = self.progress.epoch, self.options.save_freq
        if to_keep:
            save_weights(self.folder / BEST_WEIGHTS, self.step.evaluated_system)
        if every and epoch % every == 0:
            save_weights(self.folder / f"epoch_{epoch}.pth", self.step.evaluated_system)

    @torch.inference_mode()
    def _samples(self) -> Any:
        """Image, truth and probability of a few validation cases, as one uint8 image."""
        cases = [self.val_set[i] for i in range(min(SAMPLES_SHOWN, len(self.val_set)))]
        images = torch.stack([case["image"] for case in cases]).to(self.accelerator.device)
        self.step.evaluated_system.eval()
        probabilities = self.predict(images)
        self.step.evaluated_system.train()
        return sample_panel(
            images.cpu(), torch.stack([case["mask"] for case in cases]), probabilities.cpu()
        )
