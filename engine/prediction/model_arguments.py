"""Arguments of the command line that name a model, and how images are read for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.image_files.windowing import parse_window
from engine.runs.trained_run import TrainedRun, find_run
from utils.entry import accept_negative_values


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
    add = parser.add_argument
    add("--weights", type=Path, metavar="PTH", help="checkpoint, in place of the run's best")
    add(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="change a key of the run's config, such as vae_weights, GPUs or precision; may be given again",
    )


def find_named_run(arguments: argparse.Namespace) -> TrainedRun:
    """Config and checkpoint that the arguments of `add_model_arguments` name, other than an ONNX file."""
    return find_run(arguments.run, arguments.config, arguments.weights, arguments.set)


def add_window_argument(parser: argparse.ArgumentParser) -> None:
    """`--window`, which is a `Window`, or None where it is not given."""
    accept_negative_values(parser)
    parser.add_argument(
        "--window",
        type=parse_window,
        metavar="LOW,HIGH|auto",
        help="values of black and white in images of more than 8 bits; auto: each one's range; default: that of "
        "the images that the model was trained on",
    )


def add_megapixels_argument(parser: argparse.ArgumentParser, default: float) -> None:
    """`--max-megapixels`, which is `default` unless given."""
    parser.add_argument(
        "--max-megapixels",
        type=megapixels,
        default=default,
        metavar="N",
        help=f"refuse larger images before decoding them ({default})",
    )


def megapixels(text: str) -> float:
    """Type of an argument that limits the size of images."""
    limit = float(text)
    if not 0 < limit <= 1e6:
        raise argparse.ArgumentTypeError(f"expected above 0, at most 1000000, got {text}")
    return limit
