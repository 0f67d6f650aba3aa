"""Validate a trained model on the test split: masks, probabilities, scores.

    python valid.py --run ckpt/wave_gms_busi/epochs_1000
    python valid.py --run ckpt/wave_gms_busi/epochs_1000 --name tta tta=true
    python valid.py --run ckpt/wave_gms_busi/epochs_1000 evaluation_size=native
    python valid.py --run ckpt/wave_gms_busi/epochs_1000 --datasets bus busi
    python valid.py --run ckpt/wave_gms_busi/epochs_1000 --held-out
    python valid.py --config configs/busi_valid.yaml model_weight=path/to/best_model.pth

As long as a data set's own config (configs/busi_valid.yaml) has no run, the weights that come with the
repository (ckpt/provided_models/busi) are scored, where there are some.

Writes beside the checkpoint: predicted_masks_<dataset>/ and valid_results_<dataset>/; for a checkpoint other
than best_model.pth into a folder of its name (epoch_100/). With --held-out: held_out_masks_<dataset>/ and
held_out_results_<dataset>/. Masks that an earlier validation left there, of cases that are not scored now,
are deleted. With --name NAME all goes into a folder of that name there, so that scores made in another way
do not replace these. With save_seg_img_path=DIR the masks go into DIR, in subfolders of the checkpoint's
name and NAME as above (and of each data set's, where --datasets names several), those of held-out cases into
held_out_masks there, and none are deleted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.entry import described_parser, exit_from


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="DIR", help="folder of a run")
    source.add_argument(
        "--config", type=Path, metavar="YAML", help="config of the model, see docs/config.md"
    )
    add("--datasets", nargs="+", metavar="NAME", help="prepared data sets; default: the config's")
    add(
        "--held-out",
        action="store_true",
        help="score the cases that the run held out of train, not the test split",
    )
    add(
        "--name",
        default="",
        help="write into a folder of this name beside the checkpoint, which keeps these scores apart from others of it",
    )
    add("overrides", nargs="*", metavar="key=value", help="change keys of the config")
    arguments = parser.parse_intermixed_args(argv)
    # `--datasets a b key=value`: the values were taken as names
    names = arguments.datasets or []
    arguments.overrides += [name for name in names if "=" in name]
    arguments.datasets = [name for name in names if "=" not in name]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from engine.runs.trained_run import find_run
    from engine.validation.validate_run import validate_run
    from utils.logs import log_to

    log_to()
    run = find_run(arguments.run, arguments.config, overrides=arguments.overrides)
    validate_run(*run, arguments.datasets, arguments.held_out, arguments.name)


if __name__ == "__main__":
    exit_from(main)
