"""Fitting one part of the student, encoder or decoder, to the teacher's answers.

Encoder and decoder are independent problems, because the teacher's latent is where they meet:

- encoder: mean squared error between the student's and the teacher's latents;
- decoder: L1 from the decoded teacher latent to the teacher's output and to the image.

Shapes: crop (N, S, S, 3) uint8, latent (N, 4, S/8, S/8), decoded (N, 3, S, S) in [-1, 1].
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distillation.checkpoints import COUNTERS, check_origin, load_checkpoint, save_checkpoint
from distillation.crops import Pool
from distillation.scores import encode, r_squared, round_trip, to_input
from distillation.student import make_student, start_student
from utils.checkpoints import weights_sha256
from utils.errors import UserError
from utils.interruption import StopRequest

VALIDATION_SEED = 10_000_019
SAVE_SECONDS = 120
LONGEST_STEP = 30.0
"""Seconds of the budget that one step uses at most, however long it was suspended."""
PROGRESS = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"


@dataclass
class Budget:
    """How long a run trains, in minutes unless `steps` is given, and at what learning rate."""

    minutes: float
    steps: int | None = None
    rate: float = 1.5e-3
    batch: int = 16
    window: int = 6
    """Chunks that an epoch passes over: the newest and those before it. Each is thus seen so often."""
    warmup: float = 0.1
    ema: float = 0.998

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used up."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def rate_at(self, progress: float) -> float:
        """One cycle: linear up to `rate`, cosine down to a thousandth of it."""
        if progress < self.warmup:
            return self.rate * max(progress / self.warmup, 0.02)
        fall = (min(progress, 1) - self.warmup) / (1 - self.warmup)
        return self.rate * max(0.5 * (1 + math.cos(math.pi * fall)), 1e-3)


class Distiller:
    """Distils one part, "encoder" or "decoder"; continues from `checkpoint` if that exists.

    `position` counts the crops of the current epoch that were used. `seconds` sums the time of all
    steps, at most LONGEST_STEP of each, so that a run that was suspended (Ctrl-Z) keeps its budget.
    """

    def __init__(
        self, part: str, pool: Pool, budget: Budget, checkpoint: Path, initial: Path | None = None
    ) -> None:
        """`initial` is another checkpoint, whose averaged weights a new run starts from.

        A `checkpoint` that started from other weights than `initial` now holds is started afresh.

        Raises:
            UserError: `checkpoint` has another teacher or seed than `pool`; or it or `initial` cannot be
                used (see `load_checkpoint`).
        """
        self.part, self.pool, self.budget, self.checkpoint = part, pool, budget, checkpoint
        self.step = self.epoch = self.position = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.origin = {"teacher": pool.teacher_sha256, "seed": pool.seed}
        self.initial_sha256: str | None = None
        resumes = checkpoint.exists()
        student = make_student() if resumes or initial else start_student(pool, part)
        self.module = getattr(student, part).to(memory_format=torch.channels_last)
        saved = load_checkpoint(checkpoint, self.module) if resumes else None
        if saved:
            check_origin(checkpoint, saved, self.origin)
        if initial:
            self.module.load_state_dict(load_checkpoint(initial, self.module)["average"])
            self.initial_sha256 = weights_sha256(self.module)
            if saved and saved.get("initial") != self.initial_sha256:
                print(f"{checkpoint} is started afresh: {initial} was trained since")
                saved = None
        self.optimiser = torch.optim.AdamW(self.module.parameters(), weight_decay=1e-4)
        self.average = {k: v.clone() for k, v in self.module.state_dict().items()}
        if saved:
            self.module.load_state_dict(saved["module"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.average = saved["average"]
            for name in COUNTERS:
                setattr(self, name, saved[name])
        held_out = Pool(pool.folder, pool.teacher, VALIDATION_SEED, pool.size, pool.chunk // 4)
        self.validation = held_out.latents(0)

    @property
    def done(self) -> float:
        """Share of the budget that is used up."""
        return self.budget.progress(self.step, self.seconds)

    @property
    def percent(self) -> float:
        """`done` for the progress bar, from 0 to 100."""
        return min(round(100 * self.done, 1), 100)

    def save(self) -> None:
        """Write weights, their average, the optimiser and the counters to `checkpoint`."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        weights = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
        }
        state = weights | counters | self.origin | {"initial": self.initial_sha256}
        save_checkpoint(self.checkpoint, state)

    def run(self) -> None:
        """Train until the budget is used up; saves every two minutes and after each epoch.

        Raises:
            Interrupted: a signal asked to stop; all steps are saved.
            UserError: training diverged, see `update`, or the checkpoint cannot be written.
        """
        bar = tqdm(
            total=100, initial=self.percent, desc=self.part, mininterval=10, bar_format=PROGRESS
        )
        with StopRequest() as stop, bar:
            while self.done < 1:
                loss = self.train_epoch(bar, stop)
                if loss is not None:
                    row = {"step": self.step, "minutes": self.seconds / 60, "loss": loss}
                    self.history.append(row | self.validate())
                    bar.write(", ".join(f"{k} {v:.4g}" for k, v in self.history[-1].items()))
                self.save()
                stop.raise_if_requested()

    def train_epoch(self, bar: tqdm, stop: StopRequest) -> float | None:
        """Train to the end of this epoch or of the budget; returns the last loss, None without a step.

        Raises Interrupted, after saving, if `stop` is requested before a step. A request during the last
        step is left to `run`, which first records the scores of the epoch.
        """
        arrays = self.window()
        order = np.random.default_rng([self.pool.seed, self.epoch]).permutation(len(arrays[0]))
        saved_at = time.monotonic()
        loss = None
        while self.done < 1 and self.position + self.budget.batch <= len(order):
            started = time.monotonic()
            if stop.requested or started - saved_at > SAVE_SECONDS:
                self.save()
                saved_at = started
                stop.raise_if_requested()
            chosen = order[self.position : self.position + self.budget.batch]
            loss = self.update([a[chosen] for a in arrays], self.budget.rate_at(self.done))
            self.position += self.budget.batch
            self.seconds += min(time.monotonic() - started, LONGEST_STEP)
            bar.set_postfix_str(f"step {self.step}, loss {loss:.4f}", refresh=False)
            bar.update(self.percent - bar.n)
        if self.position + self.budget.batch > len(order):
            self.epoch, self.position = self.epoch + 1, 0
        return loss

    def window(self) -> list[np.ndarray]:
        """This epoch's crops and teacher latents; for the decoder the teacher's outputs too."""
        return self.pool.window(self.epoch, self.budget.window, self.part == "decoder")

    def update(self, batch: list[np.ndarray], rate: float) -> float:
        """One optimiser step at that rate; returns the loss.

        Raises:
            UserError: the loss or its gradient is not finite; the weights are then unchanged.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.check_finite(loss=loss.item(), gradient_norm=norm.item())
        self.optimiser.step()
        self.step += 1
        decay = min(self.budget.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.module.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return loss.item()

    def check_finite(self, **values: float) -> None:
        """Raise UserError, without saving, if a value of the next step is not finite."""
        if all(map(math.isfinite, values.values())):
            return
        got = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        saved = self.checkpoint.exists()
        kept = f"{self.checkpoint} is as it was last saved" if saved else "nothing was saved"
        raise UserError(
            f"the training of {self.checkpoint.stem} diverged at step {self.step + 1}: {got}, expected "
            f"finite values; {kept}. Run again with a lower --lr (its peak was {self.budget.rate:g}); "
            "where that diverges too, delete the checkpoint first"
        )

    def loss(self, batch: list[np.ndarray]) -> Tensor:
        """The part's loss, a scalar; `batch` as `window` gives it."""
        images, latents = to_input(batch[0]), torch.from_numpy(batch[1])
        if self.part == "encoder":
            return (self.module(images) - latents).square().mean()
        decoded = self.module(latents)
        outputs = torch.from_numpy(batch[2]).float()
        return (decoded - outputs).abs().mean() + (decoded - images).abs().mean()

    def validate(self) -> dict[str, float]:
        """Scores of the averaged weights on held-out crops, masks apart from the rest.

        R² of the encoder's latents; PSNR in dB of what the decoder makes of the teacher's.
        """
        student = make_student()
        getattr(student, self.part).load_state_dict(self.average)
        crops, latents = self.validation
        is_mask = np.isin(crops, (0, 255)).all(axis=(1, 2, 3))
        scores = {}
        for name, chosen in (("images", ~is_mask), ("masks", is_mask)):
            if not chosen.any():
                continue
            x, z = crops[chosen], latents[chosen]
            if self.part == "encoder":
                scores[f"r2_{name}"] = r_squared(encode(student, x, batch=32), z)
            else:
                scores[f"psnr_{name}"] = float(round_trip(student, z, x, batch=32).mean())
        return scores
