"""One self-contained inference graph in ONNX: image to probability, whatever the system.

`image` (B, 3, S, S) float32 in [0, 1] -> `probability` (B, 1, S, S) float32 in [0, 1], B dynamic.
Haar transform, encoder, latent mapping and the frozen decoder are inside; the threshold is left to
the caller.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.phantom import phantom_case
from datasets.prepared import WINDOW
from engine.prediction.backends import ONNX_FORMAT
from engine.runs.training_record import TrainingRecord
from models.base import SegmentationModel
from utils.checkpoints import frozen_hashes
from utils.config import Config
from utils.errors import UserError, first_line
from utils.files import sha256

BATCH_SIZES = (1, 2, 5)


def graph_metadata(config: Config, checkpoint: Path, system: SegmentationModel) -> dict[str, str]:
    """The metadata of the exported graph: how to use it, and what it was made of."""
    record = TrainingRecord.read(checkpoint)
    size = f"{config.image_size} x {config.image_size}"
    frozen = {f"sha256 {name}": value for name, value in sorted(frozen_hashes(system).items())}
    return {
        "format": ONNX_FORMAT,
        "image_size": str(config.image_size),
        "input": f"RGB in [0, 1], resized to {size}: by area where it shrinks, else bilinear",
        "output": "probability of the foreground; a pixel is in the mask from `threshold` on",
        "threshold": str(config.threshold),
        "keep_upright": str(config.keep_upright),
        **({} if record.window is None else {WINDOW: record.window}),
        "model": config.model,
        **(
            {"vae_model": config.vae_model, "guidance_method": config.guidance_method or ""}
            if config.is_wave_gms
            else {}
        ),
        "data_set": config.dataset,
        "checkpoint_chosen": record.selection(),
        "sha256 checkpoint": sha256(checkpoint),
        "torch": version("torch"),
        **frozen,
    }


def export_graph(system: SegmentationModel, image_size: int, metadata: Mapping[str, str]) -> bytes:
    """The system as an ONNX file with `metadata`; UserError without the package onnx."""
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "exporting needs onnx: pip install 'onnx>=1.17,<2' 'onnxruntime>=1.20,<2'"
        ) from error

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "traced.onnx"
        warnings.simplefilter("ignore")  # sizes become constants, which is intended for all but B
        try:
            torch.onnx.export(
                system.eval(),
                (torch.rand(2, 3, image_size, image_size),),
                traced,
                input_names=["image"],
                output_names=["probability"],
                dynamic_axes={"image": {0: "B"}, "probability": {0: "B"}},
                opset_version=18,
                dynamo=False,  # takes seconds, torch.export a minute, for the same numbers
            )
        except Exception as error:  # the tracer raises errors of every kind
            reason = first_line(error)
            raise UserError(f"this model has a part that ONNX cannot express: {reason}") from error
        model = onnx.load(traced)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def check_parity(
    system: SegmentationModel, graph: bytes, image_size: int, tolerance: float
) -> float:
    """Largest difference between PyTorch and ONNX Runtime over BATCH_SIZES of test images.

    UserError if the difference exceeds `tolerance`, if an output is not finite, if all outputs are 0 or 1
    (nothing to compare), or without ONNX Runtime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "the exported graph is checked with ONNX Runtime: pip install 'onnxruntime>=1.20,<2'"
        ) from error

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    largest, shows_something = 0.0, False
    for batch_size in BATCH_SIZES:
        images = example_images(batch_size, image_size)
        with torch.inference_mode():
            expected = system(torch.from_numpy(images)).numpy()
        (probability,) = session.run(None, {"image": images})
        difference = float(np.abs(probability - expected).max())
        if not difference <= tolerance:
            raise UserError(
                f"the exported graph differs from PyTorch by {difference:.2g} for a batch of "
                f"{batch_size}, over {tolerance:g}, and was not kept. Untrained weights amplify "
                "rounding; for trained ones try another version of torch or onnxruntime, or accept "
                "the difference by --tolerance"
            )
        largest = max(largest, difference)
        shows_something |= bool(((expected > 0) & (expected < 1)).any())
    if not shows_something:
        raise UserError(
            "the model outputs 0 or 1 everywhere on the test images, so that the "
            "exported graph cannot be compared: train it further"
        )
    return largest


def example_images(count: int, size: int) -> np.ndarray:
    """Ultrasound phantoms and coloured noise in turn, (count, 3, size, size) float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    images = []
    for index in range(count):
        if index % 2 == 0:
            grey = phantom_case(index, size=max(32, size)).image
            image = cv2.cvtColor(cv2.resize(grey, (size, size)), cv2.COLOR_GRAY2RGB)
        else:
            coarse = cv2.resize(rng.random((6, 6, 3), np.float32), (size, size))
            grain = rng.normal(0, 0.05, (size, size, 3))
            image = np.round(255 * np.clip(coarse + grain, 0, 1)).astype(np.uint8)
        images.append(image.transpose(2, 0, 1))
    return np.stack(images).astype(np.float32) / 255
