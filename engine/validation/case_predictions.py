"""The predictions of a trained model for the cases of a data set: computed, saved, read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.cases import Case, read_image, read_mask, resize_image, resize_mask
from datasets.loading import SegmentationDataset, batches_of, make_loader
from engine.cuda_graphs import Predictor
from engine.out_of_memory import reporting_out_of_memory
from engine.validation.options import EvaluationOptions
from models.base import SegmentationModel
from scoring.report import ReportCase
from utils.errors import UserError
from utils.files import atomic_write
from utils.images import encode_png, from_16_bit, to_16_bit
from utils.locks import FolderInUse, try_lock

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Prediction:
    """The model's output for one case, at the size at which it is scored."""

    case: Case
    probability: np.ndarray  # (H, W) float32 in [0, 1]
    truth: np.ndarray  # (H, W) bool

    def mask(self, threshold: float) -> np.ndarray:
        return self.probability >= threshold


@torch.inference_mode()
def predict_cases(
    system: SegmentationModel,
    cases: Sequence[Case],
    options: EvaluationOptions,
    accelerator: Accelerator,
    title: str = "test cases",
) -> Iterator[Prediction]:
    """Predict the cases one batch at a time, in their order; the progress bar and errors call them `title`.

    With `options.tta`, the probability is the mean over the orientations of the image, see
    `mean_over_orientations`.

    The probability is resized (bilinear) to the evaluation size, before the threshold; so is the truth
    (nearest), from the size of its file. UserError for a case whose probability is not a number, or
    whose files cannot be used, and for too little memory.
    """
    image_size = options.image_size
    dataset = SegmentationDataset(
        cases, image_size, cache_bytes=options.cache_mb << 20, title=title, progress=True
    )
    loader = make_loader(dataset, options.batch_size, num_workers=options.num_workers)
    system.to(accelerator.device).eval()
    predict = Predictor(system, accelerator)
    for batch in batches_of(loader):
        with reporting_out_of_memory(len(batch["image"]), image_size):
            images = batch["image"].to(accelerator.device)
            output = (
                mean_over_orientations(predict, images, options.keep_upright)
                if options.tta
                else predict(images)
            )
            probabilities = output.float().cpu().numpy()
        indices: Tensor = batch["index"]
        truths = batch["mask"][:, 0].numpy() > 0
        for index, probability, truth in zip(
            indices.tolist(), probabilities[:, 0], truths, strict=True
        ):
            case = cases[index]
            if not np.isfinite(probability).all():
                raise UserError(
                    f"the model's output for {case.name} is not a number: the checkpoint is damaged, "
                    "or precision: fp32 is needed"
                )
            yield _at_size(options.evaluation_size or image_size, case, probability, truth)


def _at_size(size: int | str, case: Case, probability: np.ndarray, truth: np.ndarray) -> Prediction:
    """The prediction at `size`, a side in pixels or `native`; `truth` (S, S) is read anew for another."""
    if size == "native":
        truth = read_mask(case.mask).astype(bool)
    elif truth.shape != (int(size), int(size)):
        truth = resize_mask(read_mask(case.mask), int(size), int(size)).astype(bool)
    height, width = truth.shape
    if probability.shape != (height, width):
        probability = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
    return Prediction(case, probability, truth)


def mean_over_orientations(
    network: Callable[[Tensor], Tensor], images: Tensor, keep_upright: bool = False
) -> Tensor:
    """Test-time augmentation: the mean output (B, C, S, S) over four quarter turns, each mirrored too.

    With `keep_upright`, over the image and its mirror image alone. Every output is turned back before
    the mean (Wang et al. 2019, arXiv 1807.07356).
    """
    turns_taken = 1 if keep_upright else 4
    total = torch.zeros((), device=images.device)
    for turns in range(turns_taken):
        turned = images.rot90(turns, (2, 3)).contiguous()  # a transpose costs each forward a tenth
        mirrored = network(turned.flip(3)).float().flip(3)
        total = total + (network(turned).float() + mirrored).rot90(-turns, (2, 3))
    return total / (2 * turns_taken)


def mask_path(folder: Path, name: str) -> Path:
    return folder / "binary" / f"{name}.png"


def probability_path(folder: Path, name: str) -> Path:
    return folder / "logits" / f"{name}.png"


def save_prediction(folder: Path, prediction: Prediction, threshold: float) -> None:
    """Write `binary/<name>.png`, 0 or 255, and `logits/<name>.png`, the probability in 16 bits."""
    mask = prediction.mask(threshold).astype(np.uint8) * 255
    for path, pixels in (
        (mask_path(folder, prediction.case.name), mask),
        (probability_path(folder, prediction.case.name), to_16_bit(prediction.probability)),
    ):
        atomic_write(path, encode_png(pixels))


def save_each(
    predictions: Iterable[Prediction], folder: Path, threshold: float
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Save each prediction into `folder`, and yield what is scored: its name, mask and truth."""
    for prediction in predictions:
        save_prediction(folder, prediction, threshold)
        yield prediction.case.name, prediction.mask(threshold), prediction.truth


@contextmanager
def locked_for_writing(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of predictions; FolderInUse where another process writes into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "valid.lock").open("ab") as file:
        os.register_at_fork(after_in_child=file.close)  # loader processes must not hold the lock
        alone = True
        with suppress(UserError):  # the file system may have no locks
            alone = try_lock(file)
        if not alone:
            raise FolderInUse(
                f"another valid.py writes masks into {folder}: wait for it, stop it, or keep these apart by --name"
            )
        yield


def remove_other_predictions(folder: Path, cases: Iterable[Case]) -> None:
    """Delete what `save_prediction` wrote into `folder` for others than these cases."""
    names = {case.name for case in cases}
    for kind in (mask_path(folder, "").parent, probability_path(folder, "").parent):
        for path in kind.glob("*.png"):
            if path.stem not in names:
                path.unlink(missing_ok=True)


def read_probability(folder: Path, name: str) -> np.ndarray:
    """The probability that `save_prediction` wrote, float32 in [0, 1]."""
    pixels = cv2.imread(str(probability_path(folder, name)), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UserError(f"{probability_path(folder, name)} is missing or damaged: validate again")
    return from_16_bit(pixels)


def report_cases(cases: Iterable[Case], folder: Path) -> Iterator[ReportCase]:
    """What the report shows of each case, read back from the saved predictions in `folder`."""
    for case in cases:
        probability = read_probability(folder, case.name)
        image = resize_image(read_image(case.image), *probability.shape)
        truth = resize_mask(read_mask(case.mask), *probability.shape).astype(bool)
        yield ReportCase(case.name, image, truth, probability)
