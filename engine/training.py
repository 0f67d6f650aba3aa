"""The training loop.

Everything random is drawn from (seed, epoch, case), see `datasets.loading`, so a run that was
stopped anywhere and goes on from `last.pth` ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets.cases import CaseError
from datasets.loading import (
    EpochSampler,
    LoaderDied,
    Sample,
    SegmentationDataset,
    batches_of,
    make_loader,
    worker_died,
)
from engine.history import Row, draw_curves, sample_panel, write_history
from engine.resume import load_state, save_state
from engine.validation import validate
from models.base import SegmentationModel
from utils.checkpoints import save_weights
from utils.errors import UserError
from utils.files import atomic_write
from utils.interruption import Interrupted, StopRequest
from utils.runs import writing_to

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("wavegms")

SAMPLES_SHOWN = 4
CURVES_SECONDS = 30.0  # between two drawings of curves.png


@dataclass(frozen=True)
class TrainingOptions:
    """What the loop takes from the config, where the fields are described."""

    epochs: int
    batch_size: int
    accumulate: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    clip_norm: float
    ema_decay: float
    seed: int
    threshold: float
    select_on: str
    num_workers: int
    validate_every: int
    log_every: int
    save_minutes: float
    save_freq: int | None
    skip_nonfinite: int


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    best: float = -math.inf
    best_epoch: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=list)  # of the losses, over these batches
    history: list[Row] = field(default_factory=list)


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""


def warmup_then_cosine(warmup_steps: float, total_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at an optimiser step: linear up, then half a cosine to 0.

    The first step already learns; the published schedule spends its first epoch at rate 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


class Trainer:
    """Trains one system on one data set; each process of a distributed run has its own.

    Losses are means over the batches of all processes, so all of them see the same numbers and
    decide alike. The main process writes into `folder`: history.csv, curves.png, TensorBoard events
    in logs/, best_model.pth (the weights of the best validation) and last.pth (all that a resume
    needs).
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
    ) -> None:
        self.options, self.accelerator, self.folder, self.title = (
            options,
            accelerator,
            folder,
            title,
        )
        self.score_name = f"{options.select_on}_dice"
        self.loss_names = (*system.loss_names, "dice")
        self.progress = Progress(sums=[0.0] * len(self.loss_names))
        self.train_set, self.val_set = train_set, val_set
        self.sampler = EpochSampler(len(train_set), options.seed)
        self.batches = len(train_set) // options.batch_size // accelerator.num_processes
        if not self.batches:
            raise UserError(
                f"{len(train_set)} training cases do not fill one batch of {options.batch_size} on "
                f"each of {accelerator.num_processes} process(es): lower batch_size"
            )
        optimizer = torch.optim.AdamW(
            [p for p in system.parameters() if p.requires_grad],
            lr=options.lr,
            weight_decay=options.weight_decay,
            fused=True,
        )
        steps = math.ceil(self.batches / options.accumulate)
        self.rate_factor = warmup_then_cosine(options.warmup_epochs * steps, options.epochs * steps)
        self.scheduler = LambdaLR(optimizer, self.rate_factor)
        on_gpu = accelerator.device.type == "cuda"
        self.model, self.optimizer, self.loader, self.val_loader = accelerator.prepare(
            system,
            optimizer,
            make_loader(
                train_set,
                options.batch_size,
                sampler=self.sampler,
                num_workers=options.num_workers,
                pin_memory=on_gpu,
            ),
            make_loader(val_set, options.batch_size, pin_memory=on_gpu),
        )
        self.system = system
        self.average: AveragedModel | None = (
            AveragedModel(system, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
            if options.ema_decay
            else None
        )
        # reading a loss waits for the GPU, so it is done every few steps, where a state can be saved;
        # the CPU has no queue
        few = options.accumulate * math.ceil(options.log_every / options.accumulate)
        self.read_every = few if on_gpu and not options.skip_nonfinite else 1
        self.curves_drawn = -math.inf

    @property
    def evaluated(self) -> SegmentationModel:
        """The weights that are validated and kept: the average, where there is one."""
        return self.system if self.average is None else cast(SegmentationModel, self.average.module)

    def fit(self) -> None:
        """Train until the last epoch.

        Raises Interrupted (after saving) when a signal asks to stop, NonFiniteLoss when the loss is
        NaN or infinite more often than allowed, and other UserErrors for a full disk, too little
        memory, an image that can no longer be read or a dead loader process. The last saved state is
        kept each time.
        """
        self.resume()
        if self.progress.epoch >= self.options.epochs:
            log.info("this run has already finished its %d epochs", self.options.epochs)
            return
        writer = None
        try:
            if self.accelerator.is_main_process:
                with writing_to(self.folder):
                    writer = SummaryWriter(self.folder / "logs")
            launched = self.accelerator.num_processes > 1
            with StopRequest(second_exits=not launched) as stop:
                while self.progress.epoch < self.options.epochs:
                    started = time.monotonic()
                    self._train_epoch(stop)
                    self._finish_epoch(writer, time.monotonic() - started)
                    if signal_number := self._stop_signal(stop):
                        raise Interrupted(signal_number)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        except RuntimeError as error:
            if worker_died(error):
                raise LoaderDied(error) from None
            raise
        finally:
            if writer is not None:
                with suppress(OSError):  # a full disk has been told by then
                    writer.close()

    def _out_of_memory(self) -> UserError:
        """What to do about it, by an estimate of what a batch takes."""
        from engine.memory import available_memory, estimate_memory, out_of_memory

        options, image_size = self.options, self.train_set.image_size
        return out_of_memory(
            estimate_memory(
                self.system,
                options.batch_size,
                image_size,
                self.accelerator.mixed_precision,
                averaged=self.average is not None,
                processes=self.accelerator.num_processes,
            ),
            image_size=image_size,
            accumulate=options.accumulate,
            available=available_memory(self.accelerator.device),
            checkpointed=getattr(self.system, "checkpoint_decoder", True),
            has_saved=(self.folder / "last.pth").exists(),
        )

    def _train_epoch(self, stop: StopRequest) -> None:
        progress, options = self.progress, self.options
        self.sampler.start_at(
            progress.epoch, progress.batch * options.batch_size * self.accelerator.num_processes
        )
        self.model.train()
        sums = torch.tensor(progress.sums, dtype=torch.float64, device=self.accelerator.device)
        unread: list[tuple[int, torch.Tensor]] = []
        bar = tqdm(
            total=self.batches,
            initial=progress.batch,
            desc=f"epoch {progress.epoch + 1}/{options.epochs}",
            disable=None if self.accelerator.is_main_process else True,  # None: on terminals
            leave=False,
        )
        last_save = time.monotonic()
        try:
            for batch in batches_of(self.loader):
                self._seed_step()
                losses = self._step(batch)
                unread.append((progress.batch, losses))
                progress.batch += 1
                finite = torch.isfinite(losses).all()
                sums += torch.where(finite, losses, 0)
                bar.update()
                if progress.batch % self.read_every == 0 or progress.batch == self.batches:
                    self._check_finite(unread)
                    unread.clear()
                    bar.set_postfix(
                        {
                            n: f"{v:.3f}"
                            for n, v in zip(self.loss_names, losses.tolist(), strict=True)
                            if v
                        }
                    )
                    progress.sums = sums.tolist()
                    due = time.monotonic() - last_save > 60 * options.save_minutes
                    signal_number = self._stop_signal(stop)
                    if (due or signal_number) and self._can_be_saved():
                        self.save()
                        last_save = time.monotonic()
                        if signal_number:
                            bar.close()
                            # a launcher ends the others when the first process leaves
                            self.accelerator.wait_for_everyone()
                            raise Interrupted(signal_number)
        except (CaseError, LoaderDied):  # between two steps, so nothing needs to be lost
            if unread:
                self._check_finite(unread)
            progress.sums = sums.tolist()
            if self._can_be_saved():
                self.save()
            raise
        bar.close()

    def _seed_step(self) -> None:
        """What a network draws itself, such as the dropout of a baseline, is fixed by the batch."""
        progress = self.progress
        key = (self.options.seed, progress.epoch, progress.batch, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def _can_be_saved(self) -> bool:
        """Whether the epoch has batches left and no gradient is accumulated at the moment."""
        done = self.progress.batch
        return done < self.batches and done % self.options.accumulate == 0

    def _step(self, batch: Sample) -> torch.Tensor:
        """One batch forward and backward, with an optimiser step where one is due.

        Returns the losses in the order of `loss_names`, means over the processes, on the device,
        without waiting for it.
        """
        with self.accelerator.accumulate(self.model):
            with self.accelerator.autocast():
                losses = self.model(batch["image"], batch["mask"], batch["noise"])
            loss = losses["loss"]
            values = torch.stack([losses[n].detach().double() for n in self.loss_names])
            values = cast(torch.Tensor, self.accelerator.reduce(values, "mean"))
            if self.options.skip_nonfinite and not torch.isfinite(values[0]):
                self.optimizer.zero_grad()
                return values
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.options.clip_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.scheduler.step()
                if self.average is not None:
                    self.average.update_parameters(self.system)
        return values

    def _check_finite(self, unread: list[tuple[int, torch.Tensor]]) -> None:
        """`unread`: numbers of batches of this epoch, and their losses."""
        values = torch.stack([losses for _, losses in unread]).cpu()
        bad = [i for i, row in enumerate(values) if not torch.isfinite(row).all()]
        self.progress.skipped += len(bad)
        if self.progress.skipped <= self.options.skip_nonfinite:
            return
        report = {
            "epoch": self.progress.epoch + 1,
            "batches": [
                {
                    "cases": self._cases_of(unread[i][0]),
                    "losses": dict(zip(self.loss_names, map(str, values[i].tolist()), strict=True)),
                }
                for i in bad
            ],
            "weight_norms": {
                name: torch.stack([p.detach().norm() for p in part.parameters()]).norm().item()
                for name, part in self.system.parts().items()
            },
        }
        path = self.folder / "nonfinite.json"
        if self.accelerator.is_main_process:
            with writing_to(self.folder):
                atomic_write(path, json.dumps(report, indent=2) + "\n")
        raise NonFiniteLoss(
            f"the loss became NaN or infinite in epoch {report['epoch']}; the batches and the norms "
            f"of the weights are in {path}. The last good state is kept: lower lr, set clip_norm=1, "
            "use precision=fp32, or allow some such steps by skip_nonfinite=N, and start again"
        )

    def _check_weights(self) -> None:
        """A finite loss can have gradients that are not; such weights must not replace good ones."""
        finite = [p.isfinite().all() for p in self.system.parameters() if p.requires_grad]
        if not torch.stack(finite).all():
            raise NonFiniteLoss(
                f"the weights became NaN or infinite in epoch {self.progress.epoch + 1}. The last good "
                "state is kept: lower lr, set clip_norm=1, or use precision=fp32, and start again"
            )

    def _cases_of(self, batch: int) -> list[str]:
        """Names of the cases that all processes together had in a batch of this epoch."""
        count = self.options.batch_size * self.accelerator.num_processes
        order = self.sampler.order(self.progress.epoch)
        return [self.train_set.cases[i].name for i in order[batch * count :][:count]]

    def _finish_epoch(self, writer: SummaryWriter | None, seconds: float) -> None:
        progress, options = self.progress, self.options
        self._check_weights()
        progress.epoch += 1
        means = [total / self.batches for total in progress.sums]
        last_step = self.scheduler.last_epoch - 1
        row: Row = {"epoch": progress.epoch, "lr": options.lr * self.rate_factor(last_step)}
        row |= zip((*self.loss_names[:-1], "train_dice"), means, strict=True)
        row |= {self.score_name: None, f"{options.select_on}_iou": None}
        due = progress.epoch % options.validate_every == 0 or progress.epoch == options.epochs
        improved = False
        if due:
            if self.accelerator.num_processes > 1:
                for buffer in self.evaluated.buffers():  # running statistics: those that are kept
                    torch.distributed.broadcast(buffer, 0)
            dice, iou = validate(
                self.evaluated, self.val_loader, self.accelerator, options.threshold
            )
            row |= {self.score_name: dice, f"{options.select_on}_iou": iou}
            improved = dice > progress.best
            if improved:
                progress.best, progress.best_epoch = dice, progress.epoch
        progress.history.append(row)
        progress.batch, progress.sums = 0, [0.0] * len(self.loss_names)
        if self.accelerator.is_main_process:
            with writing_to(self.folder):
                self._report(row, improved, seconds, writer)
        self.save()

    def _report(
        self, row: Row, improved: bool, seconds: float, writer: SummaryWriter | None
    ) -> None:
        progress, options = self.progress, self.options
        shown = "  ".join(
            f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k != "lr" and v
        )
        log.info(
            "epoch %d/%d  %s  %.1f s%s",
            progress.epoch,
            options.epochs,
            shown,
            seconds,
            "  best so far" if improved else "",
        )
        if improved:
            save_weights(self.folder / "best_model.pth", self.evaluated)
        if options.save_freq and progress.epoch % options.save_freq == 0:
            save_weights(self.folder / f"epoch_{progress.epoch}.pth", self.evaluated)
        write_history(self.folder / "history.csv", progress.history)
        # drawing takes half a second, which is long beside a short epoch on a GPU
        if (
            progress.epoch == options.epochs
            or time.monotonic() > self.curves_drawn + CURVES_SECONDS
        ):
            draw_curves(self.folder / "curves.png", progress.history, self.title)
            self.curves_drawn = time.monotonic()
        if writer is not None:
            for key, value in row.items():
                if value is not None and key != "epoch":
                    writer.add_scalar(key, value, progress.epoch)
            if row[self.score_name] is not None:
                writer.add_image("samples", self._samples(), progress.epoch, dataformats="HWC")
            writer.flush()

    @torch.inference_mode()
    def _samples(self) -> Any:
        """Image, truth and probability of a few validation cases, as one uint8 picture."""
        cases = [self.val_set[i] for i in range(min(SAMPLES_SHOWN, len(self.val_set)))]
        images = torch.stack([case["image"] for case in cases]).to(self.accelerator.device)
        self.evaluated.eval()
        with self.accelerator.autocast():
            probabilities = self.evaluated(images)
        self.evaluated.train()
        return sample_panel(
            images.cpu(), torch.stack([case["mask"] for case in cases]), probabilities.cpu()
        )

    def _stop_signal(self, stop: StopRequest) -> int:
        """The signal by which any process was asked to stop, or 0; all processes agree."""
        number = stop.signal_number or 0
        if self.accelerator.num_processes == 1:
            return number
        numbers = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(cast(torch.Tensor, numbers).max())

    def save(self) -> None:
        """Write `last.pth` (main process); NonFiniteLoss where the weights are no numbers."""
        self._check_weights()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        save_state(
            self.folder,
            {
                "weights": {n: part.state_dict() for n, part in self.system.parts().items()},
                "average": None
                if self.average is None
                else {n: part.state_dict() for n, part in self.evaluated.parts().items()}
                | {"n_averaged": self.average.n_averaged},
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": asdict(self.progress),
            },
        )

    def resume(self) -> None:
        """Go on from `last.pth` where there is one; the main process reads it for all."""
        states = [load_state(self.folder) if self.accelerator.is_main_process else None]
        state = broadcast_object_list(states)[0]
        if state is None:
            return
        try:
            for name, part in self.system.parts().items():
                part.load_state_dict(state["weights"][name])
            if self.average is not None:
                for name, part in self.evaluated.parts().items():
                    part.load_state_dict(state["average"][name])
                self.average.n_averaged.copy_(state["average"]["n_averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"the saved state in {self.folder} is not one of this run "
                f"({type(error).__name__}: {error}). Set another snapshot_path, or start again "
                "with resume=never"
            ) from error
        log.info("going on after epoch %d, batch %d", self.progress.epoch, self.progress.batch)
