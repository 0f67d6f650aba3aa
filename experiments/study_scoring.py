"""Score a finished run of a study on its test split, by each way of choosing the checkpoint.

    python -m experiments.study_scoring --config <run folder>/trial.yaml
    python -m experiments.study_scoring --config <run folder>/trial.yaml --tta

The first writes into the run folder, through valid.py,

    valid_results_<data set>/                  checkpoint chosen on the held-out part of train
    chosen_on_test/valid_results_<data set>/   the best of the kept epochs on test, as in the published code
    chosen_on_test.json                        Dice on test of every kept epoch
    parameters.json                            trainable parameters

and the second one

    tta/valid_results_<data set>/              with test-time augmentation, eight predictions per case
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import exit_from
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.config import Config

log = logging.getLogger("wavegms")

TTA = "tta"
ON_TEST = "chosen_on_test"
EPOCHS = "epoch_*.pth"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="config of the run")
    parser.add_argument(
        "--tta", action="store_true", help="with test-time augmentation, nothing else"
    )
    arguments = parser.parse_args(argv)

    import valid
    from utils.config import dump_config, load_config
    from utils.files import atomic_write

    config = load_config(arguments.config)
    folder = config.run_folder
    if not (folder / "best_model.pth").is_file():
        raise UserError(f"{folder} holds no best_model.pth: train the run first")

    def score(variant: Path, changes: dict[str, object], *overrides: str) -> None:
        atomic_write(variant / "config.yaml", dump_config(config.model_copy(update=changes)))
        valid.main(
            [
                "--config",
                str(arguments.config),
                f"model_weight={variant / 'best_model.pth'}",
                *overrides,
            ]
        )

    if arguments.tta:
        (folder / TTA).mkdir(exist_ok=True)
        shutil.copyfile(folder / "best_model.pth", folder / TTA / "best_model.pth")
        score(folder / TTA, {}, "tta=true")
        return

    valid.main(["--config", str(arguments.config)])
    dice = dice_of_epochs(config)
    if dice:
        best = max(dice, key=lambda epoch: dice[epoch])
        (folder / ON_TEST).mkdir(exist_ok=True)
        shutil.copyfile(folder / f"epoch_{best}.pth", folder / ON_TEST / "best_model.pth")
        score(folder / ON_TEST, {"select_on": "test"})
        content = {"best_epoch": best, "dice": dice}
        atomic_write(folder / f"{ON_TEST}.json", json.dumps(content, indent=1) + "\n")


def dice_of_epochs(config: Config) -> dict[int, float]:
    """Mean Dice on the test split of every epoch whose weights were kept (`save_freq`)."""
    from datasets.cases import open_data_set
    from datasets.loading import SegmentationDataset, make_loader
    from engine.build import system_from
    from engine.cuda_graphs import Predictor
    from engine.device import make_accelerator
    from engine.validation import validate
    from utils.checkpoints import load_weights
    from utils.files import atomic_write

    accelerator = make_accelerator(config.precision, 1, config.deterministic)
    system = system_from(config, pretrained=False).to(accelerator.device)
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    atomic_write(config.run_folder / "parameters.json", json.dumps({"trainable": trained}) + "\n")

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
        dice[number(path)], _ = validate(predict, loader, config.threshold)
    return dice


if __name__ == "__main__":
    exit_from(main)
