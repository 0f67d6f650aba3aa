"""Models that turn a batch of square images into probabilities: a run in PyTorch, or an ONNX file.

The ONNX side imports nothing of PyTorch.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from datasets.image_files.windowing import Window, parse_window, window_text
from engine.prediction.model_arguments import find_named_run
from engine.runs.trained_run import load_run
from utils.errors import UserError, first_line

if TYPE_CHECKING:
    from utils.config import Config

log = logging.getLogger("wavegms")

ONNX_FORMAT = "wave-gms 1"
"""Value of the metadata key `format` in the files of export.py."""


class SquareModel(Protocol):
    """A model of square images that is ready to run."""

    image_size: int
    """Side S of its square input, pixels."""
    orientations: int
    """How many orientations of an image the model is for: 8, or 2 where images keep their top."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (B, 3, S, S) float32 in [0, 1] -> probabilities (B, S, S) float32."""


class Backend(SquareModel, Protocol):
    """Such a model, with what is known of its training."""

    threshold: float
    """Probability from which a pixel is foreground, as the model was validated."""
    window: Window
    """That its training images were prepared with, None also where it is not known."""
    origin: dict[str, str]
    """What its probabilities depend on besides the image: hashes of all weights, and the precision."""


def open_backend(arguments: argparse.Namespace) -> Backend:
    """The model that the arguments of `add_model_arguments` name, its weights loaded."""
    if arguments.onnx is None:
        return TorchBackend(*find_named_run(arguments))
    for name in ("weights", "set"):
        if getattr(arguments, name):
            raise UserError(f"--{name} goes with --run or --config: an ONNX file has its own")
    return OnnxBackend(arguments.onnx)


def window_for(backend: Backend, given: Window) -> Window:
    """The window for images of more than 8 bits: `given` (of --window), else that of the model, else None.

    Logs which it is where the model has one.
    """
    trained = backend.window
    if trained is None or given == trained:
        return given
    if given is None:
        log.info(
            "images of more than 8 bits are scaled as in training, by --window %s",
            window_text(trained),
        )
        return trained
    log.warning(
        f"the training images of this model were prepared with --window {window_text(trained)}, these are scaled by "
        f"{window_text(given)}: leave out --window to scale them as in training"
    )
    return given


def _recorded_window(text: str | None) -> Window:
    """A window as it is kept with the weights, '' or None for none."""
    return parse_window(text) if text else None


def orientations_of(keep_upright: bool) -> int:
    """Orientations of an image that show the same thing to a model."""
    return 2 if keep_upright else 8


class TorchBackend:
    """A trained run, on the first of its GPUs if there is one."""

    def __init__(self, config: Config, checkpoint: Path) -> None:
        from engine.cuda_graphs import Predictor
        from engine.device import describe_device, make_accelerator, resolved_precision, use_gpus
        from engine.runs.training_record import TrainingRecord

        use_gpus(config.GPUs[:1])
        accelerator = make_accelerator(config.precision, 1, config.deterministic)
        loaded = load_run(config, checkpoint)
        self._predict = Predictor(loaded.system.to(accelerator.device), accelerator)
        self.image_size = config.image_size
        self.threshold = config.threshold
        self.orientations = orientations_of(config.keep_upright)
        self.window = _recorded_window(TrainingRecord.read(checkpoint).window)
        self.origin = {
            "weights_sha256": loaded.sha256,
            **{f"{name} sha256": value for name, value in loaded.frozen.items()},
            "precision": resolved_precision(accelerator),
        }
        log.info("model: %s, %s", checkpoint, describe_device(accelerator))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        from engine.out_of_memory import reporting_out_of_memory

        with reporting_out_of_memory(len(images), self.image_size):
            return self._predict(torch.from_numpy(images))[:, 0].float().cpu().numpy()


class OnnxBackend:
    """A file of export.py, through ONNX Runtime (optional)."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "--onnx needs ONNX Runtime: pip install 'onnxruntime>=1.20,<2'"
            ) from error
        if not path.is_file():
            raise UserError(f"no ONNX file at {path}; write one with export.py")
        content = path.read_bytes()
        available = onnxruntime.get_available_providers()
        try:
            # from bytes, so that the file cannot make it read others beside it
            self._session = onnxruntime.InferenceSession(
                content,
                providers=[
                    name
                    for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
                    if name in available
                ],
            )
        except Exception as error:  # ONNX Runtime's errors share no base
            reason = first_line(error)
            raise UserError(f"{path} cannot be loaded by ONNX Runtime: {reason}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != ONNX_FORMAT:
            raise UserError(
                f"{path} was not written by this export.py: its metadata key `format` is "
                f"{metadata.get('format')!r}, expected {ONNX_FORMAT!r}"
            )
        self.image_size = int(metadata["image_size"])
        self.threshold = float(metadata["threshold"])
        self.orientations = orientations_of(metadata["keep_upright"] == "True")
        self.window = _recorded_window(metadata.get("window"))
        self.origin = {"weights_sha256": hashlib.sha256(content).hexdigest()}
        log.info("model: %s, ONNX Runtime, %s", path, self._session.get_providers()[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (probability,) = self._session.run(None, {"image": images})
        return probability[:, 0]
