"""Which cases of a source are trained and tested on: as a split file, or folders, say, or drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.catalogue import DatasetSpec
from datasets.preparation.layouts import PairedFiles
from datasets.preparation.notes import warn
from datasets.preparation.options import PreparationOptions
from datasets.preparation.writing import listed_problems
from datasets.splits import Split, grouped_split, quoted, random_split, read_split, read_split_for
from utils.errors import UserError

TEST_ONLY = "test only"
"""The manifest's entry `splits` of a data set that is not trained on."""
BY_FOLDERS, BY_NAMES = "folders", "names"
"""The same of one that came divided into folders, or by the names of its cases."""
DRAWN = "drawn"


def choose_split(
    spec: DatasetSpec,
    files: PairedFiles,
    group_of: Mapping[str, str],
    include_normal: bool,
    options: PreparationOptions,
) -> Split:
    """The split file's cases or 80/20 of all found, with `skip_unusable` of the usable ones; by group where
    groups are known.

    With `test_only` all that were found are for testing.

    Normal cases are in no published split. With `include_normal` they are drawn 80/20 as well.
    """
    normal = {
        name for name in files.cases if spec.normal_prefix and name.startswith(spec.normal_prefix)
    }
    if options.splits is not None:
        split = read_split_for(options.splits, {*files.cases, *files.problems}, files.case_of_path)
        _refuse_other_split(options.splits, split, files)
        more = normal - {*split.train, *split.test}
        if include_normal and len(more) > 1:
            drawn = random_split(sorted(more), options.seed)
            split = Split(split.train + drawn.train, split.test + drawn.test, split.val)
        return split
    left_out = set() if include_normal else normal
    names = sorted({*files.cases, *files.problems} - left_out)
    if options.test_only:
        return Split(train=(), test=tuple(names))
    usable = [name for name in names if name in files.cases or not options.skip_unusable]
    if len(usable) < 2 and files.problems:
        raise UserError(listed_problems(spec.name, files.problems, "remove them there"))
    if group_of:
        # a case that the table does not name is a group of its own
        groups = {name: group_of.get(name, f"case {name}") for name in usable}
        drawn = grouped_split(groups, options.seed)
    else:
        drawn = random_split(usable, options.seed)
    # the others only so that they are counted as left out
    return Split((*drawn.train, *sorted(set(names) - set(usable))), drawn.test)


def _refuse_other_split(path: Path, split: Split, files: PairedFiles) -> None:
    """UserError where the split file names no case of the source."""
    names, found = {*split.train, *split.test}, {*files.cases, *files.problems}
    if names.isdisjoint(found):
        raise UserError(
            f"none of the {len(names)} cases of {path} is in the source: it names "
            f"{quoted(sorted(names), 3)}, the source has {quoted(sorted(found), 3)}; is it the split "
            "of another data set?"
        )


def split_by_names(spec: DatasetSpec, files: PairedFiles) -> Split | None:
    """The published split, where the names of the cases tell it; None where they do not."""
    if not spec.test_prefix:
        return None
    names = sorted({*files.cases, *files.problems})
    test = tuple(name for name in names if name.startswith(spec.test_prefix))
    train = tuple(name for name in names if not name.startswith(spec.test_prefix))
    if not (train and test):
        return None
    print(
        f"split as the cases are named: {len(train)} in train, {len(test)} in test; --splits FILE gives another"
    )
    return Split(train, test)


def split_by_folders(files: PairedFiles) -> Split | None:
    """The split that folders called train, val and test make; None, with a warning, where they make none."""
    names = sorted({*files.cases, *files.problems})
    parts = {
        part: [n for n in names if files.parts.get(n) == part] for part in ("train", "val", "test")
    }
    found = [part for part, cases in parts.items() if cases]
    outside = [name for name in names if name not in files.parts]
    if not found or (len(found) == 1 and not outside):
        return None
    if outside or not (parts["train"] and parts["test"]):
        where = "in neither" if len(found) == 2 else "elsewhere"
        missing = f"{len(outside)} of {len(names)} cases lie {where} ({quoted(outside, 3)})"
        if not outside:
            missing = f"there is no {'test' if parts['train'] else 'train'}"
        warn(
            f"folders called {', '.join(found)} look like a split, but {missing}, so it is not taken: the parts "
            "are mixed. Give --splits FILE with the cases of train and test, or rename the folders"
        )
        return None
    counts = ", ".join(f"{len(parts[part])} cases in {part}" for part in found)
    print(
        f"split as the folders are called: {counts}"
        + (" (those of val choose the checkpoint)" if parts["val"] else "")
        + "; --splits FILE gives another"
    )
    return Split((*parts["train"], *parts["val"]), tuple(parts["test"]), tuple(parts["val"]))


def without_unusable(
    spec: DatasetSpec, split: Split, problems: Mapping[str, str], options: PreparationOptions
) -> Split:
    """The split without its unusable cases; UserError where these are not skipped, or a part has no other."""
    other_way = "take them out of the split file" if options.splits else "remove them there"
    if not options.skip_unusable:
        other_way += " (--skip-unusable leaves them out)"
        raise UserError(listed_problems(spec.name, problems, other_way))
    parts = {"train": split.train, "test": split.test, "val": split.val}
    kept = {part: tuple(n for n in names if n not in problems) for part, names in parts.items()}
    left = Split(**kept)
    for part, names in parts.items():
        if names and not (left.beside_val if part == "train" else kept[part]):
            what = listed_problems(spec.name, problems, other_way)
            raise UserError(f"no {part} case is usable. {what}")
    return left


def split_record(options: PreparationOptions, split: Split, otherwise: str) -> dict[str, Any]:
    """The manifest's entries on the split: for a split file, of the file as it was given.

    `otherwise` says where a split comes from that no option gives.
    """
    given = read_split(options.splits, plain_lists=True) if options.splits else split
    origin = options.splits.name if options.splits else otherwise
    origin = TEST_ONLY if options.test_only else origin
    return {"seed": options.seed, "splits": origin, "splits_sha256": split_digest(given)}


def split_digest(split: Split) -> str:
    """SHA-256 of the names in order, the same for a pickle and its JSON."""
    parts = [split.train, split.test, *([split.val] if split.val else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
