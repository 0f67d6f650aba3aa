"""Leaks: test cases that show the same lesion, patient or scan as a training case.

A check (datasets/checks/integrity.py) writes which cases show the same; here this is read, to name the
leaks of a split, to draw a split without any, or to count such cases as one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from datasets.cases import own_split_file
from datasets.prepared import read_metadata_groups
from datasets.splits import SEED, Split, cases_by_group, grouped_split, read_split, write_split
from scoring.groups import NOTHING_KNOWN, KnownGroups, named_groups
from utils.data_set_names import SPLIT_FILE_ENDING, data_set_name
from utils.errors import UserError


class SameSourceGroups(TypedDict):
    """Content of same_source_groups.json, which a check writes."""

    by: str
    """How it is known which images show the same source."""
    groups: list[list[str]]
    """Groups of two or more cases."""
    near_duplicates: list[dict[str, Any]]
    """Each `datasets.checks.near_duplicates.NearDuplicate`."""


def grouped_with_train(split: Split, groups: Sequence[Sequence[str]]) -> set[str]:
    """Test cases of the split whose group has a member in train."""
    train, test = set(split.train), set(split.test)
    return {name for group in groups if train & set(group) for name in test & set(group)}


def same_source_file(folder: Path) -> Path:
    """Where a check writes which images show the same source; absent before the first check."""
    return folder / "check" / "same_source_groups.json"


def read_same_source_groups(folder: Path) -> SameSourceGroups:
    """What the last check found; UserError if there was none."""
    path = same_source_file(folder)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there, as the data set has not been checked for leaks; run "
            f"python -m datasets.prepare --check {folder.name} --root {folder.parent}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run the check again") from None


def leaked_test_cases(folder: Path, split: Split | None = None) -> set[str]:
    """Test cases of a data set that leak, by its own split or another.

    Raises UserError where the data set has not been checked.
    """
    groups = read_same_source_groups(folder)["groups"]
    return grouped_with_train(split or read_split(own_split_file(folder)), groups)


def known_groups(folder: Path) -> KnownGroups:
    """The groups of a data set: those of the last check, which joins metadata and near-duplicates.

    Without a check, those of the metadata that the data set was prepared with, if there are any.
    """
    if same_source_file(folder).is_file():
        checked = read_same_source_groups(folder)
        return named_groups(checked["by"], checked["groups"])
    if of_metadata := read_metadata_groups(folder):
        return named_groups("metadata", cases_by_group(of_metadata, of_metadata))
    return NOTHING_KNOWN


def write_group_split(folder: Path, seed: int = SEED) -> Path:
    """Write a split that keeps each group in one part, beside the data set's own; return its path.

    Groups are those of the last check; without one, those of the metadata that the data set was
    prepared with (UserError if there is neither). Depends only on names, groups and seed.
    """
    split_file = own_split_file(folder)
    split = read_split(split_file)
    names = sorted({*split.train, *split.test})
    known = known_groups(folder)
    if not known.group_of:
        read_same_source_groups(folder)  # refused without a check, which may have found no group
    group_of = {
        name: f"group {known.group_of[name]}" if name in known.group_of else f"case {name}"
        for name in names
    }
    path = folder / f"{data_set_name(split_file)}_grouped{SPLIT_FILE_ENDING}.json"
    write_split(path, grouped_split(group_of, seed))
    return path
