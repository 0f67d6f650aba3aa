"""Starting a training from given weights, and which weights a training may build on."""

from __future__ import annotations

from pathlib import Path

from datasets.cases import DataSet
from engine.runs.seen_cases import recorded_training_cases
from engine.runs.training_record import training_history
from models.base import SegmentationModel
from utils.checkpoints import load_weights
from utils.config import Config
from utils.errors import UserError, listed

SHOWN = 4  # cases, or weights, in a message


def load_initial_weights(
    weights: Path, data_set: DataSet, system: SegmentationModel, config: Config
) -> None:
    """Copy the `weights` that a training starts from into the trainable parts of `system`, that of `config`.

    UserError where they do not fit, are not finite, or were trained on cases of this test split.
    """
    load_weights(weights, system, key="init_weights", config=config)
    trained = {name: p for name, p in system.named_parameters() if p.requires_grad}
    if broken := [name for name, p in trained.items() if not p.isfinite().all()]:
        raise UserError(
            f"init_weights: {weights} has NaN or infinite weights, in {listed(broken, limit=SHOWN)}: take those of an "
            "earlier epoch, or of another run"
        )
    check_saw_no_test_case(weights, data_set, "init_weights")


def check_saw_no_test_case(weights: Path, data_set: DataSet, key: str) -> None:
    """UserError where the `weights` that the config names under `key` were trained on cases of this test
    split, themselves or by what they started or learned from.
    """
    others = [each for each in training_history(weights) if each.used_another_split(data_set)]
    if others:
        start = others[0].checkpoint
        how = "was" if start == weights else f"started from {start}, which was"
        raise UserError(
            f"{key}: {weights} {how} trained on another split of {data_set.name} than that of "
            f"{data_set.split_file}, so that scores on its test cases could mean nothing. Prepare the data set "
            "with the split that these weights name, or take weights of another data set"
        )
    test = {case.name for case in data_set.test}
    seen = sorted(test.intersection(recorded_training_cases(weights, data_set)))
    if seen:
        raise UserError(
            f"{key}: {weights} was trained on {len(seen)} of the {len(test)} test "
            f"cases of this split ({listed(seen, limit=SHOWN)}), so that their scores would mean nothing. "
            "Take weights of another data set, or of a run with the same split"
        )
