"""Write a trained model as one ONNX file, image in, probability out; or its weights, to pass on.

    python export.py --run ckpt/wave_gms_busi/epochs_1000
    python export.py --config configs/busi_valid.yaml --weights best_model.pth --out busi.onnx
    python export.py --run ckpt/wave_gms_busi/epochs_1000 --out ckpt/shared_model/best_model.safetensors
    python export.py --run SEED_1 --ensemble SEED_2 SEED_3 --out ckpt/ensemble/best_model.safetensors
    python export.py --run SEED_1 --average SEED_2 SEED_3 --out ckpt/averaged/best_model.safetensors

The input `image` is (B, 3, S, S) float32 RGB in [0, 1], the output `probability` (B, 1, S, S); any
B, S as trained. The file is compared with PyTorch and kept only if they agree. `predict.py --onnx
FILE` and `app.py --onnx FILE` run it without PyTorch. With a name in .safetensors, the trained
weights are written in 16 bits and config.yaml beside them. `--ensemble` and `--average` name other
runs, of which the predictions, or the weights, are averaged with those of the first. See
docs/predict.md and docs/pretraining.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.entry import check_values, described_parser, exit_from

log = logging.getLogger("wavegms")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from engine.prediction.model_arguments import add_model_arguments

    parser = described_parser(__doc__)
    add = parser.add_argument
    add_model_arguments(parser, onnx=False)
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write, .onnx or .safetensors; default, by the weights: model.onnx for a best_model, else an .onnx "
        "of the name of the weights",
    )
    several = parser.add_mutually_exclusive_group().add_argument
    runs: dict[str, Any] = {"type": Path, "nargs": "+", "default": [], "metavar": "DIR"}
    several(
        "--average",
        **runs,
        help="folders of runs whose weights are averaged with it, for a .safetensors",
    )
    several(
        "--ensemble",
        **runs,
        help="folders of runs whose predictions are averaged with its own, for a .safetensors",
    )
    add(
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

    from engine.prediction.model_arguments import find_named_run
    from engine.runs.trained_run import find_run, load_system
    from engine.runs.weights_export import check_target, write_weights, writing_file
    from utils.errors import UserError
    from utils.logs import log_to

    log_to()
    as_weights = arguments.out is not None and arguments.out.suffix == ".safetensors"
    if (arguments.average or arguments.ensemble) and not as_weights:
        raise UserError(
            "--average and --ensemble write weights: name them by --out, ending in .safetensors. Their folder is one "
            "that --run takes, to write an ONNX file say"
        )
    run = find_named_run(arguments)
    config, checkpoint = run
    if arguments.out is not None and arguments.out.resolve() == checkpoint.resolve():
        raise UserError(f"--out {arguments.out} is the checkpoint itself: name another file")
    name = "model" if checkpoint.stem == "best_model" else checkpoint.stem
    path = arguments.out or checkpoint.with_name(f"{name}.onnx")
    check_target(path)  # before what takes minutes
    system = load_system(config, checkpoint)
    if as_weights:
        folders = arguments.average or arguments.ensemble
        others = [find_run(folder, overrides=arguments.set) for folder in folders]
        runs = [run, *others]
        write_weights(arguments.out, runs, system, ensemble=bool(arguments.ensemble))
        return

    from engine.prediction.onnx_export import (
        BATCH_SIZES,
        check_parity,
        export_graph,
        graph_metadata,
    )
    from utils.files import atomic_write

    metadata = graph_metadata(config, checkpoint, system)
    graph = export_graph(system, config.image_size, metadata)
    difference = check_parity(system, graph, config.image_size, tolerance=arguments.tolerance)
    with writing_file(path):
        atomic_write(path, graph)
    log.info(
        "%s: %.1f MB; differs from PyTorch by %.1g at most, for batches of %s",
        path,
        len(graph) / 1e6,
        difference,
        ", ".join(map(str, BATCH_SIZES)),
    )


if __name__ == "__main__":
    exit_from(main)
