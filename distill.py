"""Distil TAESD into a Tiny-VAE of half its width that shares its latent space.

    python distill.py                         # encoder, decoder, then ckpt/my_tiny_vae
    python distill.py encoder --minutes 60    # one part alone; run again to resume
                                              # (the encoder is then tuned a tenth as long)
    python distill.py export
    python distill.py report --output ckpt/tiny_vae --data datasets/busi/busi_train_test_names.json

Encoder and decoder are independent problems, because the teacher's latent is where they meet:

- encoder: mean squared error between the student's and the teacher's latents;
- decoder: L1 from the decoded teacher latent to the teacher's output and to the image.

All images are procedural (datasets/procedural.py). The teacher's answers are computed once for each
chunk of crops and lie in the work folder. The student starts from the teacher's weights
(models/narrowing.py). The rate goes through one cycle over the budget of time or of steps.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write

if TYPE_CHECKING:
    import torch

TEACHER = "madebyollin/taesd"
VALIDATION_SEED = 10_000_019
COUNTERS = ("step", "epoch", "position", "seconds", "history")
PROGRESS = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"


def load_teacher(source: str) -> Any:
    """TAESD, frozen, from a hub id or a local folder."""
    import torch

    from models.tiny_vae import load_tiny_vae

    return load_tiny_vae(source).to(memory_format=torch.channels_last)


def make_student(width: int = 32) -> Any:
    """AutoencoderTiny with TAESD's block counts and `width` channels everywhere."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
        latent_channels=4,
    )


@dataclass
class Pool:
    """Chunks of procedural crops with the teacher's latents and, for the decoder, its outputs."""

    folder: Path
    teacher: Any
    seed: int
    size: int = 64
    """Side of a crop in pixels."""
    chunk: int = 1024
    """Crops in a chunk."""

    def latents(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Crops (N, S, S, 3) uint8 and teacher latents (N, 4, S/8, S/8) float32 of a chunk."""
        from datasets.procedural import procedural_crops
        from models.tiny_vae_report import encode

        path = self._path("latents", index)
        if not path.exists():
            crops = procedural_crops(self.seed + index, self.chunk, self.size)
            _save(path, crops=crops, latents=encode(self.teacher, crops, batch=32))
        with np.load(path) as data:
            return data["crops"], data["latents"]

    def outputs(self, index: int) -> np.ndarray:
        """The teacher's decoding of its own latents, (N, 3, S, S) float16 in [-1, 1]."""
        from models.tiny_vae_report import decode

        path = self._path("outputs", index)
        if not path.exists():
            decoded = decode(self.teacher, self.latents(index)[1], batch=32)
            _save(path, outputs=decoded.clamp(-1, 1).half().numpy())
        with np.load(path) as data:
            return data["outputs"]

    def _path(self, what: str, index: int) -> Path:
        return self.folder / f"{what}_{self.seed}_{self.size}_{self.chunk}_{index:04d}.npz"


def _save(path: Path, **arrays: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    atomic_write(path, write)


def start_student(pool: Pool, part: str) -> Any:
    """A student whose `part` starts from the teacher's weights, refitted on the first chunk."""
    import torch

    from models.narrowing import shrink
    from models.tiny_vae_report import to_input

    torch.manual_seed(pool.seed)
    student = make_student()
    crops, latents = pool.latents(0)
    # What diffusers does to the input before the layers: [0, 1] images, tanh-limited latents.
    if part == "encoder":
        x = (to_input(crops[:256]) + 1) / 2
    else:
        x = torch.tanh(torch.from_numpy(latents[:256]) / 3) * 3
    shrink(getattr(pool.teacher, part).layers, getattr(student, part).layers, x)
    return student


@dataclass
class Plan:
    """Budget and rate of one run; the budget is in minutes unless `steps` is given."""

    minutes: float
    steps: int | None = None
    rate: float = 1.5e-3
    batch: int = 16
    window: int = 6
    """Chunks an epoch passes over, the newest and those before it: each is seen that often."""
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


class Trainer:
    """Distils one part, "encoder" or "decoder"; continues from `checkpoint` if that exists."""

    def __init__(
        self, part: str, pool: Pool, plan: Plan, checkpoint: Path, initial: Path | None = None
    ) -> None:
        """`initial` is another checkpoint, whose averaged weights a new run starts from."""
        import torch

        self.part, self.pool, self.plan, self.checkpoint = part, pool, plan, checkpoint
        self.step = self.epoch = self.position = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
        student = make_student() if saved or initial else start_student(pool, part)
        self.module = getattr(student, part).to(memory_format=torch.channels_last)
        if initial:
            self.module.load_state_dict(torch.load(initial, weights_only=True)["average"])
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

    def save(self) -> None:
        import torch

        state = {name: getattr(self, name) for name in COUNTERS} | {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
        }
        atomic_write(self.checkpoint, lambda path: torch.save(state, path))

    def run(self) -> None:
        """Train until the budget is used up; saves every two minutes and after each epoch."""
        from tqdm import tqdm

        bar = tqdm(total=100, desc=self.part, mininterval=10, bar_format=PROGRESS)
        done = self.plan.progress(self.step, self.seconds)
        while done < 1:
            arrays = self.window()
            order = np.random.default_rng([self.pool.seed, self.epoch]).permutation(len(arrays[0]))
            saved_at = clock = time.monotonic()
            loss = math.nan
            while done < 1 and self.position + self.plan.batch <= len(order):
                chosen = order[self.position : self.position + self.plan.batch]
                loss = self.update([a[chosen] for a in arrays], self.plan.rate_at(done))
                self.position += self.plan.batch
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                done = self.plan.progress(self.step, self.seconds)
                bar.set_postfix_str(f"step {self.step}, loss {loss:.4f}", refresh=False)
                bar.update(min(round(100 * done, 1), 100) - bar.n)
                if now - saved_at > 120:
                    self.save()
                    saved_at = now
            if done < 1:
                self.epoch, self.position = self.epoch + 1, 0
            row = {"step": self.step, "minutes": self.seconds / 60, "loss": loss}
            self.history.append(row | self.validate())
            bar.write(", ".join(f"{k} {v:.4g}" for k, v in self.history[-1].items()))
            self.save()
        bar.close()

    def window(self) -> list[np.ndarray]:
        """This epoch's crops and teacher latents; for the decoder the teacher's outputs too."""
        first = max(0, self.epoch - self.plan.window + 1)
        chunks: list[tuple[np.ndarray, ...]] = []
        for index in range(first, self.epoch + 1):
            chunk: tuple[np.ndarray, ...] = self.pool.latents(index)
            if self.part == "decoder":
                chunk = (*chunk, self.pool.outputs(index))
            chunks.append(chunk)
        return [np.concatenate(column) for column in zip(*chunks, strict=True)]

    def update(self, batch: list[np.ndarray], rate: float) -> float:
        """One optimiser step at that rate; returns the loss."""
        import torch

        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.module.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return loss.item()

    def loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        import torch

        from models.tiny_vae_report import to_input

        images, latents = to_input(batch[0]), torch.from_numpy(batch[1])
        if self.part == "encoder":
            return (self.module(images) - latents).square().mean()
        decoded = self.module(latents)
        outputs = torch.from_numpy(batch[2]).float()
        return (decoded - outputs).abs().mean() + (decoded - images).abs().mean()

    def validate(self) -> dict[str, float]:
        """Scores of the averaged weights on held-out crops, masks apart from the rest."""
        from models.tiny_vae_report import encode, r_squared, round_trip

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


def distil(part: str, teacher: Any, options: argparse.Namespace) -> None:
    """Train a part on small crops; then tune the encoder on large ones.

    In a small crop every position feels the zero padding at the border. An encoder that saw nothing
    else is biased in the middle of a large image, most of all on the plain ground of masks.
    """
    folder = options.work / "pool"
    checkpoint = options.work / f"{part}.pth"
    plan = Plan(options.minutes, options.steps, options.rate)
    Trainer(part, Pool(folder, teacher, options.seed), plan, checkpoint).run()
    if part == "encoder":
        pool = Pool(folder, teacher, options.seed, size=192, chunk=128)
        plan = Plan(options.minutes / 10, options.steps, options.rate / 5, batch=2)
        Trainer(part, pool, plan, options.work / "encoder_tuned.pth", initial=checkpoint).run()


def export(work: Path, output: Path) -> None:
    """Join both averaged parts into a diffusers folder with half-precision weights."""
    import torch

    student = make_student()
    for part in ("encoder", "decoder"):
        path = work / ("encoder_tuned.pth" if part == "encoder" else "decoder.pth")
        if not path.exists():
            raise UserError(f"no {path}: train it first, python distill.py {part} --work {work}")
        saved = torch.load(path, weights_only=True)
        getattr(student, part).load_state_dict(saved["average"])
        print(f"{part}: step {saved['step']}, {saved['seconds'] / 60:.1f} minutes")
    student.half().save_pretrained(output)
    # AutoencoderTiny notes an attribute that its own constructor does not take and warns about.
    config = json.loads((output / "config.json").read_text())
    config.pop("block_out_channels", None)
    atomic_write(output / "config.json", json.dumps(config, indent=2) + "\n")
    print(f"Tiny-VAE written to {output}")


def report(options: argparse.Namespace) -> None:
    """Print teacher and student side by side on a data set's test cases; draw two of them."""
    import cv2

    from datasets.cases import open_data_set, read_resized
    from models.tiny_vae import load_tiny_vae
    from models.tiny_vae_report import compare, picture, table

    cases = open_data_set(options.data).test[: options.cases]
    images, masks = (
        np.stack(arrays)
        for arrays in zip(*(read_resized(case, options.size) for case in cases), strict=True)
    )
    teacher, student = load_teacher(options.teacher), load_teacher(str(options.output))
    print(f"{len(cases)} test cases at {options.size} px")
    print(table(compare(teacher, student, images, masks)))
    if options.picture:
        vaes = [load_tiny_vae(options.teacher), student]
        drawn = picture(vaes, images[0], masks[0])
        encoded = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1]
        atomic_write(options.picture, encoded.tobytes())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    tasks = ("all", "encoder", "decoder", "export", "report")
    add("task", nargs="?", default="all", choices=tasks)
    add("--teacher", default=TEACHER, help="hub id or folder of TAESD")
    add("--work", type=Path, default=Path("ckpt/distillation"), help="chunks and checkpoints")
    add("--output", type=Path, default=Path("ckpt/my_tiny_vae"), help="the Tiny-VAE's folder")
    add("--minutes", type=float, default=60, help="time to train each part")
    add("--steps", type=int, help="steps to train each part, instead of a time")
    add("--rate", type=float, default=1.5e-3, help="peak learning rate")
    add("--seed", type=int, default=2333)
    add(
        "--data",
        type=Path,
        default=Path("datasets/busi/busi_train_test_names.json"),
        help="report: split file of a prepared data set",
    )
    add("--cases", type=int, help="report: test cases to use, all unless given")
    add("--size", type=int, default=224, help="report: side in pixels, a multiple of 8")
    add("--picture", type=Path, help="report: PNG of one case and its round trips")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        import torch

        torch.set_flush_denormal(True)
        if options.task == "report":
            report(options)
        if options.task in ("all", "encoder", "decoder"):
            teacher = load_teacher(options.teacher)
            for part in ("encoder", "decoder"):
                if options.task in (part, "all"):
                    distil(part, teacher, options)
        if options.task in ("all", "export"):
            export(options.work, options.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
