"""Which cases a run trains on, and which are held out to choose its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from datasets.cases import Case, DataSet
from datasets.prepared import read_metadata_groups
from datasets.splits import cases_by_group, hold_out, hold_out_fold
from utils.errors import UserError


@dataclass(frozen=True)
class HoldOut:
    """How the cases are chosen; keys of the config, where they are described."""

    select_on: Literal["val", "test", "last"]
    val_fraction: float
    folds: int
    fold: int
    seed: int


class TrainingCases(NamedTuple):
    """Cases to train on, and cases that choose the checkpoint (with `select_on: last` none do)."""

    train: list[Case]
    val: list[Case]


def training_cases(data_set: DataSet, how: HoldOut) -> TrainingCases:
    """The cases of a run.

    Those that choose the checkpoint are the ones that the split names. Where it names none, they are a part
    of train, fixed by name and seed: `val_fraction` of it, or one of `folds`; cases of one group that the
    data set was prepared with stay together. With `select_on: test` they are the test split; with `last`
    there may be none. UserError where there is no case to train on or to choose by.
    """
    if not data_set.train:
        raise UserError(
            f"{data_set.name} has no training cases, only {len(data_set.test)} to test on: train on another "
            f"data set, and score on this one with valid.py --datasets {data_set.name}"
        )
    if how.select_on == "test":
        return TrainingCases(list(data_set.train), list(data_set.test))
    names = [case.name for case in data_set.train]
    group_of = read_metadata_groups(data_set.folder)
    if data_set.val and how.folds:
        raise UserError(
            f"{data_set.split_file} names {len(data_set.val)} cases to choose the checkpoint by (`val`), so folds "
            "cannot: set folds=0, or move them into train"
        )
    if data_set.val:
        held = set(data_set.val)
    elif how.folds:
        held = set(hold_out_fold(names, how.folds, how.fold, how.seed, group_of)[1])
    else:
        held = set(hold_out(names, how.val_fraction, how.seed, group_of)[1])
    if not held and how.select_on != "last":
        raise UserError(
            f"no training case of {data_set.name} is held out to choose the checkpoint: raise val_fraction "
            f"({how.val_fraction:g}), or train on all cases and keep the last epoch with select_on: last"
        )
    if len(held) == len(names):
        groups = len(cases_by_group(names, group_of))
        raise UserError(
            f"all {len(names)} training cases of {data_set.name} are held out to choose the checkpoint "
            f"(val_fraction {how.val_fraction:g}, {groups} group(s) such as patients, which stay whole), so "
            "none is left to train on: have more groups in train, or choose on test with select_on: test"
        )
    return TrainingCases(
        [case for case in data_set.train if case.name not in held],
        [case for case in data_set.train if case.name in held],
    )
