"""Distil TAESD into a Tiny-VAE of half its width that shares its latent space.

    python distill.py                         # encoder, decoder, then ckpt/my_tiny_vae
    python distill.py encoder --minutes 60    # one part alone; run again to resume
                                              # (the encoder is then tuned a tenth as long)
    python distill.py export
    python distill.py report --out ckpt/tiny_vae --dataset busi

The student starts from the teacher's weights and learns the teacher's answers to procedural images.
See docs/tiny_vae.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.entry import ArgumentParser, check_values, exit_from, non_negative_int, positive_int

TEACHER = "madebyollin/taesd"
PARTS = ("encoder", "decoder")
SCORED = range(9_000_000, 10_000_020)
"""Seeds whose chunks may come to be those that scores are made on."""
SEEDS = 2**63  # seeds are below this: half of what torch takes, which leaves room for seed + i


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "task",
        nargs="?",
        default="all",
        choices=("all", *PARTS, "export", "report"),
        help="all: train both parts and write the folder; encoder, decoder: train one; export: write the "
        "folder; report: compare it with TAESD",
    )
    add("--teacher", default=TEACHER, help="hub id or folder of TAESD")
    add("--work", type=Path, default=Path("ckpt/distillation"), help="chunks and checkpoints")
    add("--out", type=Path, default=Path("ckpt/my_tiny_vae"), help="the Tiny-VAE's folder")
    add("--minutes", type=float, default=60, help="time to train each part")
    add("--steps", type=positive_int, help="steps to train each part, instead of a time")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate")
    add(
        "--seed",
        type=non_negative_int,
        default=2333,
        help="of the crops and their order; chunk i has seed + i, so take seeds that are far apart",
    )
    add("--dataset", default="busi", help="report: a prepared data set")
    add("--cases", type=positive_int, help="report: test cases to use, all unless given")
    add("--image-size", type=int, default=224, help="report: side in pixels, a multiple of 8")
    add("--picture", type=Path, help="report: PNG of one case and its round trips")
    arguments = parser.parse_args(argv)
    check_values(
        parser,
        ("minutes", 0 < arguments.minutes < math.inf, "a finite number above 0"),
        ("lr", 0 < arguments.lr < math.inf, "a finite number above 0"),
        ("seed", arguments.seed < SEEDS, f"below {SEEDS}, got {arguments.seed}"),
        (
            "seed",
            arguments.seed not in SCORED,
            f"below {SCORED.start:,} or from {SCORED.stop:,} on",
        ),
        ("work", *_folder(arguments.work)),
        ("out", *_folder(arguments.out)),
        ("picture", *_png(arguments.picture)),
    )
    return arguments


def _folder(path: Path) -> tuple[bool, str]:
    """Whether `path` is or can become a folder, and what it must be."""
    file = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    return file is None, f"a folder, but {file} is a file"


def _png(path: Path | None) -> tuple[bool, str]:
    """Whether `path`, if given, can be written as a PNG file, and what it must be."""
    if path is None:
        return True, ""
    if path.is_dir() or path.suffix.lower() != ".png":
        return False, f"a file that ends in .png, got {path}{' (a folder)' * path.is_dir()}"
    holds, expected = _folder(path.parent)
    return holds, f"in {expected}"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    import torch

    from distillation.student import check_teacher
    from models.tiny_vae import load_tiny_vae

    torch.set_flush_denormal(True)
    task = arguments.task
    if task == "report":
        report_on_data_set(arguments)
    if task in ("all", *PARTS):
        teacher = load_tiny_vae(arguments.teacher).to(memory_format=torch.channels_last)
        check_teacher(teacher)
        for part in PARTS if task == "all" else (task,):
            distil(part, teacher, arguments)
    if task in ("all", "export"):
        export(arguments.work, arguments.out)


def distil(part: str, teacher: Any, arguments: argparse.Namespace) -> None:
    """Train a part on small crops; then tune the encoder on large ones.

    In a small crop the zero padding at the border reaches every position. An encoder that saw nothing
    else is biased in the middle of a large image, most of all on the plain background of masks.
    """
    from distillation.crops import Pool
    from distillation.training import Budget, Distiller

    minutes, steps, work = arguments.minutes, arguments.steps, arguments.work
    pool = Pool(work / "pool", teacher, arguments.seed)
    checkpoint = work / f"{part}.pth"
    Distiller(part, pool, Budget(minutes, steps, arguments.lr), checkpoint).run()
    if part == "encoder":
        pool = Pool(work / "pool", teacher, arguments.seed, size=192, chunk=128)
        tuning_steps = max(1, steps // 10) if steps else None
        budget = Budget(minutes / 10, tuning_steps, arguments.lr / 5, batch=2)
        Distiller(part, pool, budget, work / "encoder_tuned.pth", initial=checkpoint).run()


def export(work: Path, out: Path) -> None:
    """Join the tuned encoder and the decoder in one folder; UserError if one is missing or stale."""
    from distillation.student import export_student

    names = ("encoder", "encoder_tuned", "decoder")
    export_student({name: work / f"{name}.pth" for name in names}, out)


def report_on_data_set(arguments: argparse.Namespace) -> None:
    """Print teacher and student side by side on a data set's test cases; draw one of them."""
    import numpy as np
    import torch

    from datasets.cases import open_prepared, read_resized
    from distillation.report import compare_vaes, table, write_picture
    from models.base import check_image_size
    from models.tiny_vae import load_tiny_vae

    size = arguments.image_size
    check_image_size(size, size)
    data_set = open_prepared(arguments.dataset)
    cases = data_set.test[: arguments.cases]
    pairs = [read_resized(case, size) for case in cases]
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    teacher, student = (
        load_tiny_vae(source).to(memory_format=torch.channels_last)
        for source in (arguments.teacher, arguments.out)
    )
    print(f"{len(cases)} test cases at {size} px")
    print(table(compare_vaes(teacher, student, images, masks)))
    if arguments.picture:
        write_picture(arguments.picture, [teacher, student], images[0], masks[0])


if __name__ == "__main__":
    exit_from(main)
