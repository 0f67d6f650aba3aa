"""Write a trained model as one ONNX file, image in, probability out; or its weights, to pass on.

    python export.py --run ckpt/wave_gms_busi/epochs_1000
    python export.py --config configs/busi_valid.yaml --weights best_model.pth --out busi.onnx
    python export.py --run ckpt/wave_gms_busi/epochs_1000 --out ckpt/shared_model/best_model.safetensors
    python export.py --run SEED_1 --average SEED_2 SEED_3 --out ckpt/averaged/best_model.safetensors

The input `image` is (B, 3, S, S) float32 RGB in [0, 1], the output `probability` (B, 1, S, S); any B,
S as trained. The file is compared with PyTorch and kept only if they agree. `predict.py --onnx FILE`
and `app.py --onnx FILE` run it without PyTorch. With a name in .safetensors, the trained weights are
written in 16 bits and config.yaml beside them. `--average` names other runs, whose weights are averaged
with those of the first. See docs/predict.md and docs/pretraining.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import check_values, exit_from

if TYPE_CHECKING:
    from models.base import SegmentationModel
    from utils.config import Config

log = logging.getLogger("wavegms")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from engine.trained_run import add_model_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser, onnx=False)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write, .onnx or .safetensors; default: model.onnx by the weights",
    )
    parser.add_argument(
        "--average",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of runs whose weights are averaged with it, for a .safetensors",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="D",
        help="largest difference from PyTorch's probability (1e-4)",
    )
    arguments = parser.parse_args(argv)
    out = arguments.out
    known = out is None or out.suffix in (".onnx", ".safetensors")
    check_values(parser, ("out", known, "a name ending in .onnx or .safetensors"))
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from engine.trained_run import find_named_run, find_run, load_system
    from utils.errors import UserError
    from utils.runs import log_to

    log_to()
    config, checkpoint = find_named_run(arguments)
    if arguments.out is not None and arguments.out.resolve() == checkpoint.resolve():
        raise UserError(f"--out {arguments.out} is the checkpoint itself: name another file")
    system = load_system(config, checkpoint)
    if arguments.out is not None and arguments.out.suffix == ".safetensors":
        others = [find_run(folder, overrides=arguments.set) for folder in arguments.average]
        write_weights(arguments.out, [(config, checkpoint), *others], system)
        return
    if arguments.average:
        raise UserError(
            "--average writes weights: name them by --out, ending in .safetensors. Their folder is one "
            "that --run takes, to write an ONNX file say"
        )

    from engine.onnx_export import BATCH_SIZES, check_parity, export_graph
    from utils.files import atomic_write

    graph = export_graph(system, config.image_size, describe(config, checkpoint, system))
    difference = check_parity(system, graph, config.image_size, tolerance=arguments.tolerance)
    path = arguments.out or checkpoint.with_name("model.onnx")
    with writing(path):
        atomic_write(path, graph)
    log.info(
        "%s: %.1f MB; differs from PyTorch by %.1g at most, for batches of %s",
        path,
        len(graph) / 1e6,
        difference,
        ", ".join(map(str, BATCH_SIZES)),
    )


def write_weights(
    path: Path, runs: Sequence[tuple[Config, Path]], system: SegmentationModel
) -> None:
    """Write the weights of the run, or the mean of several, in 16 bits, and beside them the config that the
    first was trained with, without its `model_weight`.

    That is the config beside the checkpoint, whatever was changed to load it; where there is none, the one
    of `runs`.

    The file also says how they were chosen, and by which split they were trained. Named best_model.safetensors, their folder then
    is one that `--run` takes. UserError where the folder has the config of another run.
    """
    from engine.averaging import load_average
    from engine.provenance import AVERAGED_RUNS, origin_of, training_config
    from utils.checkpoints import save_weights
    from utils.config import dump_config
    from utils.errors import UserError
    from utils.files import atomic_write

    config, checkpoint = runs[0]
    trained = training_config(checkpoint) or config
    described = dump_config(trained.model_copy(update={"model_weight": None}))
    beside = path.with_name("config.yaml")
    if beside.exists() and beside.read_text(errors="replace") != described:
        raise UserError(
            f"{beside} is the config of another run, and would be replaced: write the weights into "
            "another folder"
        )
    origin = origin_of(checkpoint)
    if len(runs) > 1:
        origin |= load_average(system, runs)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, system, half=True, metadata=origin)
        atomic_write(beside, described)
    log.info(
        "%s: %s%.1f MB, 16 bits, with its config.yaml",
        path,
        f"mean of {origin[AVERAGED_RUNS]} runs, " if AVERAGED_RUNS in origin else "",
        path.stat().st_size / 1e6,
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a file that cannot be written into a UserError."""
    from utils.errors import UserError

    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; name another file by --out"
        ) from error


def describe(config: Config, checkpoint: Path, system: SegmentationModel) -> dict[str, str]:
    """The metadata of the file: how to use it, and what it was made of."""
    from importlib import metadata

    from engine.backends import ONNX_FORMAT
    from engine.provenance import selection_of, weights_sha256
    from utils.files import sha256

    frozen = {
        f"sha256 {name}": weights_sha256(part) for name, part in sorted(system.frozen().items())
    }
    return {
        "format": ONNX_FORMAT,
        "image_size": str(config.image_size),
        "threshold": str(config.threshold),
        "model": config.model,
        **(
            {"vae_model": config.vae_model, "guidance_method": config.guidance_method or ""}
            if config.model == "wave-gms"
            else {}
        ),
        "data_set": config.dataset,
        "checkpoint_chosen": selection_of(checkpoint),
        "sha256 checkpoint": sha256(checkpoint),
        "torch": metadata.version("torch"),
        **frozen,
    }


if __name__ == "__main__":
    exit_from(main)
