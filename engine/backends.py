"""Models that turn a batch of square images into probabilities: a run in PyTorch, or an ONNX file.

The ONNX side imports nothing of PyTorch.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from utils.errors import UserError
from utils.files import sha256

if TYPE_CHECKING:
    from models.base import SegmentationModel
    from utils.config import Config

log = logging.getLogger("wavegms")

PROVIDED_MODELS = Path("ckpt/provided_models")
"""Weights that come with the repository, a folder like that of a run for each data set."""

ONNX_FORMAT = "wave-gms 1"
"""Value of the metadata key `format` in the files of export.py."""


class Backend(Protocol):
    """A model that is ready to run."""

    image_size: int
    """Side S of its square input, pixels."""
    threshold: float
    """Probability from which a pixel is foreground, as the model was validated."""
    origin: dict[str, str]
    """What its probabilities rest on besides the image: hashes of all weights, and the precision."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (B, 3, S, S) float32 in [0, 1] -> probabilities (B, S, S) float32."""


def add_model_arguments(parser: argparse.ArgumentParser, onnx: bool = True) -> None:
    """`--run`, `--config`, `--onnx` (one of them), `--weights` and `--set`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="folder of a run: config.yaml and best_model.pth (or .safetensors)",
    )
    source.add_argument("--config", type=Path, metavar="YAML", help="config of the model")
    if onnx:
        source.add_argument("--onnx", type=Path, metavar="FILE", help="model written by export.py")
    parser.add_argument(
        "--weights", type=Path, metavar="PTH", help="checkpoint, in place of the run's best"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="change a key of the run's config, such as vae_weights, GPUs or precision",
    )


def open_backend(arguments: argparse.Namespace) -> Backend:
    """The model that the arguments of `add_model_arguments` name, its weights loaded."""
    if arguments.onnx is None:
        return TorchBackend(*find_named_run(arguments))
    for name in ("weights", "set"):
        if getattr(arguments, name):
            raise UserError(f"--{name} goes with --run or --config: an ONNX file has its own")
    return OnnxBackend(arguments.onnx)


def find_named_run(arguments: argparse.Namespace) -> tuple[Config, Path]:
    """Config and checkpoint that the arguments of `add_model_arguments` name."""
    return find_run(arguments.run, arguments.config, arguments.weights, arguments.set)


def find_run(
    folder: Path | None = None,
    config_file: Path | None = None,
    weights: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, Path]:
    """Config and checkpoint of a run: of its folder, or of a config file where there is no folder.

    The checkpoint is `weights`, else what `overrides` (`key=value`) or the config file name as
    `model_weight`, else the run's `best_model.pth`, or `.safetensors` as export.py writes it. As long as
    a data set's own config has no run, it stands for the weights that come with the repository, where
    there are some. UserError where one is missing.
    """
    from engine.build import find_checkpoint
    from utils.config import load_config

    path = config_file if folder is None else folder / "config.yaml"
    if path is None:
        raise UserError("name the folder of a run, or a config file")
    if folder is not None and not path.is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it has no config.yaml. Name one as "
            "train.py wrote it (ckpt/<experiment>/epochs_<N>), or use --config"
        )
    config = load_config(path, overrides)
    named = any(override.startswith("model_weight=") for override in overrides)
    if folder is not None and not named and weights is None:
        own, passed_on = folder / "best_model.pth", folder / "best_model.safetensors"
        weights = passed_on if passed_on.is_file() and not own.is_file() else own
    if weights:
        config = config.model_copy(update={"model_weight": weights})
    if folder is None and config.model_weight is None and (provided := provided_for(config)):
        log.warning(
            "no run in %s yet: the weights that come with the repository are used, with their own config, %s",
            *(config.snapshot_path, provided),
        )
        split = f"pickle_file_path={config.pickle_file_path}"
        return find_run(provided, overrides=[split, *overrides])
    return config, find_checkpoint(config)


def provided_for(config: Config) -> Path | None:
    """The folder of the weights that stand in for a run of the config's data set; None where there are none,
    where there is a run, and for an experiment that is not the one in the data set's own config.
    """
    folder, experiment = PROVIDED_MODELS / config.dataset, config.snapshot_path
    if experiment.name != f"wave_gms_{config.dataset}" or any(
        experiment.glob("epochs_*/best_model.*")
    ):
        return None
    return folder if (folder / "config.yaml").is_file() else None


def load_system(config: Config, checkpoint: Path) -> SegmentationModel:
    """The trained system in eval mode; a warning where it was trained with another config.

    UserError if the checkpoint is another architecture's.
    """
    from engine.build import system_from
    from engine.provenance import trained_otherwise, training_config
    from utils.checkpoints import load_weights

    system = system_from(config, pretrained=False)
    load_weights(checkpoint, system)
    others = trained_otherwise(config, training_config(checkpoint))
    if others:
        keys = " ".join(
            f"{key}={'null' if value is None else value}" for key, value in others.items()
        )
        log.warning(
            "these weights were trained with %s: set that to use them as they were trained", keys
        )
    return system.eval()


class TorchBackend:
    """A trained run, on the first of its GPUs if there is one."""

    def __init__(self, config: Config, checkpoint: Path) -> None:
        from engine.cuda_graphs import Predictor
        from engine.device import describe_device, make_accelerator, use_gpus
        from engine.provenance import weights_sha256

        use_gpus(config.GPUs[:1])
        accelerator = make_accelerator(config.precision, 1, config.deterministic)
        self._device = accelerator.device
        system = load_system(config, checkpoint)
        self._predict = Predictor(system.to(self._device), accelerator)
        self.image_size = config.image_size
        self.threshold = config.threshold
        self.origin = {
            "weights_sha256": sha256(checkpoint),
            **{f"{name} sha256": weights_sha256(part) for name, part in system.frozen().items()},
            "precision": config.precision,
        }
        log.info("model: %s, %s", checkpoint, describe_device(accelerator))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        batch = torch.from_numpy(images).to(self._device)
        return self._predict(batch)[:, 0].float().cpu().numpy()


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
        available = onnxruntime.get_available_providers()
        try:
            # given as bytes, so that the file cannot refer to others beside it
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(),
                providers=[
                    name
                    for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
                    if name in available
                ],
            )
        except Exception as error:  # ONNX Runtime's errors share no base
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(f"{path} cannot be loaded by ONNX Runtime: {reason}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != ONNX_FORMAT:
            raise UserError(
                f"{path} was not written by this export.py: its metadata key `format` is "
                f"{metadata.get('format')!r}, expected {ONNX_FORMAT!r}"
            )
        self.image_size = int(metadata["image_size"])
        self.threshold = float(metadata["threshold"])
        self.origin = {"weights_sha256": sha256(path)}
        log.info("model: %s, ONNX Runtime, %s", path, self._session.get_providers()[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (probability,) = self._session.run(None, {"image": images})
        return probability[:, 0]
