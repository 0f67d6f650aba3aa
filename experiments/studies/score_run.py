"""Score a trained run of a study on its test split, in each of the ways that a study compares.

    python -m experiments.studies.score_run --config <run folder>/trial.yaml
    python -m experiments.studies.score_run --config <run folder>/trial.yaml --tta

The first writes into the run folder

    valid_results_<data set>/                  checkpoint chosen on the held-out part of train
    chosen_on_test/valid_results_<data set>/   the best of the kept epochs on test, as in the published code
    chosen_on_test.json                        Dice on test of every kept epoch
    parameters.json                            trainable parameters

and the second

    tta/valid_results_<data set>/              with test-time augmentation
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.trials.trial import Steps, Trial, training_steps
from utils.entry import described_parser, exit_from
from utils.errors import UserError
from utils.runs import BEST_WEIGHTS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from models.base import SegmentationModel
    from utils.config import Config

TTA = "tta"
ON_TEST = "chosen_on_test"
EPOCHS = "epoch_*.pth"


def training_and_scoring_steps(trial: Trial, tta: bool) -> Steps:
    """Train the run, then score it, with test-time augmentation if `tta`."""
    config = str(trial.config_file)
    score = [sys.executable, "-m", "experiments.studies.score_run", "--config", config]
    steps = {**training_steps(trial), "score": score}
    return steps | ({TTA: [*score, "--tta"]} if tta else {})


def main(argv: Sequence[str] | None = None) -> None:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="config of the run")
    add("--tta", action="store_true", help="with test-time augmentation, nothing else")
    arguments = parser.parse_args(argv)

    from engine.validation.validate_run import validate_run
    from experiments.trials.earlier_runs import check_earlier_runs
    from utils.config import dump_config, load_config
    from utils.files import atomic_write
    from utils.logs import log_to

    log_to()
    config = load_config(arguments.config)
    folder = config.run_folder
    best_on_val = folder / BEST_WEIGHTS
    if not best_on_val.is_file():
        raise UserError(f"{folder} holds no {BEST_WEIGHTS}: train the run first")

    check_earlier_runs([Trial(str(folder), config)])

    def score_copy(weights: Path, way: str, trained: Config, **changes: object) -> None:
        """Score a copy of `weights` in the subfolder `way`, as weights that the config `trained` gave."""
        copy = folder / way / BEST_WEIGHTS
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(weights, copy)
        atomic_write(copy.parent / "config.yaml", dump_config(trained))
        validate_run(config.model_copy(update={"model_weight": copy, **changes}), copy)

    if arguments.tta:
        score_copy(best_on_val, TTA, config, tta=True)
        return

    validate_run(config, best_on_val)

    from engine.build import system_from
    from engine.device import make_accelerator

    accelerator = make_accelerator(config.precision, 1, config.deterministic)
    system = system_from(config, pretrained=False).to(accelerator.device)
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    atomic_write(folder / "parameters.json", json.dumps({"trainable": trained}) + "\n")
    dice = dice_of_epochs(config, system, accelerator)
    if dice:
        best = max(dice, key=lambda epoch: dice[epoch])
        chosen_on_test = config.model_copy(update={"select_on": "test"})
        score_copy(folder / f"epoch_{best}.pth", ON_TEST, chosen_on_test)
        content = {"best_epoch": best, "dice": dice}
        atomic_write(folder / f"{ON_TEST}.json", json.dumps(content, indent=1) + "\n")


def dice_of_epochs(
    config: Config, system: SegmentationModel, accelerator: Accelerator
) -> dict[int, float]:
    """Mean Dice on the test split of every epoch whose weights were kept (`save_freq`).

    `system` gets the weights of each of them in turn.
    """
    from datasets.cases import open_data_set
    from datasets.loading import SegmentationDataset, make_loader
    from engine.cuda_graphs import Predictor
    from engine.training.epoch_scores import mean_scores
    from utils.checkpoints import load_weights

    def number(path: Path) -> int:
        return int(path.stem.removeprefix("epoch_"))

    kept = sorted(config.run_folder.glob(EPOCHS), key=number)
    if not kept:
        return {}
    test = open_data_set(config.pickle_file_path).test
    data = SegmentationDataset(test, config.image_size, cache_bytes=config.cache_mb << 20)
    loader = accelerator.prepare(make_loader(data, config.batch_size))
    predict = Predictor(system, accelerator)
    dice = {}
    for path in kept:
        load_weights(path, system)
        dice[number(path)], _ = mean_scores(predict, loader, config.threshold)
    return dice


if __name__ == "__main__":
    exit_from(main)
