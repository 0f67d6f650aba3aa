"""Train a model from a config.

    python train.py --config configs/busi_train.yaml
    python train.py --config configs/busi_train.yaml epochs=100 lr=1e-3
    python train.py --config configs/busi_train.yaml --dry-run

The run goes to `<snapshot_path>/epochs_<epochs>`: best_model.pth, history.csv, curves.png, logs/.
The same command again resumes where the run was stopped.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from engine.device import make_accelerator, use_gpus
from utils.entry import described_parser, exit_from
from utils.logs import log_to

log = logging.getLogger("wavegms")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file, see docs/config.md")
    add(
        "--dry-run",
        action="store_true",
        help="check config, data and weights, print the plan, stop",
    )
    add("overrides", nargs="*", metavar="key=value", help="change keys of the config")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    # Imported late: --help answers at once, and GPUs are chosen before anything can touch CUDA.
    from utils.config import load_config, part_of

    config = load_config(arguments.config, arguments.overrides)
    use_gpus(config.GPUs)
    accelerator = make_accelerator(config.precision, config.accumulate, config.deterministic)

    from datasets.cases import open_data_set
    from engine.build import check_data, system_from, training_sets
    from engine.runs.run_folder import open_run
    from engine.training.compiling import compile_on_gpu
    from engine.training.initial_weights import load_initial_weights
    from engine.training.options import TrainingOptions
    from engine.training.plan import check_run, describe_run, memory_line
    from engine.training.teachers import load_teachers
    from engine.training.trainer import Trainer
    from engine.training_cases import training_cases_from
    from utils.runs import BEST_WEIGHTS

    is_main = accelerator.is_main_process
    log_to(level=logging.INFO if is_main else logging.ERROR)
    data_set = open_data_set(config.pickle_file_path)
    cases = training_cases_from(config, data_set)
    system = system_from(config, pretrained=config.init_weights is None)
    if config.init_weights is not None:
        load_initial_weights(config.init_weights, data_set, system, config)
    teachers = load_teachers(config, data_set, accelerator)
    check_run(config, system)
    plan = describe_run(config, data_set, cases, system, accelerator)
    if arguments.dry_run:
        log.info("%s\n%s", plan, memory_line(config, system, accelerator, teachers))
        check_data(data_set, config.image_size)
        log.info("everything is in place; nothing was written")
        return

    with open_run(config, data_set, cases, system, accelerator, plan) as run:
        train_set, val_set = training_sets(config, cases, system, progress=is_main)
        if config.compile:
            compile_on_gpu(system)
        options = part_of(config, TrainingOptions)
        trainer = Trainer(
            system, train_set, val_set, options, accelerator, run.path, data_set.name, teachers
        )
        if config.resume == "auto":
            trainer.resume()
        run.begin()
        trainer.fit()
        log.info("%s: %s", trainer.outcome, run.path / BEST_WEIGHTS)
    accelerator.end_training()


if __name__ == "__main__":
    exit_from(main)
